//! Images to begin with, of every geometry, and small: made by QEMU's tools or by the engine, once a process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use cowshed::format::{Compression, Version};
use cowshed::image::{CreateOptions, Preallocation, create};
use cowshed::sim::Random;
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

use super::model::{Contents, FIRST};
use super::support::data::pattern_file;
use super::support::{images, qemu};

/// What lies under the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFile {
    Internal,
    External,
    ExternalRaw,
}

/// The passphrase of those that are encrypted.
pub const KEY: &str = "key";

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub extended_l2: bool,
    pub lazy_refcounts: bool,
    pub zstd: bool,
    pub data_file: DataFile,
    /// The length of its raw backing file, 0 for none.
    pub backing_len: u64,
    /// Some of it is written by QEMU, and has a snapshot.
    pub snapshot: bool,
    pub metadata_preallocated: bool,
    pub made_by_qemu: bool,
    /// It has persistent bitmaps: see `bitmaps.rs`.
    pub bitmaps: bool,
    /// With LUKS, under the passphrase [`KEY`].
    pub encrypted: bool,
    pub size: u64,
    /// The most that it is resized to.
    pub size_max: u64,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// An image and what belongs to it.
#[derive(Debug)]
pub struct Made {
    pub setup: Setup,
    pub image: Arc<[u8]>,
    pub data: Option<Arc<[u8]>>,
    pub backing: Option<Arc<[u8]>>,
    /// A raw file that can be its backing file.
    pub other: Arc<[u8]>,
    /// What the guest's disk holds.
    pub first: Arc<[u8]>,
    /// What the snapshot holds.
    pub snapshot: Option<Arc<[u8]>>,
}

impl Setup {
    /// The kind of that number. They are all different, but for accidents, and the first ones are as mixed as the rest.
    pub fn numbered(number: u64) -> Self {
        let random = &mut Random::new(0x5e7 + number);
        let cluster_bits = match random.below(100) {
            0..38 => 9,
            38..46 => 10,
            46..52 => 11,
            52..70 => 12,
            70..82 => 14,
            82..98 => 16,
            _ => 21,
        };
        let version = if random.chance(200) { 2 } else { 3 };
        let new = version == 3;
        let refcount_bits = if new && random.toss() { 1 << random.below(7) } else { 16 };
        let data_file = match random.below(10) {
            0 if new => DataFile::External,
            1 if new => DataFile::ExternalRaw,
            _ => DataFile::Internal,
        };
        let internal = data_file == DataFile::Internal;
        let cluster_size = 1_u64 << cluster_bits;
        let size = match cluster_bits {
            9 => 512 * (64 + random.below(400)),
            10..=12 => 512 * (128 + random.below(400)),
            14..=16 => {
                cluster_size * (3 + random.below(6)) + 512 * random.below(cluster_size / 512)
            }
            _ => 5 * cluster_size + 1536,
        };
        let backing_len = match random.below(10) {
            _ if data_file == DataFile::ExternalRaw => 0,
            0 => size,
            1 => size / 3 / 512 * 512,
            2 => size + 4 * cluster_size,
            _ => 0,
        };
        let large = cluster_bits == 9 && random.chance(100);
        let snapshot = internal && refcount_bits > 1 && random.chance(200);
        let mut setup = Self {
            version,
            cluster_bits,
            refcount_bits,
            extended_l2: new && cluster_bits >= 14 && random.chance(600),
            lazy_refcounts: new && random.chance(150),
            zstd: new && random.chance(300),
            data_file,
            backing_len,
            snapshot,
            metadata_preallocated: !snapshot && backing_len == 0 && random.chance(100),
            made_by_qemu: snapshot || random.chance(150),
            encrypted: false,
            size,
            // Enough for an L1 table of two clusters.
            size_max: if large { 2_600_000 / 512 * 512 } else { size + 6 * cluster_size.max(4096) },
            bitmaps: false,
        };
        setup.bitmaps = new && random.chance(300);
        let can_be = !setup.made_by_qemu && (new || !setup.metadata_preallocated);
        setup.encrypted = cfg!(feature = "encryption") && can_be && random.chance(200);
        setup
    }

    /// The length of a cluster in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether there can be compressed clusters.
    pub fn compresses(&self) -> bool {
        self.data_file == DataFile::Internal && !self.encrypted
    }

    /// Whether there can be snapshots.
    pub fn shares(&self) -> bool {
        self.data_file == DataFile::Internal && self.refcount_bits > 1
    }

    /// Whether the image may get another backing file, or go into the one that it has, and nothing else changes.
    pub fn rebases(&self) -> bool {
        self.data_file != DataFile::ExternalRaw && !self.snapshot
    }

    /// The image of this kind.
    pub fn make(&self) -> Arc<Made> {
        static MADE: Mutex<BTreeMap<String, Arc<Made>>> = Mutex::new(BTreeMap::new());
        let name = self.to_string();
        let mut made = MADE.lock().unwrap();
        Arc::clone(made.entry(name).or_insert_with(|| Arc::new(self.make_now())))
    }

