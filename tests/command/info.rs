//! `info` prints what `qemu-img info` prints, byte for byte, as text and as JSON, of every kind of image.

use crate::{Folder, text};

/// Offset of the incompatible features' last byte.
const INCOMPATIBLE: u64 = 79;
/// Offset of the autoclear features' last byte.
const AUTOCLEAR: u64 = 95;

#[track_caller]
fn same(folder: &Folder, image: &str) {
    folder.same(&["info", image]);
    folder.same(&["info", "--output=json", image]);
    folder.same(&["info", "--output", "human", image]);
}

#[test]
fn versions_and_features_are_shown() {
    let folder = Folder::new();
    for (name, options) in [
        ("v2.qcow2", &["-o", "compat=0.10"][..]),
        ("v3.qcow2", &[]),
        ("lazy.qcow2", &["-o", "lazy_refcounts=on"]),
        ("extended.qcow2", &["-o", "extended_l2=on,cluster_size=128k"]),
        ("zstd.qcow2", &["-o", "compression_type=zstd,refcount_bits=1"]),
        ("small.qcow2", &["-o", "cluster_size=512,refcount_bits=64"]),
        ("large.qcow2", &["-o", "cluster_size=2M,preallocation=metadata"]),
        ("raw-data.qcow2", &["-o", "data_file=data.raw,data_file_raw=on"]),
        ("data.qcow2", &["-o", "data_file=other.raw"]),
    ] {
        folder.create(options, name, "3001k");
        same(&folder, name);
    }
    std::fs::remove_file(folder.path("other.raw")).unwrap();
    same(&folder, "data.qcow2");
}

#[test]
fn raw_files_are_shown() {
    let folder = Folder::new();
    for len in [0, 1, 511, 512, 1000, 1 << 20, 1_023_488] {
        folder.write("file.raw", vec![7; len]);
        same(&folder, "file.raw");
        folder.same(&["info", "-f", "raw", "file.raw"]);
    }
    folder.create(&[], "image.qcow2", "1M");
    folder.same(&["info", "-f", "raw", "image.qcow2"]);
}

#[test]
fn dirty_and_corrupt_images_are_shown() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    for bits in 0..=3 {
        folder.patch("image.qcow2", INCOMPATIBLE, &[bits]);
        same(&folder, "image.qcow2");
    }
}

#[test]
fn snapshots_are_shown() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    for name in
        ["first", "second with a name that is longer than the column", "K\u{e4}the \u{1f404}", "1"]
    {
        folder.qemu_img(&["snapshot", "-c", name, "image.qcow2"]);
        same(&folder, "image.qcow2");
    }
}

#[test]
fn snapshots_of_other_makers_are_shown() {
    // Extra data of 0, 8, 16 and 24 bytes, vm state sizes and clocks: written by hand, for qemu-img writes but one kind.
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_img(&["snapshot", "-c", "s", "image.qcow2"]);
    let table = folder.number("image.qcow2", 64);
    let l1 = folder.number("image.qcow2", table);
    for extra_len in [0_u32, 16, 24] {
        for (date, clock, small, large) in [
            (0_u32, 0_u64, 0_u32, 0_u64),
            (1_700_000_000, 3_723_004_005_006, 1_048_576, 5 << 30),
            (u32::MAX, u64::MAX, u32::MAX, 7),
        ] {
            let mut entry = Vec::new();
            entry.extend(l1.to_be_bytes());
            entry.extend(1_u32.to_be_bytes());
            entry.extend(1_u16.to_be_bytes());
            entry.extend(4_u16.to_be_bytes());
            entry.extend(date.to_be_bytes());
            entry.extend(999_999_999_u32.to_be_bytes());
            entry.extend(clock.to_be_bytes());
            entry.extend(small.to_be_bytes());
            entry.extend(extra_len.to_be_bytes());
            let extra = [large, 1 << 20, u64::MAX >> 1].map(u64::to_be_bytes).concat();
            entry.extend(&extra[..extra_len as usize]);
            entry.extend(b"7name");
            folder.patch("image.qcow2", table, &entry);
            same(&folder, "image.qcow2");
        }
    }
}

