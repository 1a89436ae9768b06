//! The matrix: about 150 small images over every option that changes how bytes are found, made by QEMU's tools.
//!
//! Cluster size x version x refcount width x compression x extended L2 x data file x backing, filled by `qemu-io` with
//! patterned writes, zeroes (plain and unmapping), discards and compressed writes, with snapshots and a resize in
//! between. The same case is the same image every time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::data::{Choices, PATTERN_FILES, pattern_file};
use super::images::{TestImage, TestSnapshot, snapshot_bytes};
use super::kept;
use super::qemu;

/// How many images are made at once.
const MAKERS: usize = 2;

/// Where compressed clusters come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No cluster is compressed.
    None,
    /// Deflate, the default of the format.
    Zlib,
    /// Zstandard; version 3 only.
    Zstd,
}

/// Where guest data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFile {
    /// In the image itself.
    Internal,
    /// In an external data file.
    External,
    /// In an external data file that is a valid raw image too.
    ExternalRaw,
}

/// What lies under the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    None,
    /// A raw image of the same size.
    Raw,
    /// A raw image that ends before the overlay, within a cluster.
    RawShorter,
    /// A qcow2 image of the same size.
    Qcow2,
    /// A qcow2 image that ends before the overlay, within a cluster.
    Shorter,
    /// A qcow2 image that goes on after the overlay's end.
    Longer,
    /// Four layers below: qcow2 of other cluster sizes, the deepest one raw, some shorter, some longer.
    Chain,
}

/// How clusters are allocated when the image is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preallocation {
    /// On writing.
    Off,
    /// Mapped at once, written later.
    Metadata,
    /// Mapped and written at once.
    Full,
}

/// One combination of options. [`make`](Case::make) makes its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// In bytes.
    pub cluster_size: u64,
    /// 2 or 3.
    pub version: u32,
    /// 1 to 64.
    pub refcount_bits: u32,
    /// Whether and how some clusters are compressed.
    pub compression: Compression,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// Where guest data lies.
    pub data_file: DataFile,
    /// What lies underneath.
    pub backing: Backing,
    /// How clusters are allocated first.
    pub preallocation: Preallocation,
    /// Whether refcounts are written late; sets a compatible feature bit.
    pub lazy_refcounts: bool,
    /// How many internal snapshots are taken between the writes, 0 to 2.
    pub snapshots: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "version {}, clusters of {}, refcounts of {} bits",
            self.version, self.cluster_size, self.refcount_bits
        )?;
        if self.compression != Compression::None {
            write!(f, ", {:?}", self.compression)?;
        }
        if self.extended_l2 {
            write!(f, ", extended L2")?;
        }
        if self.data_file != DataFile::Internal {
            write!(f, ", data {:?}", self.data_file)?;
        }
        if self.backing != Backing::None {
            write!(f, ", backing {:?}", self.backing)?;
        }
        if self.preallocation != Preallocation::Off {
            write!(f, ", preallocated {:?}", self.preallocation)?;
        }
        if self.lazy_refcounts {
            write!(f, ", lazy refcounts")?;
        }
        if self.snapshots > 0 {
            write!(f, ", {} snapshots", self.snapshots)?;
        }
        Ok(())
    }
}

