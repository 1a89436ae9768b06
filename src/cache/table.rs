//! The cache: stripes, the budget over them, loading and passes.
//!
//! Locks: a stripe, then the list of dirty slices; those of the scratch buffers and of what was swept are leaves. No two stripes are ever held together,
//! no lock over an await.

use std::collections::BTreeSet;
use std::io;

use super::mutant::{self, Mutant};
use super::scratch::Scratch;
use super::slot::{HEAT_USED, Load, Pin, Slice};
use super::statistics::CacheStatistics;
use super::stripe::{Lookup, Stripe};
use super::swept::{Batch, Swept};
use super::trim::Trim;
use super::write_back::WriteBack;
use crate::format::HostOffset;
use crate::storage::{Buf, Storage};
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering, Padded};

/// The shortest slice, in bytes: the smallest cluster.
pub const ENTRY_BYTES_MIN: u64 = 512;

/// The longest slice, in bytes: the largest cluster.
pub const ENTRY_BYTES_MAX: u64 = 2 << 20;

/// A stripe for each so many slices of the budget.
const SLICES_PER_STRIPE: u64 = 8;

/// More stripes than that do not make collisions of threads noticeably rarer.
const STRIPES_MAX: u64 = 128;

/// A step of a pass ends with the stripe in which it has looked at so many slots.
const STEP_SLOTS_MAX: usize = 2048;

/// A step of a pass ends when it has freed so many bytes: the allocator and the kernel take longer to take memory back than a sweep
/// takes to find it.
const STEP_FREED_BYTES_MAX: u64 = 512 << 10;

/// What a pass has to do next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// To sweep, from stripe number `stripe` on.
    Sweep { stripe: usize },
    /// To sort what was swept.
    Sort,
    /// To free it.
    Free,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Sweep { stripe: 0 }
    }
}

/// Slices of tables, keyed by host offset; see the [module](super).
#[derive(Debug)]
pub struct TableCache {
    /// The length of a slice. As the next one it changes while nobody uses the cache: [`Self::reshape`].
    entry_bytes: AtomicU64,
    slices_max: AtomicU64,
    stripes: Box<[Padded<Mutex<Stripe>>]>,
    scratch: Scratch,
    swept: Swept,
    trim: Trim,
    /// Slices held, those about to be, and those that were swept and are not freed.
    slices: Padded<AtomicU64>,
    /// The stripe that eviction is in.
    hand: AtomicUsize,
    passes: AtomicU64,
    /// The offsets of the slices that must be written, in their order on disk.
    dirty: Mutex<BTreeSet<u64>>,
    /// Slices that must be written or are being written.
    unwritten: AtomicU64,
}

impl TableCache {
    /// A cache of at most `budget_bytes`, but at least one slice, in slices of `entry_bytes`, a power of two from
    /// [`ENTRY_BYTES_MIN`] to [`ENTRY_BYTES_MAX`]. It takes memory as it fills.
    ///
    /// # Panics
    /// If `entry_bytes` is not such a power of two.
    #[must_use]
    pub fn new(budget_bytes: u64, entry_bytes: u64) -> Self {
        Self::new_to_grow(budget_bytes, entry_bytes, budget_bytes)
    }