#[test]
fn bitmaps_are_shown() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_img(&["bitmap", "--add", "image.qcow2", "first"]);
    same(&folder, "image.qcow2");
    folder.qemu_img(&["bitmap", "--add", "-g", "1M", "--disable", "image.qcow2", "other \"name\""]);
    same(&folder, "image.qcow2");
    // In use: the first byte after offset and length of the table in the directory's first entry.
    let extension = {
        let bytes = folder.read("image.qcow2");
        bytes.windows(4).position(|window| window == [0x23, 0x85, 0x28, 0x75]).unwrap() as u64
    };
    let directory = folder.number("image.qcow2", extension + 8 + 16);
    folder.patch("image.qcow2", directory + 12, &3_u32.to_be_bytes());
    same(&folder, "image.qcow2");
    // Someone who does not know bitmaps has written to the image: qemu-img warns, and shows none.
    folder.patch("image.qcow2", AUTOCLEAR, &[0]);
    folder.same_but_for_errors(&["info", "image.qcow2"]);
    folder.same_but_for_errors(&["info", "--output=json", "image.qcow2"]);
}

#[test]
fn encryption_is_shown_without_the_key() {
    let folder = Folder::new();
    folder.write("key", "secret");
    let key = ["--object", "secret,id=k,file=key"];
    for (name, options) in [
        ("luks.qcow2", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"),
        (
            "cbc.qcow2",
            "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10,encrypt.cipher-mode=cbc,\
             encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha512",
        ),
        ("aes.qcow2", "encrypt.format=aes,encrypt.key-secret=k"),
    ] {
        folder.create(&[&key[..], &["-o", options]].concat(), name, "1M");
        same(&folder, name);
    }
}

#[test]
fn backing_files_are_shown() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("base.raw", vec![1; 4096]);
    folder.create(&["-b", "base.raw", "-F", "raw"], "mid.qcow2", "1M");
    folder.create(&["-b", "../mid.qcow2", "-F", "qcow2"], "sub/top.qcow2", "1M");
    let absolute = folder.path("sub/top.qcow2");
    for image in [
        "mid.qcow2",
        "sub/top.qcow2",
        "sub/../mid.qcow2",
        "./mid.qcow2",
        absolute.to_str().unwrap(),
    ] {
        same(&folder, image);
    }
    for image in ["mid.qcow2", "sub/top.qcow2", "base.raw"] {
        folder.compare_chain(image);
    }
    for name in [
        "nbd://localhost:1/x",
        "json:{\"driver\":\"null-co\"}",
        "a:b",
        "/nowhere/x",
        "./a:b",
        "missing.raw",
    ] {
        folder.create(&["-u", "-b", name, "-F", "raw"], "named.qcow2", "1M");
        same(&folder, "named.qcow2");
    }
}

#[test]
fn backing_file_without_a_format_is_shown() {
    let folder = Folder::new();
    folder.write("base.raw", vec![1; 4096]);
    folder.create(&["-b", "base.raw", "-F", "raw"], "top.qcow2", "1M");
    let bytes = folder.read("top.qcow2");
    let extension = bytes.windows(4).position(|window| window == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    folder.patch("top.qcow2", extension as u64, b"\x12\x34\x56\x78");
    same(&folder, "top.qcow2");
}

#[test]
fn loop_in_a_chain_ends() {
    let folder = Folder::new();
    folder.create(&["-u", "-b", "b.qcow2", "-F", "qcow2"], "a.qcow2", "1M");
    folder.create(&["-u", "-b", "a.qcow2", "-F", "qcow2"], "b.qcow2", "1M");
    folder.same(&["info", "--backing-chain", "a.qcow2"]);
    folder.same(&["info", "--backing-chain", "--output=json", "a.qcow2"]);
}

#[test]
fn lost_backing_file_ends_the_chain_with_an_error() {
    let folder = Folder::new();
    folder.create(&["-u", "-b", "gone.qcow2", "-F", "qcow2"], "a.qcow2", "1M");
    folder.same_but_for_errors(&["info", "--backing-chain", "a.qcow2"]);
    let error = folder.cowshed_fails(&["info", "--backing-chain", "a.qcow2"], 1);
    assert!(error.contains("gone.qcow2"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
}

impl Folder {
    /// The whole chain in the image's own folder under QEMU's name; the command under its own name refuses what is
    /// outside of it.
    #[track_caller]
    fn compare_chain(&self, image: &str) {
        for output in ["human", "json"] {
            let arguments = ["info", "--backing-chain", "--output", output, image];
            let ours = self.stand_in(&arguments);
            assert_eq!(text(&ours.stdout), self.qemu_img(&arguments), "{}", text(&ours.stderr));
            let own = self.cowshed(&[&arguments[..], &["--allow", "."]].concat());
            assert_eq!(own.stdout, ours.stdout, "{}", text(&own.stderr));
        }
    }
}
