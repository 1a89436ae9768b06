//! LUKS volumes, QEMU's format `luks`: what one side encrypts the other decrypts, and both say the same of a volume.
//!
//! The fears: another numbering of sectors than QEMU's, which only the other side would notice; a part of a sector that is
//! written over its neighbours; and a header by a stranger that leads out of its file.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use crate::support::qemu;
use crate::{Folder, text};

const SECRET: [&str; 2] = ["--object", "secret,id=s,data=open sesame"];
const WRONG: [&str; 2] = ["--object", "secret,id=s,data=close sesame"];
/// What every new volume is given.
const KEY: &str = "key-secret=s,iter-time=10";
/// Where the header has the first key slot.
const SLOTS: u64 = 208;
const SLOT_LEN: u64 = 48;

/// Ciphers, modes, generators and hashes: each once at least.
const SCHEMES: [&str; 9] = [
    "cipher-alg=aes-256",
    "cipher-alg=aes-128,ivgen-alg=plain,hash-alg=sha1",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
    "cipher-alg=aes-256,cipher-mode=ctr,hash-alg=sha384",
    "cipher-alg=aes-192,hash-alg=sha224",
    "cipher-alg=aes-128,cipher-mode=ecb",
    "cipher-alg=serpent-256,ivgen-alg=essiv",
    "cipher-alg=twofish-192,hash-alg=ripemd160",
    "cipher-alg=cast5-128,cipher-mode=cbc",
];

/// The options of the volume in a file.
fn volume(file: &str) -> String {
    format!("driver=luks,key-secret=s,file.filename={file}")
}

/// Whose program runs.
#[derive(Debug, Clone, Copy)]
enum Side {
    Ours,
    Theirs,
}

impl Side {
    const BOTH: [(Self, Self); 2] = [(Self::Ours, Self::Theirs), (Self::Theirs, Self::Ours)];

    /// Runs `qemu-img`, which must succeed.
    #[track_caller]
    fn img(self, folder: &Folder, verb: &str, arguments: &[&str]) -> String {
        let arguments = [&[verb], &SECRET[..], arguments].concat();
        let output = match self {
            Self::Ours => folder.stand_in(&arguments),
            Self::Theirs => folder.run(qemu::qemu_img().args(&arguments)),
        };
        succeeded(&output, &format!("{self:?}: {arguments:?}"))
    }

    /// Runs `qemu-io` on the volume in `file`, which must succeed and find what it looks for.
    #[track_caller]
    fn io(self, folder: &Folder, file: &str, commands: &[&str]) -> String {
        let output = self.io_output(folder, file, commands);
        let said = succeeded(&output, &format!("{self:?}: {commands:?}"));
        assert!(!said.contains("Pattern verification failed"), "{self:?}: {said}");
        said
    }

    fn qemu_io(self) -> Command {
        let mut command = match self {
            Self::Ours => Command::new(env!("CARGO_BIN_EXE_cowshed")),
            Self::Theirs => qemu::qemu_io(),
        };
        if let Self::Ours = self {
            command.arg0("qemu-io");
        }
        command
    }

    fn io_output(self, folder: &Folder, file: &str, commands: &[&str]) -> Output {
        let mut command = self.qemu_io();
        command.args(SECRET).args(["--image-opts", &volume(file)]);
        folder.run(command.args(commands.iter().flat_map(|it| ["-c", it])))
    }
}

