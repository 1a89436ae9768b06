//! A wrong command line is answered in the words of `qemu-img`, with its exit code.

use crate::Folder;

#[test]
fn wrong_command_lines_get_the_words_of_qemu_img() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for arguments in [
        &["nonsense"][..],
        &[],
        &["info"],
        &["info", "a.qcow2", "b"],
        &["info", "--bogus", "a.qcow2"],
        &["info", "-Z", "a.qcow2"],
        &["info", "-UZ", "a.qcow2"],
        &["info", "--output=xml", "a.qcow2"],
        &["info", "--output", "a.qcow2"],
        &["info", "--output"],
        &["info", "-f"],
        &["map"],
        &["map", "--output=yaml", "a.qcow2"],
        &["check"],
        &["check", "a.qcow2", "a.qcow2"],
        &["check", "-r", "some", "a.qcow2"],
        &["check", "-T", "some", "a.qcow2"],
        &["compare", "a.qcow2"],
        &["compare", "-T", "some", "a.qcow2", "a.qcow2"],
        &["snapshot", "-l", "-c", "s", "a.qcow2"],
        &["snapshot"],
        &["convert"],
        &["convert", "a.qcow2"],
        &["convert", "-m", "0", "a.qcow2", "b.raw"],
        &["convert", "-m", "17", "a.qcow2", "b.raw"],
        &["convert", "-m", "x", "a.qcow2", "b.raw"],
        &["convert", "-S", "1", "a.qcow2", "b.raw"],
        &["convert", "-S", "17M", "a.qcow2", "b.raw"],
        &["convert", "-S", "x", "a.qcow2", "b.raw"],
        &["convert", "--target-is-zero", "a.qcow2", "b.raw"],
        &["convert", "-n", "-o", "size=1", "a.qcow2", "b.raw"],
        &["convert", "-t", "some", "a.qcow2", "b.raw"],
        &["convert", "-T", "some", "a.qcow2", "b.raw"],
        &["convert", "-c", "a.qcow2", "b.raw"],
        &["convert", "--skip-broken-bitmaps", "a.qcow2", "b.raw"],
        &["convert", "-O", "nonsense", "a.qcow2", "b.raw"],
    ] {
        folder.same(arguments);
    }
}

#[test]
fn options_are_parsed_as_getopt_does() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for arguments in [
        &["info", "-Uf", "qcow2", "a.qcow2"][..],
        &["info", "-fqcow2", "a.qcow2"],
        &["info", "a.qcow2", "-U"],
        &["info", "--", "a.qcow2"],
        &["info", "--back", "a.qcow2"],
        &["info", "--form", "qcow2", "a.qcow2"],
        &["info", "-f", "raw", "-f", "qcow2", "a.qcow2"],
        &["info", "-U", "-U", "a.qcow2"],
        &["map", "-s1k", "-l", "2k", "a.qcow2"],
    ] {
        folder.same(arguments);
    }
}

#[test]
fn images_that_cannot_be_opened_are_named() {
    let folder = Folder::new();
    folder.write("short.raw", "x");
    std::fs::create_dir(folder.path("folder")).unwrap();
    for image in ["missing", "folder"] {
        folder.same_but_for_errors(&["info", image]);
        folder.same_but_for_errors(&["map", image]);
        folder.same_but_for_errors(&["check", image]);
        folder.same_but_for_errors(&["compare", image, image]);
        folder.same_but_for_errors(&["snapshot", "-l", image]);
        folder.same_but_for_errors(&["convert", image, "b.raw"]);
        let output = folder.cowshed(&["info", image]);
        let error = crate::text(&output.stderr);
        assert!(error.starts_with(&format!("cowshed: {image}: ")), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
