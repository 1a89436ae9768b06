//! The state of a simulated disk: versions of every sector and of the length. Knows neither time nor requests.
//!
//! Bytes past the length that is read are zeros in every sector's latest version, so that growing shows zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::random::Random;
use super::versions::{Loss, Versions};
use crate::sync::Arc;

/// What is written as a whole, or not at all.
pub(super) const SECTOR_LEN: usize = 512;
const SECTOR: u64 = SECTOR_LEN as u64;

/// A disk. `change` in its methods numbers the change that is made.
#[derive(Clone)]
pub(super) struct Disk {
    /// What it began with: durable where `sectors` says nothing.
    base: Arc<[u8]>,
    /// By index, what was ever written to.
    sectors: BTreeMap<u64, Versions<Content>>,
    /// Those that have volatile versions.
    volatile: BTreeSet<u64>,
    len: Versions<u64>,
}

/// What a sector holds.
#[derive(Clone)]
enum Content {
    Zeros,
    Bytes(Arc<[u8; SECTOR_LEN]>),
}

/// A part of a request that lies in one sector.
struct Part {
    sector: u64,
    /// Where in the sector.
    within: Range<usize>,
    /// Where in the request, from here on.
    from: u64,
}

impl Disk {
    /// A disk on which `base` is durable.
    pub(super) fn new(base: Arc<[u8]>) -> Self {
        let len = Versions::new(base.len() as u64);
        Self { base, sectors: BTreeMap::new(), volatile: BTreeSet::new(), len }
    }

    pub(super) fn len(&self) -> u64 {
        *self.len.latest()
    }

