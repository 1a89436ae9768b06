//! Writing, against a flat model: whatever is done to a disk, it reads as the model says, at once and after it was closed
//! and opened again, and QEMU finds the same disk in the file and nothing wrong with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::open::read_all;
use crate::support::{qemu, seeds};
use cowshed::format::Version;
use cowshed::image::{
    Answer, CreateOptions, Gate, Image, OpenOptions, Reference, ResizeOptions, Source,
    WriteOptions, ZeroMode, create,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

/// A generator that is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What an image in memory refers to lies in a folder.
struct Folder(PathBuf);

impl Gate for Folder {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Self::Storage>> {
        let name = std::str::from_utf8(reference.name).unwrap();
        let bytes = std::fs::read(self.0.join(name)).unwrap();
        Ok(Answer::Open(Source::raw(Arc::new(MemoryStorage::new(bytes)), name)))
    }
}

/// An image in memory, and what its disk should read as.
struct Pair {
    image: Image<Arc<MemoryStorage>>,
    disk: Vec<u8>,
    gate: Folder,
    version: Version,
    cluster_size: u64,
    has_backing: bool,
}

impl Pair {
    async fn open(gate: Folder, storage: Arc<MemoryStorage>, disk: Vec<u8>) -> Self {
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source::qcow2(storage, "image");
        let image = Image::open(source, &gate, options).await.unwrap().image;
        let header = image.header().unwrap();
        let (version, cluster_size) = (header.version, header.geometry().cluster_size());
        let has_backing = header.backing_file.is_some();
        Self { image, disk, gate, version, cluster_size, has_backing }
    }

    async fn step(&mut self, random: &mut Random) {
        let size = self.disk.len() as u64;
        let sector = |random: &mut Random, end: u64| random.below(end + 1);
        let (a, b) = (sector(random, size), sector(random, size));
        let near = random.below(3 * self.cluster_size);
        let start = a.min(b);
        let end = match random.below(4) {
            0 => a.max(b),
            _ => (start + near).min(size),
        };
        let range = start as usize..end as usize;
        let len = end - start;
        match random.below(10) {
            0..=4 => {
                let tag = random.next();
                let data: Vec<u8> =
                    (0..len).map(|i| ((tag >> (i % 8 * 8)) ^ i) as u8 | 1).collect();
                self.image.write_at(&data, start).await.unwrap();
                self.disk[range].copy_from_slice(&data);
            }
            5 => {
                let mode =
                    if random.below(2) == 0 { ZeroMode::KeepSpace } else { ZeroMode::MayUnmap };
                self.image.write_zeroes_at(start, len, mode).await.unwrap();
                self.disk[range].fill(0);
            }
            6 => {
                self.image.discard_at(start, len).await.unwrap();
                if self.version == Version::V2 && self.has_backing {
                    return;
                }
                let first = start.next_multiple_of(self.cluster_size);
                let last = if end == size { end } else { end - end % self.cluster_size };
                if first < last {
                    self.disk[first as usize..last as usize].fill(0);
                }
            }
            7 => {
                let first = start - start % self.cluster_size;
                let last = (first + self.cluster_size).min(size);
                if first >= last {
                    return;
                }
                let data = vec![(random.next() as u8) | 1; (last - first) as usize];
                match self.image.write_compressed_at(&data, first).await {
                    Ok(()) => self.disk[first as usize..last as usize].copy_from_slice(&data),
                    Err(cowshed::Error::InvalidArgument(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            8 => self.image.flush().await.unwrap(),
            _ => {
                let mut bytes = vec![0xa5; len as usize];
                self.image.read_at(&mut bytes, start).await.unwrap();
                assert!(bytes == self.disk[range], "bytes at {start:#x}, {len:#x} long");
            }
        }
    }

    async fn reopen(self, storage: &Arc<MemoryStorage>) -> Self {
        self.image.close().await.unwrap();
        Self::open(self.gate, Arc::clone(storage), self.disk).await
    }
}

/// QEMU's opinion of the file.
fn ask_qemu(dir: &Path, storage: &MemoryStorage, disk: &[u8]) {
    std::fs::write(dir.join("image"), storage.to_vec()).unwrap();
    std::fs::write(dir.join("disk"), disk).unwrap();
    qemu::img(dir, ["check", "image"]);
    qemu::img(dir, ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
}

fn run(seed: u64, options: &CreateOptions, backing: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut options = options.clone();
    let mut disk = vec![0; options.size as usize];
    let below = (options.size / 3 * 2 + 512) / 512 * 512;
    if backing {
        let bytes: Vec<u8> = (0..below).map(|i| (i / 512) as u8 | 0x80).collect();
        std::fs::write(dir.path().join("base"), &bytes).unwrap();
        disk[..bytes.len()].copy_from_slice(&bytes);
        options.backing_file = Some(b"base".to_vec());
        options.backing_format = Some(b"raw".to_vec());
    }
    block_on(async {
        let storage = Arc::new(MemoryStorage::new(Vec::new()));
        create(&storage, None, &options).await.unwrap();
        let mut pair = Pair::open(Folder(dir.path().to_owned()), Arc::clone(&storage), disk).await;
        for round in 0..3 {
            for _ in 0..30 {
                pair.step(&mut random).await;
            }
            if round == 1 {
                let len = pair.disk.len() + 512 * random.below(999) as usize;
                pair.image.resize(len as u64, &ResizeOptions::default()).await.unwrap();
                pair.disk.resize(len, 0);
            }
            pair = pair.reopen(&storage).await;
            ask_qemu(dir.path(), &storage, &pair.disk);
            assert!(
                read_all(&pair.image, 77777).await.unwrap() == pair.disk,
                "after round {round}"
            );
        }
    });
}

fn geometries() -> Vec<CreateOptions> {
    let mut all = Vec::new();
    for (cluster_size, size) in
        [(512, 300 << 10), (4096, 1 << 20), (65536, 3 << 20), (2 << 20, 9 << 20)]
    {
        let mut add = |change: &dyn Fn(&mut CreateOptions)| {
            let mut options = CreateOptions::new(size + 512);
            options.cluster_size = cluster_size;
            change(&mut options);
            all.push(options);
        };
        add(&|_| {});
        add(&|options| options.refcount_bits = 1);
        add(&|options| (options.refcount_bits, options.lazy_refcounts) = (64, true));
        add(&|options| options.version = Version::V2);
        if cluster_size >= 16384 {
            add(&|options| options.extended_l2 = true);
        }
    }
    all
}

#[test]
fn a_disk_reads_as_what_was_done_to_it() {
    seeds::for_each_seed(2, |seed| {
        for options in geometries() {
            for backing in [false, true] {
                run(seed, &options, backing);
            }
        }
    });
}
