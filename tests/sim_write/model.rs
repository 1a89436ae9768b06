//! The oracle: what each granule of the guest's disk may hold, by the promises alone. It knows no engine.
//!
//! A granule (512 bytes, or fewer where requests are not aligned) is a register. Each change to it is a version with a
//! beginning and, once it can have no more effect, an end. A version is dead for a reader if another one began after its
//! end and was complete before the read began; it is dead after a power loss if another one began after its end and has
//! been flushed. Whatever is not dead is legal. A change that failed or was dropped has no end before a flush that
//! was asked for later has returned.
//!
//! Every version has a tag of four bytes, which the bytes repeat with the number of their granule: a byte from elsewhere
//! says where it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// What a granule holds. Tags from [`FIRST_WRITE`] on are those of writes.
pub type Tag = u32;

/// Zeros.
pub const ZEROS: Tag = 0;
/// What the disk held at first.
pub const FIRST: Tag = 1;
/// What the backing file holds.
pub const BACKING: Tag = 2;
/// What the snapshot held that there was at first.
pub const KEPT: Tag = 3;
/// What the other file holds that can be the backing file.
pub const OTHER: Tag = 4;
/// The first tag of a write.
pub const FIRST_WRITE: Tag = 16;

/// The bytes that belong to tags.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The length of a granule in bytes, a divisor of 512.
    pub granule: usize,
    /// What the disk held at first; zeros behind that.
    pub first: Arc<[u8]>,
    /// What the backing file holds; zeros behind that.
    pub backing: Arc<[u8]>,
    /// What the snapshot held that there was at first; zeros behind that.
    pub kept: Arc<[u8]>,
    /// What the other one holds.
    pub other: Arc<[u8]>,
}

impl Contents {
    /// Fills `bytes`, which are granule `at`, with what `tag` stands for.
    pub fn fill(&self, tag: Tag, at: usize, bytes: &mut [u8]) {
        let from = |all: &[u8], bytes: &mut [u8]| {
            let start = (at * self.granule).min(all.len());
            let there = &all[start..all.len().min(start + bytes.len())];
            bytes[..there.len()].copy_from_slice(there);
            bytes[there.len()..].fill(0);
        };
        match tag {
            ZEROS => bytes.fill(0),
            FIRST => from(&self.first, bytes),
            BACKING => from(&self.backing, bytes),
            KEPT => from(&self.kept, bytes),
            OTHER => from(&self.other, bytes),
            _ => {
                let name = u64::from(tag) << 32 | at as u64;
                let mut word = name;
                for chunk in bytes.chunks_mut(8) {
                    chunk.copy_from_slice(&word.to_be_bytes());
                    if tag % 4 == 3 {
                        // Some do not compress.
                        word =
                            (word ^ name).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ 1;
                    }
                }
            }
        }
    }

    /// Whether `bytes`, which are granule `at`, are what `tag` stands for.
    pub fn is(&self, tag: Tag, at: usize, bytes: &[u8]) -> bool {
        let mut expected = [0; 512];
        self.fill(tag, at, &mut expected[..bytes.len()]);
        expected[..bytes.len()] == *bytes
    }

    /// The bytes of granules `from..to`.
    pub fn bytes(&self, tag: Tag, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = vec![0; (to - from) * self.granule];
        for (at, granule) in (from..).zip(bytes.chunks_mut(self.granule)) {
            self.fill(tag, at, granule);
        }
        bytes
    }

    /// What bytes look like, in words.
    fn describe(&self, bytes: &[u8]) -> String {
        if bytes.iter().all(|&byte| byte == 0) {
            return "zeros".into();
        }
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let (tag, at) = (word(0), word(4) as usize);
        if tag >= FIRST_WRITE && self.is(tag, at, bytes) {
            return format!("write {tag} of granule {at}");
        }
        for (tag, file, name) in [
            (FIRST, &self.first, "the disk at first"),
            (BACKING, &self.backing, "the backing file"),
            (KEPT, &self.kept, "the snapshot"),
            (OTHER, &self.other, "the other file"),
        ] {
            let found = (0..file.len() / self.granule).find(|&at| self.is(tag, at, bytes));
            if let Some(at) = found {
                return format!("granule {at} of {name}");
            }
        }
        format!("{:02x?}", &bytes[..32.min(bytes.len())])
    }
}

/// A change to a granule.
#[derive(Debug, Clone)]
struct Version {
    change: u32,
    value: Tag,
    /// What it may be instead.
    or: Option<Tag>,
    /// It may have no effect at all.
    weak: bool,
    /// When it was read first.
    seen: Option<u64>,
}

/// What is known of a change as a whole.
#[derive(Debug, Clone, Default)]
struct Life {
    started: u64,
    completed: Option<u64>,
    given_up: Option<u64>,
    /// From here on it has no more effect.
    ended: Option<u64>,
    /// Completed, and flushed since.
    durable: bool,
    what: String,
}