#[track_caller]
fn succeeded(output: &Output, what: &str) -> String {
    assert!(output.status.success(), "{what}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A folder with a new volume of QEMU's in `a.luks`, of 1 MiB and a sector.
fn folder() -> Folder {
    let folder = Folder::new();
    Side::Theirs.img(&folder, "create", &["-q", "-f", "luks", "-o", KEY, "a.luks", "1049088"]);
    folder
}

#[test]
fn what_one_side_writes_the_other_reads() {
    let folder = Folder::new();
    for (index, scheme) in SCHEMES.into_iter().enumerate() {
        for (maker, other) in Side::BOTH {
            let (options, file) = (format!("{KEY},{scheme}"), format!("{index}-{maker:?}.luks"));
            let create = ["-q", "-f", "luks", "-o", &options, &file, "3000000"];
            maker.img(&folder, "create", &create);
            // Parts of sectors, past a mebibyte, and up to the end.
            maker.io(
                &folder,
                &file,
                &["write -P 1 0 1M", "write -P 2 5000 3", "write -P 3 1048000 5001"],
            );
            let seen = ["read -P 1 0 5000", "read -P 2 5000 3", "read -P 1 5003 500000"];
            other.io(&folder, &file, &seen);
            other.io(
                &folder,
                &file,
                &["read -P 3 1048000 5001", "write -P 4 2999999 1", "write -z 100 70000"],
            );
            other.io(&folder, &file, &["write -P 5 1053001 1000", "discard 0 64k"]);
            maker.io(
                &folder,
                &file,
                &["read -P 1 0 100", "read -P 0 100 70000", "read -P 1 70100 9000"],
            );
            maker.io(
                &folder,
                &file,
                &["read -P 3 1048000 5001", "read -P 5 1053001 1000", "read -P 4 2999999 1"],
            );
        }
        let read = |side: Side| folder.read(&format!("{index}-{side:?}.luks"));
        assert_same_layout(&read(Side::Ours), &read(Side::Theirs), scheme);
    }
}

/// Asserts that two headers say the same, but for what is random or measured.
#[track_caller]
fn assert_same_layout(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    assert_eq!(ours[..112], theirs[..112], "{what}");
    for slot in 0..8 {
        let at = (SLOTS + slot * SLOT_LEN) as usize;
        assert_eq!(ours[at..at + 4], theirs[at..at + 4], "{what}, slot {slot}");
        assert_eq!(ours[at + 40..at + 48], theirs[at + 40..at + 48], "{what}, slot {slot}");
    }
}

#[test]
fn io_says_of_a_volume_what_qemu_io_says() {
    let folder = folder();
    let said = Side::BOTH.map(|(side, _)| {
        let output = side.io_output(
            &folder,
            "a.luks",
            &[
                "info",
                "length",
                "map",
                "alloc 0 1M",
                "write -P 1 3 5",
                "write -z -u 512 5k",
                "write -z -n 0 4k",
                "write -c 0 64k",
                "write -b 0 512",
                "discard 0 64k",
                "truncate 3M",
                "length",
                "reopen -r",
                "reopen -w",
                "aio_write -P 3 5 1000",
                "aio_flush",
                "read -P 3 5 1000",
                "truncate 1049088",
            ],
        );
        let without_time = |line: &str| line.split(" ops; ").next().unwrap_or_default().to_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        (said.lines().map(without_time).collect::<Vec<_>>(), output.status.code())
    });
    assert_eq!(said[0], said[1], "ours left");
}

#[test]
fn a_guessed_raw_image_does_not_become_a_volume() {
    let folder = folder();
    folder.write("sector", &folder.read("a.luks")[..512]);
    for (side, _) in Side::BOTH {
        folder.write("disk", [0; 4096]);
        let mut command = side.qemu_io();
        let output = folder.run(command.args(["disk", "-c", "write -s sector 0 512"]));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("write failed: Operation not permitted"), "{side:?}: {said}");
        assert!(folder.read("disk") == [0; 4096], "{side:?}");
    }
}

#[test]
fn disks_are_copied_into_volumes_and_out_of_them() {
    let folder = Folder::new();
    let mut plain: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 77) as u8).collect();
    plain[1 << 20..2 << 20].fill(0);
    folder.write("plain.raw", &plain);
    let opts = volume("x.luks");
    for (encrypts, decrypts) in Side::BOTH {
        let _ = std::fs::remove_file(folder.path("x.luks"));
        let encrypt = ["-f", "raw", "-O", "luks", "-o", KEY, "plain.raw", "x.luks"];
        encrypts.img(&folder, "convert", &encrypt);
        decrypts.img(&folder, "convert", &["-O", "raw", "--image-opts", &opts, "out.raw"]);
        assert!(folder.read("out.raw") == plain, "{encrypts:?}");
        // Over what is there, without making it anew, and as qcow2.
        let again = ["-n", "--target-image-opts", "-f", "raw", "plain.raw", &opts];
        encrypts.img(&folder, "convert", &again);
        decrypts.img(&folder, "convert", &["-O", "qcow2", "--image-opts", &opts, "out.qcow2"]);
        let compare = ["-f", "raw", "-F", "qcow2", "plain.raw", "out.qcow2"];
        Side::Theirs.img(&folder, "compare", &compare);
    }
    folder.same(
        &[
            &["compare"],
            &SECRET[..],
            &["--image-opts", &opts, "driver=raw,file.filename=plain.raw"],
        ]
        .concat(),
    );
    let dd = ["--image-opts", &format!("if={opts}"), "of=dd.raw", "bs=1M", "skip=1"];
    Side::Ours.img(&folder, "dd", &dd);
    assert!(folder.read("dd.raw") == plain[1 << 20..]);
}

