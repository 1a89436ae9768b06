//! The images that cases patch: made once by QEMU's tools, with the offsets that QEMU always gives.

use std::collections::BTreeMap;

use crate::support::qemu;

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Base {
    /// Version 3, clusters of 64 KiB, a disk of 1 GiB: header, refcount table at 0x10000, refcount block at 0x20000, L1
    /// table at 0x30000, L2 table at 0x40000 with data at 0x50000 and 0x60000, a plain zero cluster, a compressed cluster
    /// at 0x70000, a zero cluster kept at 0x80000; a second L2 table at 0x90000 for the data of 600 MiB at 0xa0000.
    Plain,
    /// The same in version 2, without the zero clusters.
    V2,
    /// With two snapshots, "one" and "two".
    Snapshots,
    /// With two bitmaps, the second with data.
    Bitmaps,
    /// Extended L2 entries: the first cluster whole, of the second the first subcluster, the third zero, at 0x40000.
    Extended,
    /// With an external data file.
    DataFile,
    /// With a backing file "base.raw" of format "raw".
    Backing,
    /// Compressed with Zstandard.
    Zstd,
    /// Encrypted with LUKS.
    Luks,
    /// Clusters of 512 bytes.
    Small,
}

/// An image's bytes, to patch.
#[derive(Clone)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u8(&mut self, at: u64, value: u8) {
        self.bytes(at, &[value]);
    }

    pub(super) fn u16(&mut self, at: u64, value: u16) {
        self.bytes(at, &value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, at: u64, value: u32) {
        self.bytes(at, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, at: u64, value: u64) {
        self.bytes(at, &value.to_be_bytes());
    }

    pub(super) fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn cut(&mut self, len: u64) {
        assert!((len as usize) < self.0.len(), "the image has {:#x} bytes only", self.0.len());
        self.0.truncate(len as usize);
    }

    pub(super) fn get(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..at as usize + 8].try_into().unwrap())
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Where a header extension's type stands.
    pub(super) fn extension(&self, kind: u32) -> u64 {
        let kind = kind.to_be_bytes();
        let place = self.0[104..4096.min(self.0.len())].windows(4).position(|w| w == kind);
        104 + place.expect("the extension") as u64
    }

    /// Where the bitmap directory is.
    pub(super) fn bitmap_directory(&self) -> u64 {
        self.get(self.extension(0x2385_2875) + 8 + 16)
    }
}

/// Makes the images.
pub(super) fn bases() -> BTreeMap<Base, Bytes> {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let mut made = BTreeMap::new();
    let mut make =
        |base: Base, options: &[&str], size: &str, commands: &[&str], more: &[&[&str]]| {
            let name = format!("{base:?}.qcow2");
            let arguments = [&["create", "-q", "-f", "qcow2"], options, &[&name, size]].concat();
            qemu::img(at, arguments);
            qemu::io(at, "qcow2", &name, commands);
            for command in more {
                let command: Vec<_> = command
                    .iter()
                    .map(|word| if *word == "IMAGE" { &name } else { *word })
                    .collect();
                if command[0] == "io" {
                    qemu::io(at, "qcow2", &name, &command[1..]);
                } else {
                    qemu::img(at, command);
                }
            }
            made.insert(base, Bytes(std::fs::read(at.join(&name)).unwrap()));
        };
    let plain = [
        "write -P 1 0 64k",
        "write -P 2 64k 64k",
        "write -z 128k 64k",
        "write -c -P 3 192k 64k",
        "write -P 4 256k 64k",
        "write -z 256k 64k",
        "write -P 5 600M 64k",
    ];
    let old = ["write -P 1 0 64k", "write -P 2 64k 64k", "write -c -P 3 192k 64k"];
    make(Base::Plain, &[], "1G", &plain, &[]);
    make(Base::V2, &["-o", "compat=0.10"], "1G", &old, &[]);
    let two: [&[&str]; 3] = [
        &["snapshot", "-c", "one", "IMAGE"],
        &["io", "write -P 6 0 64k"],
        &["snapshot", "-c", "two", "IMAGE"],
    ];
    make(Base::Snapshots, &[], "1G", &plain, &two);
    let bitmaps: [&[&str]; 3] = [
        &["bitmap", "--add", "--disable", "IMAGE", "b0"],
        &["bitmap", "--add", "IMAGE", "b1"],
        &["io", "write -P 9 0 1M"],
    ];
    make(Base::Bitmaps, &[], "1G", &plain, &bitmaps);
    let extended = ["write -P 1 0 64k", "write -P 2 64k 2k", "write -z 128k 64k"];
    make(Base::Extended, &["-o", "extended_l2=on"], "64M", &extended, &[]);
    let data = ["write -P 1 0 64k", "write -P 2 192k 64k"];
    make(Base::DataFile, &["-o", "data_file=data.raw"], "64M", &data, &[]);
    std::fs::write(at.join("base.raw"), vec![7; 1 << 20]).unwrap();
    make(Base::Backing, &["-b", "base.raw", "-F", "raw"], "1M", &["write -P 1 0 64k"], &[]);
    let compressed = ["write -c -P 3 0 64k", "write -c -P 4 64k 64k"];
    make(Base::Zstd, &["-o", "compression_type=zstd"], "64M", &compressed, &[]);
    make(Base::Small, &["-o", "cluster_size=512"], "64k", &["write -P 1 0 8k"], &[]);
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    make(Base::Luks, &["--object", "secret,id=s,data=1", "-o", options], "4M", &[], &[]);
    made
}
