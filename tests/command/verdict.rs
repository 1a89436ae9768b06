//! `verdict` says what is suspicious in an image, and its exit code says how bad that is.

use crate::Folder;

#[test]
fn plain_image_is_safe() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 64k"]);
    for arguments in [&["verdict", "image.qcow2"][..], &["verdict", "--check", "image.qcow2"]] {
        let shown = folder.cowshed_prints(arguments);
        assert!(shown.starts_with("image.qcow2: safe\n"), "{shown}");
    }
    assert_eq!(folder.cowshed_prints(&["verdict", "-q", "image.qcow2"]), "");
}

#[test]
fn dangers_have_a_code_of_their_own() {
    let folder = Folder::new();
    folder.create(&["-u", "-b", "/etc/passwd", "-F", "raw"], "image.qcow2", "1M");
    let output = folder.cowshed(&["verdict", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(2));
    let shown = crate::text(&output.stdout);
    assert!(shown.starts_with("image.qcow2: unsafe\n"), "{shown}");
    assert!(shown.contains("/etc/passwd"), "{shown}");

    let output = folder.cowshed(&["verdict", "--output=json", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(2));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["verdict"], "unsafe");
    assert_eq!(found["filename"], "image.qcow2");
    let findings = found["findings"].as_array().unwrap();
    let codes = |severity: &str| -> Vec<_> {
        let found = findings.iter().filter(|finding| finding["severity"] == severity);
        found.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
    };
    assert!(codes("danger").contains(&"name-absolute".to_owned()), "{found}");
}

#[test]
fn raw_disk_that_its_guest_made_an_image_is_not_safe() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let output = folder.cowshed(&["verdict", "-f", "raw", "image.qcow2"]);
    assert_ne!(output.status.code(), Some(0), "{}", crate::text(&output.stdout));
}

#[test]
fn what_is_no_image_cannot_be_judged() {
    let folder = Folder::new();
    folder.cowshed_fails(&["verdict", "missing"], 1);
}