/// Returns every case of the matrix.
pub fn cases() -> Vec<Case> {
    use Backing::{Chain, Longer, Qcow2, Raw, RawShorter, Shorter};
    use Compression::{Zlib, Zstd};

    const BACKINGS: [Backing; 7] = [Backing::None, Raw, RawShorter, Qcow2, Shorter, Longer, Chain];
    const CLUSTER_SIZES: [u64; 5] = [512, 4 << 10, 16 << 10, 64 << 10, 2 << 20];
    let base = Case {
        cluster_size: 64 << 10,
        version: 3,
        refcount_bits: 16,
        compression: Compression::None,
        extended_l2: false,
        data_file: DataFile::Internal,
        backing: Backing::None,
        preallocation: Preallocation::Off,
        lazy_refcounts: false,
        snapshots: 0,
    };
    let mut cases = Vec::new();
    for cluster_size in CLUSTER_SIZES {
        let base = Case { cluster_size, ..base };
        // The largest clusters make the largest files: some of the combinations stand for all.
        let large = cluster_size == 2 << 20;
        let backings = if large { &[Backing::None, Shorter, Chain] } else { &BACKINGS[..] };
        for &backing in backings {
            // Both versions; deflate in one, nothing compressed in the other, by turns.
            let old =
                if matches!(backing, Raw | Shorter | Chain) { Zlib } else { Compression::None };
            let new = if old == Zlib { Compression::None } else { Zlib };
            cases.push(Case { version: 2, backing, compression: old, snapshots: 1, ..base });
            cases.push(Case { backing, compression: new, snapshots: 2, ..base });
        }
        let widths = if large { &[1, 64] } else { &[1, 2, 4, 8, 32, 64][..] };
        for &refcount_bits in widths {
            // A refcount of one bit allows no snapshot; one of two bits allows two, if nothing is shared besides.
            let compression = if refcount_bits == 2 { Compression::None } else { Zlib };
            let snapshots = if refcount_bits == 1 { 0 } else { 2 };
            cases.push(Case { refcount_bits, compression, snapshots, ..base });
        }
        for backing in [Backing::None, RawShorter, Chain] {
            cases.push(Case { compression: Zstd, backing, snapshots: 1, ..base });
        }
        for (data_file, backing) in [
            (DataFile::External, Backing::None),
            (DataFile::External, Shorter),
            (DataFile::ExternalRaw, Backing::None),
        ] {
            cases.push(Case { data_file, backing, ..base });
        }
        cases.push(Case { preallocation: Preallocation::Metadata, lazy_refcounts: true, ..base });
        if cluster_size >= 16 << 10 {
            let base = Case { extended_l2: true, ..base };
            for &backing in backings {
                let compression = if backing == Shorter { Zstd } else { Zlib };
                cases.push(Case { backing, compression, snapshots: 1, ..base });
            }
            cases.push(Case { data_file: DataFile::External, ..base });
            cases.push(Case { data_file: DataFile::ExternalRaw, ..base });
            cases.push(Case { preallocation: Preallocation::Metadata, ..base });
        }
    }
    cases.push(Case { preallocation: Preallocation::Full, ..base });
    cases.push(Case { cluster_size: 1 << 10, compression: Zlib, snapshots: 1, ..base });
    cases.push(Case { cluster_size: 1 << 20, compression: Zstd, snapshots: 1, ..base });
    cases
}

/// Makes every image of the matrix, [`MAKERS`] at a time and a few ahead, each dropped by the caller when it is done.
pub fn matrix() -> impl Iterator<Item = TestImage> {
    images(cases())
}

/// A handful of very different cases: for tests that are slow for each image.
pub fn small_matrix() -> impl Iterator<Item = TestImage> {
    images(cases().into_iter().step_by(13).collect())
}

/// Makes the images of `cases` on threads of their own, and returns them in the order of `cases`; see [`matrix`].
pub fn images(cases: Vec<Case>) -> impl Iterator<Item = TestImage> {
    let (made, images) = std::sync::mpsc::sync_channel(4);
    let count = cases.len();
    let cases = std::sync::Arc::new(Mutex::new(cases.into_iter().enumerate()));
    for _ in 0..MAKERS {
        let (made, cases) = (made.clone(), std::sync::Arc::clone(&cases));
        std::thread::spawn(move || {
            loop {
                let Ok(Some((index, case))) = cases.lock().map(|mut cases| cases.next()) else {
                    break;
                };
                // A maker's panic must reach the test: an image that is missing is not an image that passes.
                let image = std::panic::catch_unwind(|| case.make());
                let failed = image.is_err();
                if made.send((index, image)).is_err() || failed {
                    break;
                }
            }
        });
    }
    // The makers go on while one of them is slow: what the others make is kept here, which is never much.
    let mut early = BTreeMap::new();
    (0..count).map(move |wanted| {
        loop {
            if let Some(image) = early.remove(&wanted) {
                break image;
            }
            let (index, image) = images.recv().expect("a maker");
            early.insert(index, image.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    })
}

/// Calls `check` with every image of the matrix, on [`MAKERS`] threads, and returns how many there were.
///
/// # Panics
///
/// If `check` does; the image's description is printed.
pub fn for_each_image(check: impl Fn(&TestImage) + Sync) -> usize {
    let images = Mutex::new(matrix());
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                loop {
                    let Ok(Some(image)) = images.lock().map(|mut images| images.next()) else {
                        break;
                    };
                    let named = NameOnPanic(&image.description);
                    check(&image);
                    drop(named);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner()
}

struct NameOnPanic<'a>(&'a str);

impl Drop for NameOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the image: {}", self.0);
        }
    }
}

