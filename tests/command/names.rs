//! Images that are named by options, as a list or as JSON, and by file names with a protocol in front: every verb finds the
//! same image, calls it by the same name, and says the same of what is wrong.

use crate::{Folder, text};

fn chain() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "base.qcow2", "1M");
    folder.qemu_io("base.qcow2", &["write -P 1 0 128k"]);
    folder.create(&["-b", "base.qcow2", "-F", "qcow2"], "top.qcow2", "1M");
    folder.qemu_io("top.qcow2", &["write -P 2 64k 64k"]);
    folder
}

/// `top.qcow2`, in all ways to name it.
const WAYS: [&[&str]; 5] = [
    &["json:{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'top.qcow2'}}"],
    &["json:{\"driver\": \"qcow2\", \"file.filename\": \"top.qcow2\", \"node-name\": \"a\"}"],
    &["file:top.qcow2"],
    &["--image-opts", "driver=qcow2,file.driver=file,file.filename=top.qcow2"],
    &["--image-opts", "file.filename=top.qcow2,file.locking=auto,l2-cache-size=1M"],
];

#[test]
fn every_verb_finds_what_the_options_name() {
    let folder = chain();
    for way in WAYS {
        for verb in [
            &["info"][..],
            &["info", "--output=json"],
            &["info", "--backing-chain"],
            &["map"],
            &["map", "--output=json"],
            &["check"],
            &["measure", "-O", "qcow2"],
            &["snapshot", "-l"],
        ] {
            folder.same(&[verb, way].concat());
        }
        let out = [&["convert", "-O", "raw"], way, &["out.raw"]].concat();
        folder.same(&out);
        assert_eq!(folder.read("out.raw")[64 << 10], 2);
    }
    folder.same(&["compare", WAYS[0][0], "file:top.qcow2"]);
}

#[test]
fn verbs_change_what_the_options_name() {
    let folder = chain();
    for (index, way) in WAYS.into_iter().enumerate() {
        let name = format!("snapshot{index}");
        folder.cowshed_prints(&[&["snapshot", "-c", &name], way].concat());
        assert!(folder.qemu_img(&["snapshot", "-l", "top.qcow2"]).contains(&name));
        folder.cowshed_prints(&[&["bitmap", "--add"], way, &[&name]].concat());
        assert!(folder.qemu_img(&["info", "top.qcow2"]).contains(&format!("name: {name}")));
    }
    let json = WAYS[0];
    folder.cowshed_prints(&[&["amend", "-o", "lazy_refcounts=on"], json].concat());
    assert!(folder.qemu_img(&["info", "top.qcow2"]).contains("lazy refcounts: true"));
    folder.cowshed_prints(&[&["commit", "-q"], json].concat());
    folder.qemu_io("base.qcow2", &["read -P 2 64k 64k"]);
    folder.same(&["create", "-f", "qcow2", "file:a:b", "1M"]);
    folder.same(&["info", "./a:b"]);
}

#[test]
fn image_with_a_passphrase_is_called_by_its_options() {
    let folder = Folder::new();
    let secret = ["--object", "secret,id=s,data=a"];
    let create = ["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    folder.create(&[&secret[..], &create].concat(), "a.qcow2", "1M");
    for options in [
        "encrypt.key-secret=s,file.filename=a.qcow2",
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=a.qcow2",
        "file.filename=a.qcow2",
    ] {
        let arguments = [&["info"], &secret[..], &["--image-opts", options]].concat();
        let shown = |output: String| output.lines().next().unwrap().to_owned();
        let expected = shown(folder.qemu_img(&arguments));
        assert_eq!(shown(folder.cowshed_prints(&arguments)), expected);
    }
}

#[test]
fn what_lies_in_no_file_is_read_and_converted() {
    let folder = Folder::new();
    let zeros = "json:{'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}";
    folder.same(&["info", "json:{'driver': 'null-co', 'size': 65536}"]);
    folder.same(&["info", "--output=json", "json:{'driver': 'null-co', 'size': 65536}"]);
    folder.same(&["info", "json:{'driver': 'raw', 'file': {'driver': 'null-co', 'size': 65536}}"]);
    folder.same(&["convert", "-O", "qcow2", zeros, "a.qcow2"]);
    folder.same(&["map", "a.qcow2"]);
    folder.same(&["compare", zeros, "a.qcow2"]);
    // An image in an image.
    folder.qemu_img(&["convert", "-O", "qcow2", "a.qcow2", "inner.qcow2"]);
    folder.qemu_io("inner.qcow2", &["write -P 7 0 64k"]);
    folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "inner.qcow2", "outer.qcow2"]);
    let nested = "driver=qcow2,file.driver=qcow2,file.file.filename=outer.qcow2";
    folder.same(&["convert", "-O", "raw", "--image-opts", nested, "out.raw"]);
    assert_eq!(folder.read("out.raw")[..64 << 10], [7; 64 << 10]);
}

#[test]
fn what_is_wrong_is_said_as_qemu_says_it() {
    let folder = chain();
    for name in [
        "json:{",
        "json:[]",
        "json:{}",
        "json:{} x",
        "json:{'driver':'qcow2','driver':'raw'}",
        "json:{'driver':'foo'}",
        "json:{'driver':'qcow2'}",
        "json:{'driver':'qcow2','file':'nope'}",
        "json:{'driver':'qcow2','file':{'filename':'nope'}}",
        "json:{'driver':'qcow2','file':{'driver':'file','filename':'top.qcow2','x':1}}",
        "json:{'driver':'qcow2','file':{'driver':'null-co','size':65536}}",
        "json:{'driver':'file'}",
        "file:",
        "file:nope",
        "foo:bar",
        "null-co://x",
    ] {
        folder.same(&["info", name]);
        folder.same(&["check", name]);
    }
    folder.same(&["map", "--image-opts", "file.filename=nope"]);
    folder.same(&["compare", "--image-opts", "driver=qcow2", "file.filename=top.qcow2"]);
}

#[test]
fn options_say_what_the_backing_file_is() {
    let folder = chain();
    folder.create(&[], "other.qcow2", "1M");
    folder.qemu_io("other.qcow2", &["write -P 3 0 64k"]);
    let top = "driver=qcow2,file.filename=top.qcow2";
    let raw = format!("{top},backing.driver=raw");
    let other = format!("{top},backing.driver=qcow2,backing.file.filename=other.qcow2");
    for options in [&raw, &other] {
        folder.same(&["map", "--image-opts", options]);
        folder.same(&["convert", "-O", "raw", "--image-opts", options, "out.raw"]);
    }
    assert_eq!(folder.read("out.raw")[0], 3);
    // What JSON calls null is none at all.
    let none = "json:{'driver': 'qcow2', 'file.filename': 'top.qcow2', 'backing': null}";
    folder.same(&["convert", "-O", "raw", none, "none.raw"]);
    folder.same(&["compare", none, "top.qcow2"]);
    folder.same(&["map", "--output=json", none]);
    folder.same_but_for_errors(&["commit", none]);
    // The command line's own names are the caller's, wherever they lie.
    std::fs::create_dir(folder.path("sub")).unwrap();
    std::fs::rename(folder.path("top.qcow2"), folder.path("sub/top.qcow2")).unwrap();
    let moved = other.replace("top.qcow2", "sub/top.qcow2");
    folder.same(&["map", "--image-opts", &moved]);
    let unused = "driver=qcow2,file.filename=base.qcow2,backing.driver=raw";
    let output = folder.stand_in(&["map", "--image-opts", unused]);
    assert!(text(&output.stderr).contains("backing"), "{}", text(&output.stderr));
}
