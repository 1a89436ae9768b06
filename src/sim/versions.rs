//! What one place of a disk may hold after a power loss: what is durable, and what was written since.

use super::random::Random;

/// A durable value and the volatile ones that came after it, oldest first. The last one is what is read.
#[derive(Debug, Clone)]
pub(super) struct Versions<T> {
    durable: T,
    volatile: Vec<Version<T>>,
}

#[derive(Debug, Clone)]
struct Version<T> {
    /// Which change wrote it.
    change: u64,
    value: T,
    /// A flush failed and forgot it: it can be read, and no flush makes it durable any more.
    forgotten: bool,
}

/// What a power loss does on the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Everything volatile is lost.
    All,
    /// Nothing is lost.
    Nothing,
    /// Each place goes its own way.
    Some,
}

impl<T: Clone> Versions<T> {
    pub(super) fn new(durable: T) -> Self {
        Self { durable, volatile: Vec::new() }
    }

    /// What is read.
    pub(super) fn latest(&self) -> &T {
        self.volatile.last().map_or(&self.durable, |version| &version.value)
    }

    /// Whether everything is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.volatile.is_empty()
    }

    /// Whether a power loss may leave such a value.
    pub(super) fn any(&self, is: impl Fn(&T) -> bool) -> bool {
        is(&self.durable) || self.volatile.iter().any(|version| is(&version.value))
    }

    pub(super) fn push(&mut self, change: u64, value: T) {
        self.volatile.push(Version { change, value, forgotten: false });
    }

    /// Makes durable what `covered` says, by the number of the change, and by chance what came after that.
    pub(super) fn flush(&mut self, covered: &impl Fn(u64) -> bool, random: &mut Random) {
        let last = self.volatile.iter().rposition(|it| !it.forgotten && covered(it.change));
        let least = last.map_or(0, |index| index + 1);
        let mut count = least;
        for (index, version) in self.volatile.iter().enumerate().skip(least) {
            if !version.forgotten && random.toss() {
                count = index + 1;
            }
        }
        if let Some(version) = self.volatile.drain(..count).next_back() {
            self.durable = version.value;
        }
    }

    /// Forgets what `covered` says: a flush of it failed. It stays readable.
    pub(super) fn forget(&mut self, covered: &impl Fn(u64) -> bool) {
        for version in &mut self.volatile {
            version.forgotten |= covered(version.change);
        }
    }

    /// Takes back what `covered` says: a flush of it failed.
    pub(super) fn revert(&mut self, covered: &impl Fn(u64) -> bool) {
        self.volatile.retain(|version| !covered(version.change));
    }

    /// How many outcomes a power loss can have.
    pub(super) fn count(&self) -> u64 {
        self.volatile.len() as u64 + 1
    }

    /// The outcome with that number, below [`Self::count`]: 0 is the durable version.
    pub(super) fn outcome(&self, number: u64) -> T {
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        let volatile = index.and_then(|index| self.volatile.get(index));
        volatile.map_or(&self.durable, |version| &version.value).clone()
    }

    /// What is left after a power loss, and which version that is: 0 for the durable one.
    pub(super) fn after(&self, loss: Loss, random: &mut Random) -> (T, usize) {
        let index = match loss {
            Loss::All => 0,
            Loss::Nothing => self.volatile.len(),
            Loss::Some => random.index(self.volatile.len() + 1),
        };
        let value = match index.checked_sub(1) {
            None => &self.durable,
            Some(index) => &self.volatile[index].value,
        };
        (value.clone(), index)
    }
}