impl Case {
    /// The size of the disk: several L2 tables where clusters are small, and never a whole number of clusters.
    pub fn virtual_size(&self) -> u64 {
        let whole = match self.cluster_size {
            0..=1024 => 512 << 10,
            1025..=4096 => 3 << 20,
            4097..=65536 => 2 << 20,
            cluster_size => 4 * cluster_size,
        };
        whole + if self.cluster_size > 512 { 1536 } else { 0 }
    }

    /// Makes the image, its backing chain and its reference, or copies what another test has made.
    ///
    /// # Panics
    ///
    /// If a tool is missing or fails.
    pub fn make(&self) -> TestImage {
        let description = self.to_string();
        let _named = NameOnPanic(&description);
        kept::image(&description, &format!("{:016x}", self.seed()), |at| self.make_in(at))
    }

    /// Makes the image as `image.qcow2`, with the files that it refers to, and returns its snapshots.
    fn make_in(&self, at: &Path) -> Vec<TestSnapshot> {
        let size = self.virtual_size();
        let backing = self.make_backing(at, size);
        create(at, "image.qcow2", self, size, backing);

        let mut filler = Filler::new(self, self.seed(), size);
        let mut snapshots = Vec::new();
        let mut commands = filler.compressed();
        commands.extend(filler.mixed(10));
        for number in 1..=self.snapshots {
            qemu::io(at, "qcow2", "image.qcow2", &commands);
            let name = format!("snapshot {number}");
            qemu::img(at, ["snapshot", "-c", &name, "image.qcow2"]);
            snapshots
                .push(TestSnapshot { reference: snapshot_bytes(at, "image.qcow2", &name), name });
            if number == 2 && self.version >= 3 {
                // The snapshots keep the size they had. A backing file stays as it is, and may now be too short.
                filler.size += self.cluster_size.max(64 << 10);
                qemu::img(
                    at,
                    ["resize", "-q", "-f", "qcow2", "image.qcow2", &filler.size.to_string()],
                );
            }
            commands = filler.compressed();
            commands.extend(filler.mixed(8));
        }
        qemu::io(at, "qcow2", "image.qcow2", &commands);
        snapshots
    }