/// What a change does to some granules.
#[derive(Debug, Clone, Copy)]
pub struct Effect {
    /// The granules.
    pub from: usize,
    /// Behind the last one.
    pub to: usize,
    /// What they hold then.
    pub value: Tag,
    /// Or that.
    pub or: Option<Tag>,
    /// Or what they held before.
    pub weak: bool,
}

/// The model of a disk.
#[derive(Debug, Clone)]
pub struct Model {
    pub contents: Contents,
    /// What was read stays read: not so where flushes fail and lose.
    pub monotonic: bool,
    /// How many granules, beginning at a multiple of that, may be written together when one of them is.
    pub copied_together: usize,
    /// A flush has failed, and may have lost what it should have made durable: where that is, nobody knows what is read.
    lost: bool,
    time: u64,
    last_change: u32,
    lives: BTreeMap<u32, Life>,
    granules: Vec<Vec<Version>>,
    /// The size in bytes, as a change that it came with.
    sizes: Vec<(u32, u64)>,
    /// When the reads in flight began.
    readers: BTreeSet<u64>,
}

impl Model {
    /// A disk of `size` bytes that is as it was at first, and never has more than `size_max`.
    pub fn new(contents: Contents, size: u64, size_max: u64) -> Self {
        let granules = usize::try_from(size_max).unwrap() / contents.granule;
        let mut model = Self {
            contents,
            monotonic: true,
            copied_together: 1,
            lost: false,
            time: 0,
            last_change: FIRST_WRITE - 1,
            lives: BTreeMap::new(),
            granules: vec![Vec::new(); granules],
            sizes: Vec::new(),
            readers: BTreeSet::new(),
        };
        let end = usize::try_from(size).unwrap() / model.contents.granule;
        model.reset(size, |at| if at < end { FIRST } else { ZEROS });
        model
    }

    /// How many granules there may be.
    pub fn granules(&self) -> usize {
        self.granules.len()
    }

    fn reset(&mut self, size: u64, value: impl Fn(usize) -> Tag) {
        self.last_change += 1;
        let now = self.now();
        let life = Life {
            started: now,
            completed: Some(now),
            given_up: None,
            ended: Some(now),
            durable: true,
            what: "the beginning".into(),
        };
        self.lives = BTreeMap::from([(self.last_change, life)]);
        self.sizes = vec![(self.last_change, size)];
        self.readers.clear();
        self.lost = false;
        let change = self.last_change;
        for (at, versions) in self.granules.iter_mut().enumerate() {
            let value = value(at);
            *versions = vec![Version { change, value, or: None, weak: false, seen: None }];
        }
    }

    /// From now on the disk holds `bytes` durably, and what lies below it may be something else than before.
    pub fn begin(&mut self, contents: Contents) {
        let end = contents.first.len() / contents.granule;
        self.contents = contents;
        let size = self.contents.first.len() as u64;
        self.reset(size, |at| if at < end { FIRST } else { ZEROS });
    }

    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A change begins. Returns its number, which is the tag of its bytes.
    pub fn start(&mut self, what: &str, effects: impl Fn(Tag) -> Vec<Effect>) -> u32 {
        self.last_change += 1;
        let change = self.last_change;
        let started = self.now();
        self.lives.insert(change, Life { started, what: what.into(), ..Life::default() });
        for effect in effects(change) {
            let Effect { value, or, weak, .. } = effect;
            let to = effect.to.min(self.granules.len());
            for versions in &mut self.granules[effect.from.min(to)..to] {
                versions.push(Version { change, value, or, weak, seen: None });
            }
        }
        change
    }

    /// A change begins that makes each granule what `tags` say, and zeros, or what lies below, those behind them.
    pub fn start_restoring(&mut self, what: &str, tags: &[Tag]) -> u32 {
        let change = self.start(what, |_| Vec::new());
        for (at, versions) in self.granules.iter_mut().enumerate() {
            let (value, or) = match tags.get(at) {
                Some(tag) => (*tag, None),
                None => (ZEROS, Some(BACKING)),
            };
            versions.push(Version { change, value, or, weak: false, seen: None });
        }
        change
    }

    /// The change is one of size, too.
    pub fn sizing(&mut self, change: u32, size: u64) {
        self.sizes.push((change, size));
    }

    /// It returned, well.
    pub fn complete(&mut self, change: u32) {
        let now = self.now();
        if let Some(life) = self.lives.get_mut(&change) {
            (life.completed, life.ended) = (Some(now), Some(now));
        }
    }

    /// It needs no flush.
    pub fn is_durable(&mut self, change: u32) {
        if let Some(life) = self.lives.get_mut(&change) {
            life.durable = true;
        }
    }