    /// As [`Self::new`], with as many locks as suit a budget of `grown_bytes`, if that is more: [`Self::reshape`] may ask
    /// for it.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn new_to_grow(budget_bytes: u64, entry_bytes: u64, grown_bytes: u64) -> Self {
        must_be_len(entry_bytes);
        let slices_max = (budget_bytes / entry_bytes).max(1);
        let stripes = slices_max.max(grown_bytes / entry_bytes) / SLICES_PER_STRIPE;
        let stripes = stripes.clamp(1, STRIPES_MAX).next_power_of_two();
        // A scan empties a stripe while the hand is in it, and fills those before twice as full as they were.
        let share = (slices_max / stripes).saturating_mul(3) + 16;
        // OK to cast: at most ENTRY_BYTES_MAX.
        #[allow(clippy::cast_possible_truncation)]
        let scratch = Scratch::new(entry_bytes as usize);
        Self {
            entry_bytes: AtomicU64::new(entry_bytes),
            slices_max: AtomicU64::new(slices_max),
            stripes: (0..stripes).map(|_| Padded(Mutex::new(Stripe::new(share)))).collect(),
            scratch,
            swept: Swept::default(),
            trim: Trim::default(),
            slices: Padded::default(),
            hand: AtomicUsize::new(0),
            passes: AtomicU64::new(0),
            dirty: Mutex::default(),
            unwritten: AtomicU64::new(0),
        }
    }

    /// The length of a slice, in bytes.
    #[must_use]
    #[inline]
    pub fn entry_bytes(&self) -> u64 {
        self.entry_bytes.load(Ordering::Relaxed)
    }

    /// Gives the cache another budget, as for [`Self::new`], and drops what does not fit. Slices of another length are
    /// other slices: if `entry_bytes` changes, all are dropped.
    ///
    /// Synchronous. Nothing may be unwritten, and if slices change their length, nobody may use the cache meanwhile; whoever
    /// uses it afterwards must come behind this call.
    ///
    /// # Panics
    /// If `entry_bytes` is not the length of a slice, or something is unwritten.
    pub fn reshape(&self, budget_bytes: u64, entry_bytes: u64) {
        must_be_len(entry_bytes);
        assert_eq!(self.unwritten_bytes(), 0, "a cache that is reshaped has unwritten slices");
        let slices_max = (budget_bytes / entry_bytes).max(1);
        if entry_bytes != self.entry_bytes() {
            self.clear();
            self.entry_bytes.store(entry_bytes, Ordering::Relaxed);
            // OK to cast: at most ENTRY_BYTES_MAX.
            #[allow(clippy::cast_possible_truncation)]
            self.scratch.set_len(entry_bytes as usize);
        }
        self.slices_max.store(slices_max, Ordering::Relaxed);
        while self.free_some() > 0 {}
        while self.slices.0.load(Ordering::Relaxed) > slices_max {
            // What is pinned goes with the next misses.
            if self.evict().is_none() {
                break;
            }
            self.slices.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Lets the cache hold `budget_bytes`, if that is more than before.
    pub fn grow(&self, budget_bytes: u64) {
        self.slices_max.fetch_max(budget_bytes / self.entry_bytes(), Ordering::Relaxed);
    }

    /// Drops every slice: the storage holds something else. Nothing may be unwritten or being loaded.
    ///
    /// # Panics
    /// If something is unwritten.
    pub fn clear(&self) {
        assert_eq!(self.unwritten_bytes(), 0, "a cache that is cleared has unwritten slices");
        for stripe in &self.stripes {
            let slices = stripe.0.lock().clear();
            self.slices.0.fetch_sub(slices, Ordering::Relaxed);
        }
        while self.free_some() > 0 {}
    }

    /// Hands the slice at `slice`, a multiple of [`Self::entry_bytes`], to `f`, if it is cached, and notes the use.
    ///
    /// Synchronous, allocates nothing, and never waits for I/O. `f` runs under the lock of a stripe: it must be short
    /// and not call the cache.
    #[inline]
    pub fn hit<R>(&self, slice: HostOffset, f: impl FnOnce(&Slice) -> R) -> Option<R> {
        let key = self.key(slice);
        let mut stripe = self.stripe(key).lock();
        stripe.hit(key).map(f)
    }

    /// The slice at `slice`, a multiple of [`Self::entry_bytes`], from the cache or else from `storage`, which must be
    /// the same at every call. While the caller holds it, it is pinned.
    ///
    /// However many ask for a slice at a time, one of them loads it: synchronously if the storage's synchronous door
    /// answers, and then without any await. The others wait. They wait for the one who loads to be polled or dropped,
    /// so a future of this function must not be kept aside unpolled.
    ///
    /// What lies past the end of the storage reads as zeros here: the caller knows which tables can exist.
    ///
    /// # Errors
    /// What the storage says. Nothing is cached then, and each one who waited tries for itself.
    ///
    /// # Cancel safety
    /// A dropped future leaves no trace. If it was the one loading, one of those who wait takes over.
    pub async fn get<S: Storage>(&self, storage: &S, slice: HostOffset) -> io::Result<Slice> {
        let key = self.key(slice);
        let mut share = match self.look_up(key) {
            Lookup::Found(slice) => return Ok(slice),
            Lookup::Miss(load, pin) => Share { cache: self, key, load, pin: Some(pin) },
        };
        // Cancel: the cell lets the next one who waits start, and the share is given back.
        let loaded = share.load.get_or_try_init(|| self.load(storage, slice, key)).await?;
        // OK to unwrap: it is taken here alone.
        #[allow(clippy::expect_used)]
        let pin = share.pin.take().expect("a share has a pin");
        Ok(loaded.lend(pin))
    }

    /// Lets `f` change the slice at `slice`, a multiple of [`Self::entry_bytes`], if it is cached, and makes it dirty.
    /// To change one that may not be cached, hold what [`Self::get`] returns meanwhile.
    ///
    /// Synchronous. `f` runs under the lock of a stripe, so that those who look through [`Self::hit`] see all of its
    /// changes or none: it must be short and not call the cache.
    pub fn update<R>(&self, slice: HostOffset, f: impl FnOnce(&Slice) -> R) -> Option<R> {
        let key = self.key(slice);
        let mut stripe = self.stripe(key).lock();
        let (words, becomes_dirty) = stripe.update(key)?;
        let result = f(words);
        if becomes_dirty && self.dirty.lock().insert(slice.get()) {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        Some(result)
    }

    /// Bytes of the slices that must be written or are being written: they cannot make room for others.
    #[must_use]
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed) * self.entry_bytes()
    }

    /// The most that the cache is to hold, in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.slices_max.load(Ordering::Relaxed) * self.entry_bytes()
    }

    /// Copies dirty slices at host offsets from `from` on, up to `len_bytes_max` but at least one, to be written by the
    /// caller. What the slices say now is what will be written, however they change meanwhile.
    ///
    /// One write-back at a time: a slice that another one is writing is left out.
    pub fn begin_write_back(&self, from: u64, len_bytes_max: u64) -> WriteBack<'_> {
        let mut write_back = WriteBack::new(self);
        let mut next = from;
        while write_back.is_empty() || write_back.len_bytes() < len_bytes_max {
            let Some(offset) = self.dirty.lock().range(next..).next().copied() else { break };
            next = offset + self.entry_bytes();
            let slice = HostOffset::new(offset);
            let key = self.key(slice);
            write_back.add(offset, |bytes| {
                let mut stripe = self.stripe(key).lock();
                stripe.begin_writing(key, bytes) && self.dirty.lock().remove(&offset)
            });
        }
        write_back
    }

    /// Ends the writing of the slice at `offset`.
    pub(super) fn end_write_back(&self, offset: u64, written: bool) {
        let key = self.key(HostOffset::new(offset));
        let mut stripe = self.stripe(key).lock();
        let again = stripe.end_writing(key, written) && self.dirty.lock().insert(offset);
        if !again {
            self.unwritten.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Drops the slices of `len_bytes` from `offset`, which is about to hold something else. They must be clean, and
    /// nobody may be loading them.
    pub fn forget(&self, offset: HostOffset, len_bytes: u64) {
        for slice in
            (0..len_bytes).step_by(usize::try_from(self.entry_bytes()).unwrap_or(usize::MAX))
        {
            let Some(slice) = offset.checked_add(slice) else { return };
            let key = self.key(slice);
            let forgotten = self.stripe(key).lock().forget(key);
            if forgotten {
                self.slices.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Drops each slice that is clean, not pinned, and was not used since the pass before, and frees its memory: a
    /// slice lives for one to two passes after its last use. Source: QEMU, block/qcow2-cache.c,
    /// `qcow2_cache_clean_unused`.
    ///
    /// Synchronous and without I/O. It holds one stripe's lock at a time, and frees outside of it.
    pub fn pass(&self) {
        let mut stage = Some(Stage::default());
        while let Some(next) = stage {
            stage = self.pass_from(next);
        }
    }

    /// One step of a pass, from `stage` on. Returns where the next step begins, or `None` if this was the last one.
    pub(super) fn pass_from(&self, stage: Stage) -> Option<Stage> {
        let is_left = match stage {
            Stage::Sweep { stripe } => {
                let stripe = self.sweep_from(stripe);
                let is_left = stripe < self.stripes.len();
                return Some(if is_left { Stage::Sweep { stripe } } else { Stage::Sort });
            }
            Stage::Sort => self.swept.sort(),
            Stage::Free => self.free_step(),
        };
        if is_left {
            return Some(Stage::Free);
        }
        self.scratch.clear();
        self.passes.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Sweeps some stripes from number `first` on; returns the number of the next one.
    fn sweep_from(&self, first: usize) -> usize {
        let mut batch = Batch::default();
        let mut swept = 0;
        for (index, stripe) in self.stripes.iter().enumerate().skip(first) {
            if swept >= STEP_SLOTS_MAX {
                return index;
            }
            swept += stripe.0.lock().slots();
            let mut slot = Some(0);
            while let Some(next) = slot {
                slot = if mutant::is(Mutant::SweepWithoutLock) {
                    let (noted, next) = stripe.0.lock().note(next);
                    mutant::pause();
                    stripe.0.lock().take_noted(noted, &mut batch);
                    next
                } else {
                    let mut stripe = stripe.0.lock();
                    mutant::pause();
                    stripe.sweep(next, &mut batch)
                };
                mutant::pause();
                self.swept.put(&mut batch);
            }
        }
        self.stripes.len()
    }

    /// Frees what was swept, up to [`STEP_FREED_BYTES_MAX`]; whether there may be more.
    fn free_step(&self) -> bool {
        let (mut slices, mut freed_bytes) = (1, 0);
        while slices > 0 && freed_bytes < STEP_FREED_BYTES_MAX {
            slices = self.free_some();
            freed_bytes += slices * self.entry_bytes();
        }
        self.trim.freed(freed_bytes);
        slices > 0
    }

    /// Frees some of what was swept; returns how many slices, which is none when there is nothing left.
    fn free_some(&self) -> u64 {
        let slices = self.swept.free_some();
        self.slices.0.fetch_sub(slices, Ordering::Relaxed);
        slices
    }

    /// What the cache has counted, and what it holds.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        let mut sum = CacheStatistics {
            passes: self.passes.load(Ordering::Relaxed),
            bytes_held: self.slices.0.load(Ordering::Relaxed) * self.entry_bytes(),
            ..CacheStatistics::default()
        };
        for stripe in &self.stripes {
            let counts = stripe.0.lock().counts;
            sum.hits += counts.hits;
            sum.misses += counts.misses;
            sum.loads += counts.loads;
            sum.evictions += counts.evictions;
            sum.cleaned += counts.cleaned;
        }
        sum
    }

    /// The mixed number of a slice. Mixing is a bijection, so that a key stands for its slice.
    #[inline]
    fn key(&self, slice: HostOffset) -> u64 {
        let (offset, entry_bytes) = (slice.get(), self.entry_bytes());
        debug_assert!(offset.is_multiple_of(entry_bytes), "no slice starts at {slice}");
        // Offsets may be any below 2^64; shifting out zeros loses nothing.
        let mixed = (offset >> entry_bytes.trailing_zeros()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 32)
    }

    /// The stripe of a key: by bits that the index does not use (it takes the lowest and the seven highest).
    #[inline]
    fn stripe(&self, key: u64) -> &Mutex<Stripe> {
        // OK to cast: 16 bits.
        #[allow(clippy::cast_possible_truncation)]
        let bits = ((key >> 40) & 0xffff) as usize;
        &self.stripes[bits & (self.stripes.len() - 1)].0
    }

    fn look_up(&self, key: u64) -> Lookup {
        self.stripe(key).lock().get(key)
    }

    /// Loads a slice and publishes it.
    async fn load<S: Storage>(
        &self,
        storage: &S,
        slice: HostOffset,
        key: u64,
    ) -> io::Result<Slice> {
        let limits = storage.limits();
        let entry_bytes = self.entry_bytes();
        let fits = u64::from(limits.request_alignment) <= entry_bytes
            && entry_bytes <= u64::from(limits.transfer_len_max);
        let bytes = if fits {
            let scratch = self.scratch.take(&limits);
            // Cancel: a dropped read has no effect; its buffer is lost to the scratch, no more.
            read(storage, scratch, slice.get()).await?
        } else {
            // Cancel: as above.
            read_in_pieces(storage, slice.get(), entry_bytes).await?
        };
        // From here to the end nothing is awaited and nothing fails: room taken is room used.
        let mut loaded = self.make_room().unwrap_or_else(|| Slice::blank(bytes.len()));
        loaded.fill(&bytes);
        self.scratch.give(bytes);
        self.stripe(key).lock().publish(key, loaded.share());
        Ok(loaded)
    }

    /// Takes room in the budget for one more slice. Returns the memory of the one that went for it, if one went.
    fn make_room(&self) -> Option<Slice> {
        if let Some(swept) = self.swept.take() {
            return Some(swept);
        }
        let slices_max = self.slices_max.load(Ordering::Relaxed);
        let room = |slices| (slices < slices_max).then_some(slices + 1);
        if self.slices.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            return None;
        }
        let Some(victim) = self.evict() else {
            // All is pinned: rather more memory than a deadlock.
            self.slices.0.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if self.slices.0.load(Ordering::Relaxed) > slices_max && self.evict().is_some() {
            self.slices.0.fetch_sub(1, Ordering::Relaxed);
        }
        Some(victim)
    }

    /// Takes the next victim, wherever it is: the hand goes through a stripe, then through the next.
    fn evict(&self) -> Option<Slice> {
        // Once around for each degree of heat, once to find what is cold, and the part of a stripe before its hand.
        for _ in 0..=(usize::from(HEAT_USED) + 1) * self.stripes.len() {
            let hand = self.hand.load(Ordering::Relaxed) & (self.stripes.len() - 1);
            if let Some(victim) = self.stripes[hand].0.lock().evict() {
                return Some(victim);
            }
            // Somebody else may have moved it on already; then that counts.
            let _ = self.hand.compare_exchange(
                hand,
                (hand + 1) & (self.stripes.len() - 1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        None
    }
}

/// # Panics
/// If a slice cannot be so long.
fn must_be_len(entry_bytes: u64) {
    assert!(
        entry_bytes.is_power_of_two() && (ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes),
        "a slice cannot be {entry_bytes} bytes long"
    );
}

/// A share in a load, given back when it is dropped.
struct Share<'a> {
    cache: &'a TableCache,
    key: u64,
    load: Arc<Load>,
    /// The pin of what is loaded; taken by success, after which nobody counts shares any more.
    pin: Option<Pin>,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.pin.is_some() {
            self.cache.stripe(self.key).lock().leave(self.key, &self.load);
        }
    }
}

/// Fills `buf` from `offset`: through the synchronous door if it answers.
async fn read<S: Storage>(storage: &S, mut buf: Buf, offset: u64) -> io::Result<Buf> {
    match storage.try_read_at(&mut buf, offset) {
        Some(result) => result.map(|()| buf),
        None => storage.read_at(buf, offset).await,
    }
}

/// Reads `len` bytes from `offset`, a multiple of `len`, from a storage that wants wider requests or shorter ones.
async fn read_in_pieces<S: Storage>(storage: &S, offset: u64, len: u64) -> io::Result<Buf> {
    let limits = storage.limits();
    let alignment = u64::from(limits.request_alignment);
    let piece = u64::from(limits.transfer_len_max).min(len.max(alignment));
    let piece = (piece - piece % alignment).max(alignment);
    // OK to cast: at most ENTRY_BYTES_MAX, or a u32 that the storage asks for.
    #[allow(clippy::cast_possible_truncation)]
    let (piece, len) = (piece as usize, len as usize);
    let mut whole = Buf::zeroed(len);
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        // OK to cast: less than `alignment`, a u32.
        #[allow(clippy::cast_possible_truncation)]
        let skip = (at % alignment) as usize;
        let buf = Buf::aligned(piece, limits.memory_alignment as usize);
        let buf = read(storage, buf, at - skip as u64).await?;
        let count = (piece - skip).min(len - done);
        whole[done..done + count].copy_from_slice(&buf[skip..skip + count]);
        done += count;
    }
    Ok(whole)
}