    /// Any two cases differ in it.
    fn seed(&self) -> u64 {
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Makes what lies under the image and returns its name and format.
    fn make_backing(&self, at: &Path, size: u64) -> Option<(&'static str, &'static str)> {
        let plain = Case {
            compression: Compression::None,
            data_file: DataFile::Internal,
            backing: Backing::None,
            preallocation: Preallocation::Off,
            snapshots: 0,
            ..*self
        };
        // Sizes end within a cluster (where clusters are larger than a sector).
        let shorter = size * 5 / 8 / 512 * 512 + 512;
        match self.backing {
            Backing::None => return None,
            Backing::Raw => layer(at, "base.raw", &plain, size, None),
            Backing::RawShorter => layer(at, "base.raw", &plain, shorter, None),
            Backing::Qcow2 => layer(at, "base.qcow2", &plain, size, None),
            Backing::Shorter => layer(at, "base.qcow2", &plain, shorter, None),
            Backing::Longer => layer(at, "base.qcow2", &plain, size + size / 2, None),
            Backing::Chain => {
                let zlib = Case { compression: Compression::Zlib, ..plain };
                let small = Case { cluster_size: 4096, extended_l2: false, ..zlib };
                let large = Case { cluster_size: 1 << 20, ..plain };
                layer(at, "deepest.raw", &plain, shorter + size / 4, None);
                layer(at, "small.qcow2", &small, shorter, Some(("deepest.raw", "raw")));
                layer(at, "large.qcow2", &large, size + size / 3, Some(("small.qcow2", "qcow2")));
                layer(at, "base.qcow2", &zlib, size, Some(("large.qcow2", "qcow2")));
            }
        }
        Some(match self.backing {
            Backing::Raw | Backing::RawShorter => ("base.raw", "raw"),
            _ => ("base.qcow2", "qcow2"),
        })
    }
}

/// Makes a layer of a backing chain and fills it.
fn layer(at: &Path, name: &str, case: &Case, size: u64, backing: Option<(&str, &str)>) {
    let seed = case.seed() ^ name.bytes().fold(0, |sum, byte| (sum << 5) ^ u64::from(byte));
    let mut filler = Filler::new(case, seed, size);
    if name.ends_with(".raw") {
        let file = std::fs::File::create(at.join(name)).expect("a raw image");
        file.set_len(size).expect("a raw image");
        let commands: Vec<_> = (0..12).map(|_| filler.write()).collect();
        qemu::io(at, "raw", name, &commands);
    } else {
        create(at, name, case, size, backing);
        let mut commands = filler.compressed();
        commands.extend(filler.mixed(12));
        qemu::io(at, "qcow2", name, &commands);
    }
}

fn create(at: &Path, name: &str, case: &Case, size: u64, backing: Option<(&str, &str)>) {
    let mut options = vec![
        format!("cluster_size={}", case.cluster_size),
        format!("compat={}", if case.version == 2 { "0.10" } else { "1.1" }),
        format!("refcount_bits={}", case.refcount_bits),
    ];
    if case.compression == Compression::Zstd {
        options.push("compression_type=zstd".into());
    }
    if case.extended_l2 {
        options.push("extended_l2=on".into());
    }
    if case.lazy_refcounts {
        options.push("lazy_refcounts=on".into());
    }
    match case.data_file {
        DataFile::Internal => {}
        DataFile::External => options.push("data_file=image.data".into()),
        DataFile::ExternalRaw => {
            options.extend(["data_file=image.data".into(), "data_file_raw=on".into()])
        }
    }
    match case.preallocation {
        Preallocation::Off => {}
        Preallocation::Metadata => options.push("preallocation=metadata".into()),
        Preallocation::Full => options.push("preallocation=full".into()),
    }
    if let Some((file, format)) = backing {
        options.push(format!("backing_file={file}"));
        options.push(format!("backing_fmt={format}"));
    }
    qemu::img(
        at,
        ["create", "-q", "-f", "qcow2", "-o", &options.join(","), name, &size.to_string()],
    );
}

/// Chooses the commands that fill an image.
struct Filler<'a> {
    choices: Choices,
    case: &'a Case,
    size: u64,
    /// The range written last: zeroes and discards often hit it.
    last: Option<(u64, u64)>,
    /// Clusters that may be allocated.
    touched: BTreeSet<u64>,
}

impl<'a> Filler<'a> {
    fn new(case: &'a Case, seed: u64, size: u64) -> Self {
        Self { choices: Choices::new(seed), case, size, last: None, touched: BTreeSet::new() }
    }

