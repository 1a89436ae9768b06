//! `create` makes the images of `qemu-img create` and says the same.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::Folder;
use crate::support::qemu;

/// A folder with what new images stand on.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", vec![7; 1_000_000]);
    folder.create(&["-o", "cluster_size=4k"], "base.qcow2", "3M");
    folder.create(&["-F", "qcow2", "-b", "base.qcow2"], "middle.qcow2", "2M");
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.create(&["-u", "-F", "raw", "-b", "../base.raw"], "sub/up.qcow2", "1M");
    folder
}

#[test]
fn new_images_are_announced_as_qemu_img_does() {
    let folder = folder();
    for arguments in [
        &["-f", "qcow2", "x", "1M"][..],
        &["-f", "qcow2", "x", "1000"],
        &["-f", "qcow2", "x", "0"],
        &["-f", "qcow2", "-o", "size=1.5G", "x"],
        &["-q", "-f", "qcow2", "x", "1M"],
        &["x", "1M"],
        &["-f", "raw", "x", "1000"],
        &["-f", "raw", "-o", "preallocation=falloc,nocow=on,extent_size_hint=1M", "x", "1M"],
        &["-f", "raw", "-o", "preallocation=full", "x", "3M"],
        &["-f", "qcow2", "-o", "compat=0.10", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=v3,lazy_refcounts", "x", "1M"],
        &["-f", "qcow2", "-o", "nolazy_refcounts", "x", "1M"],
        &["-f", "qcow2", "-o", "lazy_refcounts=yes,extended_l2=true", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=64k", "-o", "cluster_size=128k", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=0x10,compression_type=zstd", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=010", "x", "1M"],
        &["-f", "qcow2", "-o", "preallocation=metadata,encryption=off", "x", "1M"],
        &["-f", "qcow2", "-o", "preallocation=full,extent_size_hint=1M", "x", "1M"],
        &["-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "x", "1M"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "raw", "x"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "raw", "x", "5M"],
        &["-f", "qcow2", "-b", "base.qcow2", "-B", "qcow2", "x"],
        &["-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "-o", "size=1M", "x"],
        &["-f", "qcow2", "-o", "backing_file=base.raw,backing_fmt=raw", "x"],
        &["-f", "qcow2", "-u", "-o", "backing_file=a,,b,backing_fmt=vmdk", "x", "1M"],
        &["-f", "qcow2", "-u", "-b", "missing", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-b", "../base.raw", "-F", "raw", "sub/x"],
        &[
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "-o",
            "extended_l2=on,preallocation=metadata",
            "x",
        ],
    ] {
        // QEMU takes what -B means only since version 10.1.
        if arguments.contains(&"-B") {
            folder.cowshed_prints(&[&["create"], arguments].concat());
            continue;
        }
        let arguments = [&["create"], arguments].concat();
        folder.same(&arguments);
        let name = if arguments.contains(&"sub/x") { "sub/x" } else { "x" };
        let ours = folder.read(name);
        folder.qemu_img(&arguments);
        assert!(ours == folder.read(name), "{arguments:?}");
    }
}

#[test]
fn help_lists_the_options_of_format_and_file() {
    let folder = folder();
    for arguments in [
        &["-f", "qcow2", "-o", "help"][..],
        &["-f", "qcow2", "-o", "help", "x"],
        &["-f", "qcow2", "-o", "cluster_size=64k,help", "x", "1M"],
        &["-f", "raw", "-o", "?", "x"],
        &["-o", "help"],
        &["-f", "nonsense", "-o", "help"],
    ] {
        folder.same(&[&["create"], arguments].concat());
    }
    assert!(!folder.path("x").exists());
}

#[test]
fn wrong_arguments_get_the_words_of_qemu_img() {
    let folder = folder();
    for arguments in [
        &[][..],
        &["-f", "qcow2"],
        &["-f", "qcow2", "x"],
        &["-f", "qcow2", "x", "1M", "2M"],
        &["-f", "qcow2", "x", "abc"],
        &["-f", "qcow2", "x", "8E"],
        &["-f", "qcow2", "x", "-1"],
        &["-f", "qcow2", "--", "x", "-1"],
        &["-f", "qcow2", "x", "7E"],
        &["-f", "raw", "x", "7E"],
        &["-f", "nonsense", "x", "1M"],
        &["-f", "qcow2", "-o", "", "x", "1M"],
        &["-f", "qcow2", "-o", ",cluster_size=64k", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=64k,", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=64k,,x", "x", "1M"],
        &["-f", "qcow2", "-o", "nonsense=1", "x", "1M"],
        &["-f", "qcow2", "-o", "=5", "x", "1M"],
        &["-f", "raw", "-o", "cluster_size=1", "x", "1M"],
        &["-f", "qcow2", "-o", "size=1M", "x", "1M"],
        &["-f", "qcow2", "-o", "size=abc", "x"],
        &["-f", "qcow2", "-o", "size=9E", "x"],
        &["-f", "qcow2", "-o", "size=17E", "x"],
        &["-f", "qcow2", "-o", "lazy_refcounts=maybe", "x", "1M"],
        &["-f", "qcow2", "-o", "lazy_refcounts=", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=-5", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=99E", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=0", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=8G", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=1000", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=8k,extended_l2=on", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=512", "x", "1T"],
        &["-f", "qcow2", "-o", "refcount_bits=x", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=16k", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=3", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=-1", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=99999999999999999999", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=5000000000", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.11", "x", "1M"],
        &["-f", "qcow2", "-o", "preallocation=some", "x", "1M"],
        &["-f", "qcow2", "-o", "compression_type=lz", "x", "1M"],
        &["-f", "qcow2", "-o", "extent_size_hint=5G", "x", "1M"],
        &["-f", "qcow2", "-o", "nocow=maybe", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,data_file=data.raw", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,compression_type=zstd", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,refcount_bits=8", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,extended_l2=on", "x", "1M"],
        &["-f", "qcow2", "-o", "data_file_raw=on", "x", "1M"],
        &["-f", "qcow2", "-o", "data_file=missing/x", "x", "1M"],
        &["-f", "raw", "-o", "preallocation=metadata", "x", "1M"],
        &["-f", "raw", "-o", "preallocation=some", "x", "1M"],
        &["-f", "raw", "-b", "base.raw", "x", "1M"],
        &["-f", "raw", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-b", "base.raw", "x"],
        &["-f", "qcow2", "-b", "base.qcow2", "x", "1M"],
        &["-f", "qcow2", "-u", "-b", "base.raw", "x", "1M"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "nonsense", "x"],
        &["-f", "qcow2", "-u", "-b", "base.raw", "-F", "nonsense", "x", "1M"],
        &["-f", "qcow2", "-u", "-b", "base.raw", "-F", "raw", "x"],
        &["-f", "qcow2", "-b", "missing", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-b", "missing", "x"],
        &["-f", "qcow2", "-b", "x", "-F", "qcow2", "x", "1M"],
        &["-f", "qcow2", "-b", "", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", "preallocation=metadata", "x"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", "data_file=d,data_file_raw=on", "x"],
        &["-f", "qcow2", "missing/x", "1M"],
        &["-f", "qcow2", ".", "1M"],
    ] {
        folder.same(&[&["create"], arguments].concat());
        assert!(!folder.path("x").exists() || arguments.contains(&"raw"), "{arguments:?}");
    }
}

#[test]
fn backing_files_that_cannot_be_opened_are_named() {
    let folder = folder();
    folder.create(&["-u", "-F", "raw", "-b", "missing"], "orphan.qcow2", "1M");
    for arguments in [
        &["-b", "base.raw", "-F", "qcow2", "x"][..],
        &["-b", "orphan.qcow2", "-F", "qcow2", "x"],
        &["-b", "sub", "-F", "raw", "x"],
    ] {
        let arguments = [&["create", "-f", "qcow2"], arguments].concat();
        folder.same_but_for_errors(&arguments);
        let error = folder.cowshed_fails(&arguments, 1);
        assert!(error.starts_with("x: backing file '"), "{error}");
    }
}

#[test]
fn options_that_are_wrong_leave_an_old_file_alone() {
    let folder = folder();
    for arguments in [
        &["-o", "cluster_size=1000", "base.raw", "1M"][..],
        &["-o", "compat=0.11", "base.raw", "1M"],
        &["-o", "encryption=on", "base.raw", "1M"],
        &["-o", "cluster_size=512", "base.raw", "1T"],
        &["-b", "missing", "-F", "raw", "base.raw"],
    ] {
        let arguments = [&["create", "-q", "-f", "qcow2"], arguments].concat();
        assert!(!folder.cowshed(&arguments).status.success(), "{arguments:?}");
        assert!(folder.read("base.raw") == vec![7; 1_000_000], "{arguments:?}");
    }
}

#[test]
fn nothing_that_the_new_image_stands_on_is_overwritten() {
    let folder = folder();
    std::fs::hard_link(folder.path("base.raw"), folder.path("link.raw")).unwrap();
    let bytes = folder.read("base.qcow2");
    for arguments in [
        &["-b", "base.raw", "-F", "raw", "./base.raw"][..],
        &["-b", "base.raw", "-F", "raw", "link.raw"],
        &["-b", "base.raw", "-F", "raw", "-u", "link.raw", "1M"],
        &["-b", "middle.qcow2", "-F", "qcow2", "base.qcow2"],
        &["-b", "base.raw", "-F", "raw", "-o", "data_file=base.raw", "x"],
        &["-o", "data_file=x", "x", "1M"],
    ] {
        let arguments = [&["create", "-q", "-f", "qcow2"], arguments].concat();
        folder.cowshed_fails(&arguments, 1);
        assert!(folder.read("base.raw") == vec![7; 1_000_000], "{arguments:?}");
        assert!(folder.read("base.qcow2") == bytes, "{arguments:?}");
        assert!(!folder.path("x").exists(), "{arguments:?}");
    }
}

#[test]
fn file_that_another_process_uses_is_not_touched() {
    let folder = folder();
    let bytes = folder.read("base.qcow2");
    let mut user = crate::qemu::qemu_io();
    user.current_dir(&folder.path).args(["-f", "qcow2", "base.qcow2"]);
    let mut user = user.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It has its locks when it asks for a command.
    let mut prompt = [0; 9];
    std::io::Read::read_exact(user.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    folder.same(&["create", "-f", "qcow2", "base.qcow2", "1M"]);
    folder.same(&["create", "-f", "raw", "base.qcow2", "1M"]);
    assert!(folder.read("base.qcow2") == bytes);
    // A backing file may be in use.
    folder.same(&["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "x"]);
    drop(user.stdin.take());
    user.wait().unwrap();
}

#[test]
fn full_disk_leaves_no_image() {
    let folder = folder();
    for format in ["qcow2", "raw"] {
        // A limit of the file size is the disk that is full; the signal for it is ignored as a shell's `trap` does.
        let command = format!(
            "trap '' XFSZ; ulimit -f 512; exec -a cowshed {} create -q -f {format} -o preallocation=full x 4M",
            env!("CARGO_BIN_EXE_cowshed")
        );
        let output = folder.run(Command::new("bash").arg0("bash").args(["-c", &command]));
        assert_eq!(output.status.code(), Some(1), "{}", crate::text(&output.stderr));
        assert!(!folder.path("x").exists());
    }
}

#[test]
fn wrong_options_of_encryption_are_refused_as_qemu_img_refuses_them() {
    let folder = folder();
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    for options in [
        "encryption=on",
        "encrypt.format=aes",
        "encrypt.format=luks",
        "encrypt.format=luks,encrypt.key-secret=other",
        "encrypt.format=foo,encrypt.key-secret=s",
        "encrypt.key-secret=s",
        "encryption=on,encrypt.format=luks,encrypt.key-secret=s",
        &format!("{luks},encrypt.cipher-alg=foo"),
        &format!("{luks},encrypt.cipher-alg=des"),
        &format!("{luks},encrypt.cipher-mode=foo"),
        &format!("{luks},encrypt.hash-alg=foo"),
        &format!("{luks},encrypt.ivgen-alg=foo"),
        &format!("{luks},encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1"),
        &format!("{luks},encrypt.cipher-alg=cast5-128"),
        &format!(
            "{luks},encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv"
        ),
    ] {
        let object = "secret,id=s,data=abc";
        let arguments = ["create", "-f", "qcow2", "--object", object, "-o", options, "x", "1M"];
        folder.same(&arguments);
    }
}

#[test]
fn encrypted_images_go_from_one_command_to_the_other() {
    let folder = folder();
    let object = "secret,id=s,data=open sesame";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let source: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 77) as u8).collect();
    std::fs::write(folder.path("plain.raw"), &source).unwrap();
    let image = |name: &str| format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
    let opts = image("x");
    // The one encrypts, the other decrypts.
    for ours_encrypts in [true, false] {
        let encrypt = ["-f", "raw", "-O", "qcow2", "-o", options, "plain.raw", "x"];
        let decrypt = ["-O", "raw", "--image-opts", &opts, "out.raw"];
        for (arguments, is_ours) in [(&encrypt[..], ours_encrypts), (&decrypt, !ours_encrypts)] {
            let arguments = [&["convert", "--object", object], arguments].concat();
            let output = match is_ours {
                true => folder.stand_in(&arguments),
                false => folder.run(qemu::qemu_img().args(&arguments)),
            };
            assert!(output.status.success(), "{}", crate::text(&output.stderr));
        }
        assert!(std::fs::read(folder.path("out.raw")).unwrap() == source);
        // What is said of the image, and what is refused, is the same.
        for arguments in [
            vec!["info", "--output=json", "x"],
            vec!["map", "--output=json", "--object", object, "--image-opts", &opts],
            vec!["map", "--object", object, "--image-opts", &opts],
            vec!["check", "--object", object, "--image-opts", &opts],
            vec!["check", "--object", "secret,id=s,data=other", "--image-opts", &opts],
            vec!["check", "--object", "secret,id=t,data=other", "--image-opts", &opts],
            vec![
                "compare",
                "--object",
                object,
                "--image-opts",
                &opts,
                "driver=raw,file.filename=plain.raw",
            ],
            vec!["measure", "-O", "qcow2", "--object", object, "-o", options, "--size", "1G"],
            vec!["measure", "-O", "qcow2", "--object", object, "--image-opts", &opts],
        ] {
            folder.same(&arguments);
        }
        // Without a passphrase only the stand-in refuses to look at what is not the guest's.
        let theirs = folder.run(qemu::qemu_img().args(["map", "x"]));
        let ours = folder.stand_in(&["map", "x"]);
        assert_eq!(ours.status.code(), theirs.status.code());
        assert_eq!(crate::text(&ours.stderr), crate::text(&theirs.stderr));
        assert!(ours.stdout.is_empty() && theirs.stdout.is_empty());
    }
}