#[test]
fn a_new_volume_is_as_long_as_qemu_imgs() {
    let folder = Folder::new();
    for (options, size) in [
        (KEY.to_owned(), "0"),
        (format!("{KEY},preallocation=metadata"), "1"),
        (format!("{KEY},preallocation=falloc"), "1000000"),
        (format!("{KEY},preallocation=full"), "1M"),
    ] {
        Side::Ours.img(&folder, "create", &["-f", "luks", "-o", &options, "a", size]);
        let create = ["create", "-f", "luks", "-o", &options, "b", size];
        folder.same(&[&create[..1], &SECRET, &create[1..]].concat());
        Side::Theirs.img(&folder, "create", &["-q", "-f", "luks", "-o", &options, "b", size]);
        assert_same_layout(&folder.read("a"), &folder.read("b"), &options);
    }
}

#[test]
fn volumes_are_described_as_qemu_img_does() {
    let folder = Folder::new();
    for (index, scheme) in [SCHEMES[0], SCHEMES[2]].into_iter().enumerate() {
        let (options, file) = (format!("{KEY},{scheme}"), format!("{index}.luks"));
        Side::Theirs.img(&folder, "create", &["-q", "-f", "luks", "-o", &options, &file, "1M"]);
        folder.same(&["info", &file]);
        folder.same(&["info", "-f", "luks", "--output=json", &file]);
        let opts = volume(&file);
        for verb in [&["info"][..], &["info", "--output=json"]] {
            // The passphrase is not looked at.
            for secret in [SECRET, WRONG] {
                folder.same(&[verb, &secret, &["--image-opts", &opts]].concat());
            }
        }
    }
    let json = r#"json:{"driver": "luks", "key-secret": "s", "file": {"driver": "file", "filename": "0.luks"}}"#;
    folder.same(&[&["info"], &SECRET[..], &[json]].concat());
    folder.same(&[&["map", "--output=json"], &SECRET[..], &[json]].concat());
    folder.same_but_for_errors(&[&["map"], &SECRET[..], &[json]].concat());
    folder.same(&[&["measure", "-O", "qcow2"], &SECRET[..], &[json]].concat());
    for size in ["0", "1000000", "1T"] {
        folder.same(
            &[&["measure"], &SECRET[..], &["-O", "luks", "-o", KEY, "--size", size]].concat(),
        );
    }
    folder.same(&["measure", "-O", "luks", "--size", "1M"]);
    folder.same(&["create", "-f", "luks", "-o", "help"]);
    folder.same(&["create", "-f", "luks", "-o", "help", "x"]);
    // The numbers of QEMU's driver stand for it as such, too.
    folder.same(&[&["check"], &SECRET[..], &["--image-opts", &volume("0.luks")]].concat());
}