    /// Compressed writes of whole clusters. QEMU refuses to overwrite an allocated cluster with a compressed one, so
    /// these come first, and later rounds take what nothing has touched yet.
    fn compressed(&mut self) -> Vec<String> {
        if self.case.compression == Compression::None {
            return Vec::new();
        }
        let cluster_size = self.case.cluster_size;
        let clusters = self.size.div_ceil(cluster_size);
        let mut commands = Vec::new();
        // Each stream in a host cluster counts, once more for each snapshot: four bits hold no more than 15.
        let count_max = if self.case.refcount_bits <= 4 { 4 } else { 24 };
        // Runs of neighbours, whose streams share sectors and clusters, far enough from each other to lie in several
        // L2 tables. Large clusters are few: about a third of them.
        let stride = (clusters / 6).max(3);
        for index in (0..clusters).filter(|index| index % stride < stride.div_ceil(3).min(4)) {
            if commands.len() >= count_max || !self.touched.insert(index) {
                continue;
            }
            let offset = index * cluster_size;
            let len = cluster_size.min(self.size - offset);
            let what = match self.choices.below(5) {
                // Compresses to next to nothing.
                0 => format!("-P {}", 1 + self.choices.below(255)),
                // Does not compress: QEMU stores it as it is.
                1 => format!("-s {}", pattern_file(1).display()),
                _ => {
                    let number = 2 * self.choices.below(PATTERN_FILES as u64 / 2) as usize;
                    format!("-s {}", pattern_file(number).display())
                }
            };
            commands.push(format!("write -q -c {what} {offset} {len}"));
        }
        commands
    }

    fn touch(&mut self, offset: u64, len: u64) {
        let cluster_size = self.case.cluster_size;
        self.touched.extend(offset / cluster_size..(offset + len).div_ceil(cluster_size));
    }

    /// `count` writes, zeroes and discards, most of them somewhere within clusters, and reads of nothing.
    fn mixed(&mut self, count: usize) -> Vec<String> {
        (0..count)
            .map(|index| match (index, self.choices.below(8)) {
                // The last sector of the disk, always.
                (1, _) => {
                    self.touch(self.size - 512, 512);
                    format!("write -q -P 0xee {} 512", self.size - 512)
                }
                (0, _) | (_, 0..=3) => self.write(),
                (_, 4) => self.zero("-z"),
                (_, 5) => self.zero("-z -u"),
                (_, 6) => {
                    let (offset, len) = self.old_range();
                    format!("discard -q {offset} {len}")
                }
                (_, _) => {
                    // Whole clusters, so that nothing is copied.
                    let cluster_size = self.case.cluster_size;
                    let (offset, len) = self.range();
                    let offset = offset / cluster_size * cluster_size;
                    let len = len.next_multiple_of(cluster_size).min(self.size - offset);
                    self.write_at(offset, len)
                }
            })
            .collect()
    }

    fn write(&mut self) -> String {
        let (offset, len) = self.range();
        self.write_at(offset, len)
    }

    fn write_at(&mut self, offset: u64, len: u64) -> String {
        self.last = Some((offset, len));
        self.touch(offset, len);
        if self.choices.below(4) == 0 {
            return format!("write -q -P {} {offset} {len}", self.choices.below(256));
        }
        let file = pattern_file(self.choices.below(PATTERN_FILES as u64) as usize);
        format!("write -q -s {} {offset} {len}", file.display())
    }

    fn zero(&mut self, options: &str) -> String {
        let (offset, len) = self.old_range();
        self.touch(offset, len);
        format!("write -q {options} {offset} {len}")
    }

    /// A range of sectors: from one to a few clusters, but not more than the disk holds well.
    fn range(&mut self) -> (u64, u64) {
        let longest = (self.case.cluster_size * 5).clamp(8192, 3 << 20).min(self.size / 3);
        let len = match self.choices.below(3) {
            0 => 512 * self.choices.between(1, 8),
            1 => longest / 512 * 512,
            _ => 512 * self.choices.between(1, longest / 512),
        };
        let offset = 512 * self.choices.below((self.size - len) / 512 + 1);
        (offset, len)
    }

    /// Half of the time a part of what was written last, else any range.
    fn old_range(&mut self) -> (u64, u64) {
        match self.last {
            Some((offset, len)) if self.choices.below(2) == 0 => {
                let cluster_size = self.case.cluster_size;
                let start = (offset + len / 4) / cluster_size * cluster_size;
                (start, (len / 2).next_multiple_of(cluster_size).min(self.size - start))
            }
            _ => self.range(),
        }
    }
}