    /// It failed or was dropped.
    pub fn give_up(&mut self, change: u32) {
        let now = self.now();
        if let Some(life) = self.lives.get_mut(&change) {
            life.given_up = Some(now);
        }
    }

    /// A flush is asked for.
    pub fn ask(&mut self) -> u64 {
        self.now()
    }

    /// A flush that was asked for at `asked` has succeeded.
    pub fn flushed(&mut self, asked: u64) {
        let now = self.now();
        for life in self.lives.values_mut() {
            if life.given_up.is_some_and(|at| at < asked) {
                life.ended.get_or_insert(now);
            }
            life.durable |= life.completed.is_some_and(|at| at < asked);
        }
        let oldest = self.readers.first().copied().unwrap_or(u64::MAX);
        let lives = &self.lives;
        for versions in &mut self.granules {
            let bound = bound(versions, lives, |version, life| {
                !version.weak && life.durable && life.completed.is_some_and(|at| at < oldest)
            });
            versions.retain(|version| is_alive(&lives[&version.change], bound));
        }
        let newest = self.sizes.iter().map(|(change, _)| &lives[change]);
        let bound = newest.filter(|life| life.durable).map(|life| life.started).max().unwrap_or(0);
        self.sizes.retain(|(change, _)| is_alive(&lives[change], bound));
        let used: BTreeSet<u32> =
            self.granules.iter().flatten().map(|version| version.change).collect();
        let sizes: BTreeSet<u32> = self.sizes.iter().map(|&(change, _)| change).collect();
        self.lives.retain(|change, life| {
            used.contains(change) || sizes.contains(change) || life.completed.is_none()
        });
    }

    /// A flush has failed: nothing that was volatile may be trusted any more.
    pub fn flush_failed(&mut self) {
        let now = self.now();
        self.lost |= !self.monotonic;
        for life in self.lives.values_mut().filter(|life| !life.durable) {
            if life.completed.take().is_some() {
                life.given_up = Some(now);
                life.ended = None;
            }
        }
        for version in self.granules.iter_mut().flatten() {
            version.seen = None;
        }
    }

    /// A read begins.
    pub fn start_read(&mut self) -> u64 {
        let now = self.now();
        self.readers.insert(now);
        now
    }

    /// A read that came to nothing.
    pub fn end_read(&mut self, started: u64) {
        self.readers.remove(&started);
    }