#[test]
fn a_disk_in_a_volume_changes_its_size_as_with_qemu_img() {
    let folder = folder();
    let opts = volume("a.luks");
    let resize = |arguments: &[&str]| {
        let before = folder.read("a.luks");
        let arguments = [&["resize"], &SECRET[..], arguments].concat();
        let theirs = folder.run(qemu::qemu_img().args(&arguments));
        let their_file = folder.read("a.luks");
        folder.write("a.luks", before);
        let ours = folder.stand_in(&arguments);
        assert_eq!(text(&ours.stderr), text(&theirs.stderr), "{arguments:?}");
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{arguments:?}");
        assert!(folder.read("a.luks") == their_file, "{arguments:?}");
    };
    resize(&["--image-opts", &opts, "3M"]);
    resize(&["--image-opts", &opts, "+1000"]);
    resize(&["--image-opts", &opts, "2M"]);
    resize(&["--shrink", "--image-opts", &opts, "2M"]);
    resize(&["--preallocation=metadata", "--image-opts", &opts, "4M"]);
}

#[test]
fn without_the_passphrase_there_is_nothing_to_read() {
    let folder = folder();
    let opts = volume("a.luks");
    let no_key = "driver=luks,file.filename=a.luks";
    let other = "driver=luks,key-secret=t,file.filename=a.luks";
    for (secret, opts) in [(WRONG, &*opts), (SECRET, no_key), (SECRET, other)] {
        for arguments in [
            &["compare", "--image-opts", opts, opts][..],
            &["convert", "-O", "raw", "--image-opts", opts, "x.raw"],
            &["map", "--image-opts", opts],
            &["measure", "--image-opts", opts],
            &["resize", "--image-opts", opts, "+1M"],
            &["snapshot", "-c", "a", "--image-opts", opts],
            &["check", "--image-opts", opts],
        ] {
            folder.same_but_for_errors(&[&arguments[..1], &secret, &arguments[1..]].concat());
            let arguments = [&arguments[..1], &secret, &arguments[1..]].concat();
            let ours = folder.stand_in(&arguments);
            let theirs = folder.run(qemu::qemu_img().args(&arguments));
            assert_eq!(text(&ours.stderr), text(&theirs.stderr), "{arguments:?}");
        }
    }
    for arguments in [
        &["compare", "a.luks", "a.luks"][..],
        &["convert", "-f", "luks", "-O", "raw", "a.luks", "x.raw"],
        &["dd", "if=a.luks", "of=x.raw"],
        &["bench", "-c", "1", "a.luks"],
        &["resize", "a.luks", "2M"],
    ] {
        folder.same(arguments);
    }
    let said = folder.cowshed_fails(&["convert", "-O", "raw", "a.luks", "x.raw"], 1);
    assert!(said.contains("guest data is encrypted with LUKS"), "{said}");
    assert!(!folder.path("x.raw").exists());
}

#[test]
fn wrong_options_are_refused_as_qemu_img_refuses_them() {
    let folder = Folder::new();
    for options in [
        "size=1M",
        "key-secret=other",
        &format!("{KEY},cipher-alg=foo"),
        &format!("{KEY},cipher-alg=des"),
        &format!("{KEY},cipher-mode=foo"),
        &format!("{KEY},hash-alg=foo"),
        &format!("{KEY},ivgen-alg=foo"),
        &format!("{KEY},ivgen-alg=essiv,ivgen-hash-alg=sha1"),
        &format!("{KEY},cipher-alg=cast5-128"),
        &format!("{KEY},preallocation=foo"),
        &format!("{KEY},detached-header=on"),
        &format!("{KEY},encrypt.format=luks"),
        &format!("{KEY},encryption=on"),
        &format!("{KEY},backing_file=x"),
    ] {
        let arguments = [&["create"], &SECRET[..], &["-f", "luks", "-o", options, "x"]].concat();
        folder.same(&[&arguments[..], &["1M"]].concat());
        let _ = std::fs::remove_file(folder.path("x"));
    }
    let create = |arguments: &[&str]| {
        folder.same(&[&["create"], &SECRET[..], &["-f", "luks", "-o", KEY], arguments].concat());
    };
    create(&["x"]);
    create(&["-b", "y", "-F", "raw", "x", "1M"]);
    create(&["x", "9223372036854775000"]);
    create(&["nowhere/x", "1M"]);
    folder.write("a.raw", [0; 512]);
    folder.same(&["convert", "-f", "raw", "-O", "luks", "a.raw", "x"]);
    folder.same(&["convert", "-c", "-f", "raw", "-O", "luks", "-o", KEY, "a.raw", "x"]);
    folder.same(&["dd", "-O", "luks", "if=a.raw", "of=x"]);
}