    fn make_now(&self) -> Made {
        let none: Arc<[u8]> = Arc::new([]);
        let (first, backing, kept) = (Arc::clone(&none), Arc::clone(&none), Arc::clone(&none));
        let contents = Contents { granule: 512, first, backing, kept, other: none };
        let pattern = |tag, len| contents.bytes(tag, 0, usize::try_from(len).unwrap() / 512);
        let backing = pattern(FIRST + 11, self.backing_len);
        // Shorter than the disk, or longer.
        let other_len = match self.size / 512 % 2 {
            0 => self.size * 3 / 4,
            _ => self.size + 4096,
        };
        let other = pattern(FIRST + 12, other_len).into();
        let made = match self.made_by_qemu {
            true => self.make_by_qemu(&backing),
            false => self.make_by_engine(&backing),
        };
        let image = match self.bitmaps {
            true => super::bitmaps::add(made.image.to_vec()).into(),
            false => made.image,
        };
        Made { other, image, ..made }
    }

    fn make_by_engine(&self, backing: &[u8]) -> Made {
        let external = self.data_file != DataFile::Internal;
        let mut options = CreateOptions::new(self.size);
        options.version = if self.version == 2 { Version::V2 } else { Version::V3 };
        options.cluster_size = self.cluster_size();
        options.refcount_bits = self.refcount_bits;
        options.extended_l2 = self.extended_l2;
        options.lazy_refcounts = self.lazy_refcounts;
        if self.zstd {
            options.compression = Compression::Zstd;
        }
        options.data_file = external.then(|| b"image.data".to_vec());
        options.data_file_raw = self.data_file == DataFile::ExternalRaw;
        options.backing_file = (!backing.is_empty()).then(|| b"backing.raw".to_vec());
        options.backing_format = (!backing.is_empty()).then(|| b"raw".to_vec());
        if self.metadata_preallocated {
            options.preallocation = Preallocation::Metadata;
        }
        self.encrypt(&mut options);
        let (image, data) = (MemoryStorage::default(), external.then(MemoryStorage::default));
        block_on(create(&image, data.as_ref(), &options)).unwrap();
        let mut first = backing.to_vec();
        first.resize(usize::try_from(self.size).unwrap(), 0);
        Made {
            setup: *self,
            image: image.into_vec().into(),
            data: data.map(|data| data.into_vec().into()),
            backing: (!backing.is_empty()).then(|| backing.into()),
            other: Arc::new([]),
            first: first.into(),
            snapshot: None,
        }
    }

    #[cfg(feature = "encryption")]
    fn encrypt(&self, options: &mut CreateOptions) {
        use cowshed::crypt::{
            CipherAlgorithm, CipherMode, Entropy, Iterations, LuksArea, LuksScheme,
        };

        struct Repeatable(Random);
        impl Entropy for Repeatable {
            fn fill(&mut self, bytes: &mut [u8]) -> cowshed::Result<()> {
                bytes.iter_mut().for_each(|byte| *byte = u8::try_from(self.0.below(256)).unwrap());
                Ok(())
            }
        }
        if self.encrypted {
            // The shortest area there is.
            let (cipher, mode) = (CipherAlgorithm::Aes128, CipherMode::Cbc);
            let scheme = LuksScheme { cipher, mode, ..LuksScheme::default() };
            let mut random = Repeatable(Random::new(1));
            let area = LuksArea::new(&scheme, &KEY.into(), Iterations::new(1000), &mut random);
            options.encryption = Some(cowshed::image::Encryption::Luks(area.unwrap()));
        }
    }

    #[cfg(not(feature = "encryption"))]
    fn encrypt(&self, _: &mut CreateOptions) {}

    fn make_by_qemu(&self, backing: &[u8]) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let mut options = vec![
            format!("cluster_size={}", self.cluster_size()),
            format!("compat={}", if self.version == 2 { "0.10" } else { "1.1" }),
            format!("refcount_bits={}", self.refcount_bits),
        ];
        let mut on = |set: bool, option: &str| {
            if set {
                options.push(option.into());
            }
        };
        on(self.extended_l2, "extended_l2=on");
        on(self.lazy_refcounts, "lazy_refcounts=on");
        on(self.zstd, "compression_type=zstd");
        on(self.data_file != DataFile::Internal, "data_file=image.data");
        on(self.data_file == DataFile::ExternalRaw, "data_file_raw=on");
        on(self.metadata_preallocated, "preallocation=metadata");
        on(self.backing_len > 0, "backing_file=backing.raw,backing_fmt=raw");
        if !backing.is_empty() {
            std::fs::write(at.join("backing.raw"), backing).unwrap();
        }
        let (options, size) = (options.join(","), self.size.to_string());
        qemu::img(at, ["create", "-q", "-f", "qcow2", "-o", &options, "image.qcow2", &size]);
        let mut snapshot = None;
        if self.snapshot {
            let third = self.size / 3 / 512 * 512;
            let write = |number, from| {
                let file = pattern_file(number);
                format!("write -q -s {} {from} {third}", file.display())
            };
            qemu::io(at, "qcow2", "image.qcow2", &[write(0, 0)]);
            qemu::img(at, ["snapshot", "-c", "one", "image.qcow2"]);
            snapshot = Some(images::snapshot_bytes(at, "image.qcow2", "one").into());
            qemu::io(at, "qcow2", "image.qcow2", &[write(2, third / 1024 * 512)]);
        }
        let read = |name: &str| Arc::<[u8]>::from(std::fs::read(at.join(name)).unwrap());
        Made {
            setup: *self,
            image: read("image.qcow2"),
            data: (self.data_file != DataFile::Internal).then(|| read("image.data")),
            backing: (!backing.is_empty()).then(|| backing.into()),
            other: Arc::new([]),
            first: qemu::raw_bytes(at, &["-f", "qcow2"], "image.qcow2").into(),
            snapshot,
        }
    }
}