    /// A read that began at `started` has given `bytes` from granule `from` on.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check_read(&mut self, started: u64, from: usize, bytes: &[u8]) -> Result<(), String> {
        self.readers.remove(&started);
        let now = self.now();
        for (at, bytes) in (from..).zip(bytes.chunks(self.contents.granule)) {
            let versions = &self.granules[at];
            let bound = bound(versions, &self.lives, |version, life| {
                let completed = !version.weak && life.completed.is_some_and(|at| at < started);
                completed || version.seen.is_some_and(|at| at < started)
            });
            let legal = |version: &&Version| {
                is_alive(&self.lives[&version.change], bound) && self.is_value(version, at, bytes)
            };
            if self.lost && self.may_be_lost(at) {
                continue;
            }
            let mut found = versions.iter().filter(legal);
            let Some(first) = found.next() else { return Err(self.illegal("read", at, bytes)) };
            let (change, alone) = (first.change, found.next().is_none());
            if self.monotonic && alone {
                let versions = &mut self.granules[at];
                let seen = versions.iter_mut().find(|version| version.change == change);
                if let Some(version) = seen.filter(|version| !version.weak && version.or.is_none())
                {
                    version.seen.get_or_insert(now);
                }
            }
        }
        Ok(())
    }

    /// What `bytes`, which are all of a disk, hold if a read that began at `started` may have given them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read_tags(&self, what: &str, started: u64, bytes: &[u8]) -> Result<Vec<Tag>, String> {
        let mut tags = Vec::new();
        for (at, bytes) in bytes.chunks(self.contents.granule).enumerate() {
            let versions = &self.granules[at];
            let bound = bound(versions, &self.lives, |version, life| {
                let completed = !version.weak && life.completed.is_some_and(|at| at < started);
                completed || version.seen.is_some_and(|at| at < started)
            });
            let legal = |version: &&Version| {
                is_alive(&self.lives[&version.change], bound) && self.is_value(version, at, bytes)
            };
            let lost = self.lost && self.may_be_lost(at);
            let version = match versions.iter().find(legal) {
                Some(version) => version,
                None if lost => match versions.iter().find(|it| self.is_value(it, at, bytes)) {
                    Some(version) => version,
                    None => return Err(self.illegal(what, at, bytes)),
                },
                None => return Err(self.illegal(what, at, bytes)),
            };
            tags.push(match version.or {
                Some(or) if !self.contents.is(version.value, at, bytes) => or,
                _ => version.value,
            });
        }
        Ok(tags)
    }

    /// Asks whether `bytes`, which are all of a disk, hold `tags`.
    ///
    /// # Errors
    /// Where they do not.
    pub fn must_be(&self, what: &str, tags: &[Tag], bytes: &[u8]) -> Result<(), String> {
        let granule = self.contents.granule;
        if bytes.len() != tags.len() * granule {
            return Err(format!("{what} has {} bytes", bytes.len()));
        }
        for (at, (tag, bytes)) in tags.iter().zip(bytes.chunks(granule)).enumerate() {
            if !self.contents.is(*tag, at, bytes) {
                let held = self.contents.describe(bytes);
                return Err(format!("{what}: granule {at} holds {held} instead of {tag}"));
            }
        }
        Ok(())
    }

    /// Whether a flush has failed, and may have lost something.
    pub fn has_lost(&self) -> bool {
        self.lost
    }

    /// Whether a granule, or one that was written together with it, has a version that is not durable.
    fn may_be_lost(&self, at: usize) -> bool {
        let start = at / self.copied_together * self.copied_together;
        let together = &self.granules[start..self.granules.len().min(start + self.copied_together)];
        let doubtful = |version: &Version| !self.lives[&version.change].durable;
        together.iter().flatten().any(doubtful)
    }

    fn is_value(&self, version: &Version, at: usize, bytes: &[u8]) -> bool {
        self.contents.is(version.value, at, bytes)
            || version.or.is_some_and(|or| self.contents.is(or, at, bytes))
    }

    /// The disk has lost power, and `bytes` are what all of it reads as.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check_crash(&self, bytes: &[u8]) -> Result<(), String> {
        self.left_after_crash(bytes).map(drop)
    }

    /// As [`Self::check_crash`], and from now on the disk holds these bytes durably.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn crash(&mut self, bytes: &[u8]) -> Result<(), String> {
        let values = self.left_after_crash(bytes)?;
        self.reset(bytes.len() as u64, |at| values.get(at).copied().unwrap_or(ZEROS));
        Ok(())
    }

    fn left_after_crash(&self, bytes: &[u8]) -> Result<Vec<Tag>, String> {
        let durable = |(change, _): &&(u32, u64)| self.lives[change].durable;
        let newest =
            self.sizes.iter().filter(durable).map(|(change, _)| self.lives[change].started);
        let newest = newest.max().unwrap_or(0);
        let legal = |(change, size): &&(u32, u64)| {
            is_alive(&self.lives[change], newest) && *size == bytes.len() as u64
        };
        if !self.sizes.iter().any(|size| legal(&size)) {
            return Err(format!(
                "{} bytes long, which it may not be: {:?}",
                bytes.len(),
                self.sizes
            ));
        }
        let mut values = Vec::new();
        for (at, bytes) in bytes.chunks(self.contents.granule).enumerate() {
            let versions = &self.granules[at];
            let bound = bound(versions, &self.lives, |version, life| !version.weak && life.durable);
            let legal = |version: &&Version| {
                is_alive(&self.lives[&version.change], bound) && self.is_value(version, at, bytes)
            };
            let Some(version) = versions.iter().find(legal) else {
                return Err(self.illegal("after a power loss", at, bytes));
            };
            values.push(match version.or {
                Some(or) if !self.contents.is(version.value, at, bytes) => or,
                _ => version.value,
            });
        }
        Ok(values)
    }

    fn illegal(&self, what: &str, at: usize, bytes: &[u8]) -> String {
        let mut text = format!(
            "{what}: granule {at} at {:#x} holds {}, which it may not. Its versions:",
            at * self.contents.granule,
            self.contents.describe(bytes)
        );
        for version in &self.granules[at] {
            let life = &self.lives[&version.change];
            let Life { what, started, completed, given_up, ended, durable } = life;
            let _ = write!(
                text,
                "\n  {} by {} ({what}), started {started}, completed {completed:?}, given up {given_up:?}, ended \
                 {ended:?}, durable {durable}",
                version.value, version.change
            );
            if let Some(seen) = version.seen {
                let _ = write!(text, ", read at {seen}");
            }
        }
        text
    }
}

/// When the newest version began of those that `counts` says.
fn bound(
    versions: &[Version],
    lives: &BTreeMap<u32, Life>,
    counts: impl Fn(&Version, &Life) -> bool,
) -> u64 {
    let counting = versions.iter().filter_map(|version| {
        let life = &lives[&version.change];
        counts(version, life).then_some(life.started)
    });
    counting.max().unwrap_or(0)
}

/// Whether something can still hold that has this life, if something that began at `bound` came after it for good.
fn is_alive(life: &Life, bound: u64) -> bool {
    life.ended.is_none_or(|ended| ended >= bound)
}