#[test]
fn damaged_headers_are_refused() {
    let folder = folder();
    let whole = folder.read("a.luks");
    let opts = volume("x.luks");
    let open = [&["compare"], &SECRET[..], &["--image-opts", &opts, &opts]].concat();
    let info = ["info", "-f", "luks", "x.luks"];
    for len in [0, 5, 592, 4096, 100_000, 2_000_000] {
        folder.write("x.luks", &whole[..len]);
        let output = folder.same(&info);
        assert_eq!(output.status.code(), Some(1), "{len} bytes");
        folder.same_but_for_errors(&open);
    }
    let patches: [(u64, &[u8]); 18] = [
        (0, b"M"),
        (6, &[0, 3]),
        (8, b"foo\0"),
        (8, &[b'a'; 32]),
        (40, b"foo-plain64\0"),
        (40, b"xts-foo\0"),
        (40, &[b'a'; 32]),
        (72, b"foo\0"),
        (72, &[b'a'; 32]),
        (104, &1_u32.to_be_bytes()),
        (104, &u32::MAX.to_be_bytes()),
        (164, &[0; 4]),
        (SLOTS, &[0; 4]),
        (SLOTS + 4, &[0; 4]),
        (SLOTS + 40, &[0; 4]),
        (SLOTS + 40, &0x0010_0000_u32.to_be_bytes()),
        (SLOTS + 44, &u32::MAX.to_be_bytes()),
        (SLOTS + SLOT_LEN + 40, &8_u32.to_be_bytes()),
    ];
    for (offset, bytes) in patches {
        folder.write("x.luks", &whole);
        folder.patch("x.luks", offset, bytes);
        let output = folder.same(&info);
        assert_eq!(output.status.code(), Some(1), "at {offset}");
        folder.same_but_for_errors(&open);
    }
    // QEMU's sum of this slot's offset and length overflows.
    folder.write("x.luks", &whole);
    folder.patch("x.luks", SLOTS + 40, &u32::MAX.to_be_bytes());
    let said = folder.cowshed_fails(&info, 1);
    assert!(said.contains("key slot 0") && said.contains("overlaps the payload"), "{said}");
    // The last sector is whole, as far as there is something of it.
    for len in [2_068_479, 2_068_480, 2_068_481, 2_100_000] {
        folder.write("x.luks", &whole[..len]);
        folder.same(&info);
        folder.same(&open);
    }
}

#[test]
fn hours_of_key_derivation_are_refused() {
    let folder = folder();
    for at in [164, SLOTS + 4] {
        let whole = folder.read("a.luks");
        folder.write("x.luks", whole);
        folder.patch("x.luks", at, &u32::MAX.to_be_bytes());
        let opts = volume("x.luks");
        let compare = [&["compare"], &SECRET[..], &["--image-opts", &opts, &opts]].concat();
        let said = folder.cowshed_fails(&compare, 2);
        assert!(said.contains("4294967295"), "{said}");
        folder.same(&["info", "x.luks"]);
    }
}