    /// Reads what was written last. Past the end are zeros.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        let len = self.len().saturating_sub(offset);
        // What does not fit is longer than any buffer.
        let inside = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        let (buf, past_the_end) = buf.split_at_mut(inside);
        past_the_end.fill(0);
        for part in parts(offset, buf.len() as u64) {
            // OK to cast: an offset in `buf`.
            #[allow(clippy::cast_possible_truncation)]
            let from = part.from as usize;
            let to = &mut buf[from..from + part.within.len()];
            match self.sectors.get(&part.sector) {
                Some(versions) => versions.latest().read(part.within, to),
                None => to.copy_from_slice(&self.base_sector(part.sector)[part.within]),
            }
        }
    }

    /// Writes `bytes`. With `torn` only some of the sectors.
    pub(super) fn write(
        &mut self,
        change: u64,
        offset: u64,
        bytes: &[u8],
        mut torn: Option<&mut Random>,
    ) {
        let mut end = 0;
        for part in parts(offset, bytes.len() as u64) {
            if torn.as_mut().is_some_and(|random| random.toss()) {
                continue;
            }
            let mut sector = self.sector(part.sector);
            let len = part.within.len();
            // OK to cast: an offset in `bytes`.
            #[allow(clippy::cast_possible_truncation)]
            let from = part.from as usize;
            sector[part.within].copy_from_slice(&bytes[from..from + len]);
            self.push(change, part.sector, Content::Bytes(Arc::new(sector)));
            end = offset + part.from + len as u64;
        }
        self.extend(change, end);
    }

    /// Zeroes a range, extending the disk. With `torn` only some of the sectors.
    pub(super) fn zero(
        &mut self,
        change: u64,
        offset: u64,
        len: u64,
        mut torn: Option<&mut Random>,
    ) {
        let whole = torn.is_none();
        for part in self.parts_in_use(offset, len) {
            if torn.as_mut().is_none_or(|random| random.toss()) {
                self.zero_part(change, part);
            }
        }
        if whole || torn.is_some_and(Random::toss) {
            self.extend(change, offset + len);
        }
    }

    /// Gives up whole sectors: each keeps what it has, or becomes zeros or rubbish, and a power loss may yet choose
    /// again. With `torn` only some of them.
    pub(super) fn discard(
        &mut self,
        change: u64,
        offset: u64,
        len: u64,
        random: &mut Random,
        torn: bool,
    ) {
        let end = (offset + len).min(self.len());
        for part in self.parts_in_use(offset, end.saturating_sub(offset)) {
            if part.within.len() < SECTOR_LEN || (torn && random.toss()) {
                continue;
            }
            let old = Content::Bytes(Arc::new(self.sector(part.sector)));
            let word = random.bits().to_ne_bytes();
            let rubbish = Content::Bytes(Arc::new(std::array::from_fn(|at| word[at % 8])));
            let mut fates = vec![old, Content::Zeros, rubbish];
            while !fates.is_empty() {
                let fate = fates.swap_remove(random.index(fates.len()));
                self.push(change, part.sector, fate);
            }
        }
    }

    /// Sets the length.
    pub(super) fn set_len(&mut self, change: u64, len: u64) {
        let old = self.len();
        if len < old {
            for part in self.parts_in_use(len, old - len) {
                self.zero_part(change, part);
            }
        }
        if len != old {
            self.len.push(change, len);
        }
    }

    /// Makes durable the changes that `covered` names, and by chance others.
    pub(super) fn flush(&mut self, covered: &impl Fn(u64) -> bool, random: &mut Random) {
        self.len.flush(covered, random);
        self.settle(|versions| versions.flush(covered, random));
    }

    /// A flush failed and loses, sector by sector, the changes that `covered` names: they are taken back, or can be
    /// read until the power goes.
    pub(super) fn lose(&mut self, covered: &impl Fn(u64) -> bool, random: &mut Random) {
        // The length that is read does not change behind anybody's back.
        self.len.forget(covered);
        self.settle(|versions| {
            if random.toss() { versions.revert(covered) } else { versions.forget(covered) }
        });
    }

    /// How many outcomes a power loss can have.
    pub(super) fn outcomes(&self) -> u64 {
        let sectors = self.volatile.iter().filter_map(|sector| self.sectors.get(sector));
        sectors.fold(self.len.count(), |all, sector| all.saturating_mul(sector.count()))
    }

    /// The outcome of a power loss with that number, below [`Self::outcomes`]; all of it durable.
    pub(super) fn outcome(&self, number: u64) -> Self {
        let mut left = self.clone();
        let len = self.len.outcome(number % self.len.count());
        let mut rest = number / self.len.count();
        for sector in &self.volatile {
            if let Some(versions) = left.sectors.get_mut(sector) {
                let content = versions.outcome(rest % versions.count());
                rest /= versions.count();
                *versions = Versions::new(content);
            }
        }
        left.volatile.clear();
        left.cut(len);
        left
    }

    /// What is left after a power loss, all of it durable. `noted` hears which versions were chosen.
    pub(super) fn after_power_loss(
        &self,
        random: &mut Random,
        mut noted: impl FnMut(u64, usize),
    ) -> Self {
        let loss = match random.below(4) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Some,
        };
        let (len, version) = self.len.after(loss, random);
        noted(u64::MAX, version);
        let mut left = self.clone();
        for &sector in &self.volatile {
            if let Some(versions) = left.sectors.get_mut(&sector) {
                let (content, version) = versions.after(loss, random);
                noted(sector, version);
                *versions = Versions::new(content);
            }
        }
        left.volatile.clear();
        left.cut(len);
        left
    }

    /// Makes `len` the durable length of a disk of durable sectors.
    fn cut(&mut self, len: u64) {
        // Nothing of what lies past the new end may come back when the disk grows.
        let end = self.base.len() as u64;
        let last = self.sectors.last_key_value();
        let end = last.map_or(end, |(last, _)| end.max((last + 1) * SECTOR));
        for part in self.parts_in_use(len, end.saturating_sub(len)) {
            let content = self.zeroed(&part);
            self.sectors.insert(part.sector, Versions::new(content));
        }
        self.len = Versions::new(len);
    }

    fn settle(&mut self, mut each: impl FnMut(&mut Versions<Content>)) {
        let sectors = &mut self.sectors;
        self.volatile.retain(|sector| match sectors.get_mut(sector) {
            Some(versions) => {
                each(versions);
                !versions.is_durable()
            }
            None => false,
        });
    }

    fn extend(&mut self, change: u64, end: u64) {
        // A change that lies within what another one has made of the length needs that length as well: when it is durable,
        // it is there, whatever becomes of the other one.
        let len = self.len().max(end);
        if self.len.any(|version| *version < end) {
            self.len.push(change, len);
        }
    }

    fn zero_part(&mut self, change: u64, part: Part) {
        let content = self.zeroed(&part);
        self.push(change, part.sector, content);
    }

    /// What the part's sector holds when the part is zeros.
    fn zeroed(&self, part: &Part) -> Content {
        if part.within.len() == SECTOR_LEN {
            return Content::Zeros;
        }
        let mut sector = self.sector(part.sector);
        sector[part.within.clone()].fill(0);
        Content::Bytes(Arc::new(sector))
    }

    fn push(&mut self, change: u64, sector: u64, content: Content) {
        if !self.sectors.contains_key(&sector) {
            let durable = if sector < self.base_sectors() {
                Content::Bytes(Arc::new(self.base_sector(sector)))
            } else {
                Content::Zeros
            };
            self.sectors.insert(sector, Versions::new(durable));
        }
        if let Some(versions) = self.sectors.get_mut(&sector) {
            versions.push(change, content);
            self.volatile.insert(sector);
        }
    }

    /// What a sector holds now.
    fn sector(&self, sector: u64) -> [u8; SECTOR_LEN] {
        let Some(versions) = self.sectors.get(&sector) else { return self.base_sector(sector) };
        let mut bytes = [0; SECTOR_LEN];
        versions.latest().read(0..SECTOR_LEN, &mut bytes);
        bytes
    }

    fn base_sectors(&self) -> u64 {
        (self.base.len() as u64).div_ceil(SECTOR)
    }

    fn base_sector(&self, sector: u64) -> [u8; SECTOR_LEN] {
        let mut bytes = [0; SECTOR_LEN];
        if sector < self.base_sectors() {
            // OK to cast: below the length of a slice.
            #[allow(clippy::cast_possible_truncation)]
            let start = (sector * SECTOR) as usize;
            let there = &self.base[start..self.base.len().min(start + SECTOR_LEN)];
            bytes[..there.len()].copy_from_slice(there);
        }
        bytes
    }

    /// The parts of a range that may hold anything but zeros: a sparse disk is zeroed in no time.
    fn parts_in_use(&self, offset: u64, len: u64) -> Vec<Part> {
        let end = offset + len;
        let all = offset / SECTOR..end.div_ceil(SECTOR);
        if len == 0 {
            return Vec::new();
        }
        let base = all.start..all.end.min(self.base_sectors());
        let known = self.sectors.range(all).map(|(&sector, _)| sector);
        let sectors: BTreeSet<u64> = base.chain(known).collect();
        let part = |sector| Part::of(sector, offset, end);
        sectors.into_iter().map(part).collect()
    }
}

impl Content {
    fn read(&self, within: Range<usize>, to: &mut [u8]) {
        match self {
            Self::Zeros => to.fill(0),
            Self::Bytes(bytes) => to.copy_from_slice(&bytes[within]),
        }
    }
}

impl Part {
    /// What `offset..end` has of a sector that it touches.
    fn of(sector: u64, offset: u64, end: u64) -> Self {
        let start = (sector * SECTOR).max(offset);
        let stop = ((sector + 1) * SECTOR).min(end);
        // OK to cast: at most the length of a sector.
        #[allow(clippy::cast_possible_truncation)]
        let at = |offset: u64| (offset - sector * SECTOR) as usize;
        Self { sector, within: at(start)..at(stop), from: start - offset }
    }
}

/// The parts of `len` bytes from `offset` on.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = offset + len;
    let sectors = if len == 0 { 0..0 } else { offset / SECTOR..end.div_ceil(SECTOR) };
    sectors.map(move |sector| Part::of(sector, offset, end))
}
