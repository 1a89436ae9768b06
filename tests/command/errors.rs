//! A wrong command line is answered in the words of `qemu-img`, with its exit code.

use std::os::unix::fs::FileExt as _;

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

const HUGE: &[u8] = &[0xff; 8];

/// Bytes and where they are written.
type Poke = (u64, &'static [u8]);

#[test]
fn damaged_headers_are_reported_in_the_words_of_qemu_img() {
    let folder = Folder::new();
    let cases: [(&str, &[Poke]); 20] = [
        ("magic", &[(0, b"X")]),
        ("version", &[(4, &[0, 0, 0, 9])]),
        ("backing file offset", &[(8, HUGE), (16, &[0, 0, 0, 4])]),
        ("backing file name", &[(8, &[0, 0, 0, 0, 0, 0, 2, 0]), (16, &HUGE[..4])]),
        ("small clusters", &[(20, &[0, 0, 0, 8])]),
        ("large clusters", &[(20, &[0, 0, 0, 22])]),
        ("size", &[(24, &[0x10, 0, 0, 0, 0, 0, 0, 0])]),
        ("encryption method", &[(32, &[0, 0, 0, 9])]),
        ("L1 length", &[(36, &HUGE[..4])]),
        ("short L1 table", &[(36, &[0, 0, 0, 0])]),
        ("L1 offset", &[(40, &[0, 0, 0, 0, 0, 0, 2, 1])]),
        ("refcount table offset", &[(48, &[0, 0, 0, 0, 0, 0, 2, 1])]),
        ("refcount table length", &[(56, &[0, 1, 0, 0])]),
        ("snapshots", &[(60, &HUGE[..4])]),
        ("snapshot table offset", &[(60, &[0, 0, 0, 1]), (64, &[0, 0, 0, 0, 0, 0, 2, 1])]),
        ("unknown feature", &[(72, &[0x80])]),
        ("refcount width", &[(96, &[0, 0, 0, 7])]),
        ("long header", &[(100, &[0, 1, 0, 8])]),
        ("short header", &[(100, &[0, 0, 0, 96])]),
        ("extension", &[(116, &HUGE[..4])]),
    ];
    for (what, pokes) in cases {
        folder.create(&[], "damaged.qcow2", "64M");
        let file = std::fs::OpenOptions::new().write(true).open(folder.path.join("damaged.qcow2"));
        let file = file.unwrap();
        for (offset, bytes) in pokes {
            file.write_all_at(bytes, *offset).unwrap();
        }
        let output = folder.same(&["info", "-f", "qcow2", "damaged.qcow2"]);
        assert_eq!(output.status.code(), Some(1), "{what}");
    }
}

#[test]
fn feature_name_that_is_cut_short_is_known_as_in_qemu() {
    let folder = Folder::new();
    folder.create(&["-o", "cluster_size=4k"], "named.qcow2", "1M");
    let file = std::fs::OpenOptions::new().write(true).open(folder.path.join("named.qcow2"));
    let file = file.unwrap();
    file.write_all_at(&[0xc0], 72).unwrap();
    file.write_all_at(b"\x68\x03\xf8\x57\0\0\0\x0e\0\x3fTest feature\0\0", 112).unwrap();
    let output = folder.same(&["info", "named.qcow2"]);
    assert!(crate::text(&output.stderr).contains("Test feature, Unknown"), "{output:?}");
}

#[test]
fn backing_files_that_cannot_be_opened_are_reported_in_the_words_of_qemu_img() {
    let folder = Folder::new();
    folder.create(&["-u", "-b", "missing.qcow2", "-F", "qcow2"], "a.qcow2", "1M");
    folder.create(&["-u", "-b", "a.qcow2", "-F", "raw"], "b.qcow2", "1M");
    // The backing format is the first header extension, behind the header of 112 bytes.
    let file = std::fs::OpenOptions::new().write(true).open(folder.path.join("b.qcow2")).unwrap();
    file.write_all_at(b"foo", 120).unwrap();
    folder.same(&["map", "a.qcow2"]);
    folder.same(&["map", "b.qcow2"]);
}

#[test]
fn errors_say_how_deep_the_layer_lies() {
    let folder = Folder::new();
    // Under its own name the command goes on where no key is needed.
    let same = |arguments: &[&str]| {
        let theirs = folder.run(crate::qemu::qemu_img().args(arguments));
        let ours = folder.stand_in(arguments);
        assert_eq!(crate::text(&ours.stderr), crate::text(&theirs.stderr), "{arguments:?}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{arguments:?}");
    };
    let secret = ["--object", "secret,id=s,data=a"];
    let encrypt = ["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    folder.create(&[&secret[..], &encrypt].concat(), "locked.qcow2", "1M");
    folder.write("junk.qcow2", "junk");
    for base in ["locked", "junk", "lost"] {
        let below = ["-u", "-F", "qcow2", "-b"];
        folder.create(&[&below[..], &[&format!("{base}.qcow2")]].concat(), "a.qcow2", "1M");
        folder.create(&[&below[..], &["a.qcow2"]].concat(), "b.qcow2", "1M");
        for image in ["a.qcow2", "b.qcow2"] {
            for verb in [
                &["map"][..],
                &["convert", "-O", "raw"],
                &["commit"],
                &["measure", "-O", "raw"],
                &["rebase", "-b", "locked.qcow2", "-F", "qcow2"],
            ] {
                let out = if verb[0] == "convert" { &["out.raw"][..] } else { &[] };
                same(&[verb, &[image], out].concat());
            }
        }
    }
    folder.create(&["-u", "-F", "qcow2", "-b", "locked.qcow2"], "a.qcow2", "1M");
    for key in ["a", "wrong"] {
        let secret = format!("secret,id=s,data={key}");
        for options in [
            "file.filename=a.qcow2,backing.encrypt.key-secret=s",
            "file.filename=a.qcow2,backing.encrypt.key-secret=none",
            "file.filename=b.qcow2,backing.backing.encrypt.key-secret=s",
        ] {
            let options = format!("driver=qcow2,{options}");
            same(&["map", "--object", &secret, "--image-opts", &options]);
            same(&["commit", "--object", &secret, "--image-opts", &options]);
        }
    }
    let data_file = ["-o", "data_file=d.raw"];
    folder.create(&data_file, "d.qcow2", "1M");
    folder.qemu_img(&["amend", "-o", "data_file=", "d.qcow2"]);
    same(&["convert", "-O", "raw", "d.qcow2", "out.raw"]);
}