#[test]
fn a_volume_lies_where_another_image_can() {
    let folder = folder();
    Side::Theirs.io(&folder, "a.luks", &["write -P 7 0 1049088"]);
    // Below an image whose backing file it is, in an image, and holding an image itself.
    folder.create(&["-b", "a.luks", "-F", "luks", "-u"], "top.qcow2", "1049088");
    let backed = "driver=qcow2,file.filename=top.qcow2,backing.driver=luks,backing.key-secret=s,\
                  backing.file.filename=a.luks";
    let nested = "driver=raw,file.driver=luks,file.key-secret=s,file.file.filename=a.luks";
    for opts in [backed, nested] {
        let arguments = ["--image-opts", opts, &volume("a.luks")];
        folder.same(&[&["compare"], &SECRET[..], &arguments].concat());
    }
    // The image says of its backing file all but the passphrase.
    folder.same(&["info", "--backing-chain", "--output=json", "top.qcow2"]);
    let top = |key: &str| format!("driver=qcow2,file.filename=top.qcow2,backing.key-secret={key}");
    for key in ["s", "t"] {
        let (top, bottom) = (top(key), volume("a.luks"));
        let arguments = ["--image-opts", &top, &bottom];
        folder.same(&[&["compare"], &SECRET[..], &arguments].concat());
        folder.same(&[&["map", "--output=json"], &SECRET[..], &["--image-opts", &top]].concat());
    }
    folder.same(&["compare", "top.qcow2", "top.qcow2"]);
    folder.create(&[], "inner.qcow2", "1M");
    folder.qemu_io("inner.qcow2", &["write -P 9 64k 64k"]);
    let inner = "driver=luks,key-secret=s,file.filename=b.luks";
    let create = ["-f", "raw", "-O", "luks", "-o", KEY, "inner.qcow2", "b.luks"];
    Side::Ours.img(&folder, "convert", &create);
    folder.same(
        &[
            &["compare"],
            &SECRET[..],
            &["--image-opts", inner, "driver=raw,file.filename=inner.qcow2"],
        ]
        .concat(),
    );
    let qcow2 = "driver=qcow2,file.driver=luks,file.key-secret=s,file.file.filename=b.luks";
    let plain = "driver=qcow2,file.filename=inner.qcow2";
    folder.same(&[&["compare"], &SECRET[..], &["--image-opts", qcow2, plain]].concat());
}

#[test]
fn passphrases_are_added_and_erased_as_qemu_img_does() {
    let second = ["--object", "secret,id=t,data=second"];
    let by_second = "driver=luks,key-secret=t,file.filename=a.luks";
    for (changes, opens) in Side::BOTH {
        let folder = folder();
        Side::Theirs.io(&folder, "a.luks", &["write -P 7 0 1049088"]);
        let opts = volume("a.luks");
        let amend = |opts: &str, options: &str| {
            let arguments = [&second[..], &["-o", options, "--image-opts", opts]].concat();
            changes.img(&folder, "amend", &arguments);
        };
        let compare = |left: &str, right: &str| {
            opens.img(&folder, "compare", &[&second[..], &["--image-opts", left, right]].concat());
        };
        amend(&opts, "state=active,new-secret=t,iter-time=10");
        compare(&opts, by_second);
        amend(&opts, "state=active,new-secret=s,iter-time=10,keyslot=5");
        folder.same(&["info", "a.luks"]);
        amend(by_second, "state=inactive,keyslot=5");
        amend(by_second, "state=inactive,old-secret=s");
        compare(by_second, by_second);
        folder.same(&["info", "a.luks"]);
        for (opts, options) in [
            (&*opts, "state=active,new-secret=t"),
            (by_second, "state=inactive,keyslot=1"),
            (by_second, "state=inactive,old-secret=t"),
            (by_second, "state=inactive,keyslot=3"),
            (by_second, "state=active"),
            (by_second, "state=active,new-secret=t,keyslot=8"),
            (by_second, "state=active,new-secret=t,keyslot=1"),
            (by_second, "state=foo"),
            (by_second, "keyslot=1"),
            (by_second, "foo=1"),
            (by_second, "cipher-alg=aes-128"),
            (by_second, "encrypt.state=inactive"),
            (by_second, "help"),
        ] {
            let objects = [&SECRET[..], &second].concat();
            folder.same(&[&["amend"], &*objects, &["-o", options, "--image-opts", opts]].concat());
        }
        folder.same(&["amend", "-f", "luks", "-o", "help"]);
        compare(by_second, by_second);
    }
}
