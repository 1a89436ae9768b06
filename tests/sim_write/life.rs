//! A life: a plan carried out in a simulated world, held against the model at every turn, with the power gone now and
//! then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use cowshed::Error;
use cowshed::sim::{Clock, Executor, Faults, Random, SimStorage, cut};
use cowshed::timer::Timer;
use cowshed::workers::Workers;
use futures::executor::block_on;
use futures::future::join_all;

use super::engine::{Below, Engine, FILES, Files, Frozen, Guest};
use super::model::{Contents, Effect, Model, ZEROS};
use super::qemu_agrees;
use super::setup::Made;
use super::workload::{End, Looks, Op, Plan, Tail, What, no_faults};

/// How often a crash comes in the middle of the recovery from another, in 1000.
const AGAIN_PERMILLE: u32 = 250;

/// How often a commit is looked at.
const COMMIT_LOOKS_MAX: u64 = 12;

/// What came of lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub lives: u64,
    pub requests: u64,
    pub failed: u64,
    pub dropped: u64,
    /// States after a power loss, each opened, read and checked.
    pub states: u64,
    /// Of these, in the middle of a recovery.
    pub recoveries: u64,
    pub repairs: u64,
    /// States that QEMU has checked and compared.
    pub qemu: u64,
    /// Requests of each file in the first phase.
    pub calls: [u64; FILES],
}

impl Counts {
    pub fn add(&mut self, other: Self) {
        self.lives += other.lives;
        self.requests += other.requests;
        self.failed += other.failed;
        self.dropped += other.dropped;
        self.states += other.states;
        self.recoveries += other.recoveries;
        self.repairs += other.repairs;
        self.qemu += other.qemu;
        for (calls, more) in self.calls.iter_mut().zip(other.calls) {
            *calls += more;
        }
    }
}

/// What a phase shares between its lanes.
struct Shared<'a, G> {
    guest: G,
    plan: &'a Plan,
    clock: Clock,
    model: &'a RefCell<Model>,
    counts: &'a RefCell<Counts>,
    disks: Vec<SimStorage>,
    /// Some requests may reach past the end by the time that they get to it.
    resized: Cell<bool>,
    /// A flush has failed for good.
    latched: Cell<bool>,
    wrong: RefCell<Option<String>>,
    /// How many failed flushes of the disks the guest has heard of.
    heard: Cell<u64>,
    /// And how many the model has.
    told: Cell<u64>,
    /// How many more errors of the disks it may hear of, if only one request fails.
    excused: &'a Cell<u64>,
    /// What lies below the image.
    below: Below,
}

/// Carries out `ops`, which are some of the plan's. Returns the hash of the trace, too.
///
/// # Errors
/// What is wrong.
pub fn live<E: Engine>(engine: &E, plan: &Plan, ops: &[Op]) -> Result<(Counts, u64), String> {
    let made = plan.setup.make();
    let executor = plan.executor();
    let mut life = Life::new(engine, plan, &made, &executor);
    if let Some((file, number, failure)) = plan.named {
        life.files.numbered()[file].unwrap().fail_request(number, failure);
    }
    for (phase, &end) in plan.ends.iter().enumerate() {
        let ops: Vec<Op> = ops.iter().filter(|op| op.phase == phase).copied().collect();
        life.phase(&ops, plan.tails[phase], end)
            .map_err(|what| format!("phase {phase}: {what}"))?;
    }
    life.counts.borrow_mut().lives = 1;
    let counts = *life.counts.borrow();
    Ok((counts, executor.trace().hash()))
}

struct Life<'a, 'e, E> {
    engine: &'a E,
    plan: &'a Plan,
    made: &'a Made,
    executor: &'a Executor<'e>,
    random: Random,
    files: Files<SimStorage>,
    model: RefCell<Model>,
    counts: RefCell<Counts>,
    workers: Option<Arc<dyn Workers>>,
    /// There may be leaks: the power went, and nothing was repaired.
    leaky: bool,
    excused: Cell<u64>,
    /// What lies below the image.
    below: Cell<Below>,
}

impl<'a, 'e, E: Engine> Life<'a, 'e, E> {
    fn new(engine: &'a E, plan: &'a Plan, made: &'a Made, executor: &'a Executor<'e>) -> Self {
        let disk = |bytes: &Arc<[u8]>| SimStorage::new(executor, Arc::clone(bytes), Faults::none());
        let contents = Contents {
            granule: usize::try_from(plan.granule).unwrap(),
            first: Arc::clone(&made.first),
            backing: made.backing.clone().unwrap_or_default(),
            other: Arc::clone(&made.other),
        };
        let size = made.first.len() as u64;
        let mut model = Model::new(contents, size, made.setup.size_max.max(size));
        model.monotonic = plan.faults.flush_losses == 0 && plan.named.is_none();
        Self {
            engine,
            plan,
            made,
            executor,
            random: executor.random(),
            files: engine.files(made).map(disk),
            model: RefCell::new(model),
            counts: RefCell::default(),
            workers: plan.how.workers.then(|| executor.workers() as Arc<dyn Workers>),
            leaky: false,
            excused: Cell::new(u64::from(plan.named.is_some())),
            below: Cell::new(if made.backing.is_some() { Below::Backing } else { Below::Nothing }),
        }
    }

    /// Opens the disk, does everything, and closes it or crashes.
    fn phase(&mut self, ops: &[Op], tail: Tail, end: End) -> Result<(), String> {
        let (guest, cleaner) = self.recover()?;
        let executor = self.executor;
        let cleaner = cleaner.map(|cleaner| executor.spawn(cleaner.run(executor.clock())));
        for disk in [Some(&self.files.image), self.files.data.as_ref()].into_iter().flatten() {
            disk.set_faults(self.plan.faults);
        }
        let shared = Shared {
            guest,
            plan: self.plan,
            clock: executor.clock(),
            model: &self.model,
            counts: &self.counts,
            disks: self.files.all().cloned().collect(),
            resized: Cell::new(false),
            latched: Cell::new(false),
            wrong: RefCell::default(),
            heard: Cell::new(0),
            told: Cell::new(0),
            excused: &self.excused,
            below: self.below.get(),
        };
        let rebased = Cell::new(None);
        let (engine, files) = (self.engine, &self.files);
        let mut lanes: BTreeMap<usize, Vec<Op>> = BTreeMap::new();
        for op in ops {
            lanes.entry(op.lane).or_default().push(*op);
        }
        let all = async {
            join_all(lanes.into_values().map(|ops| shared.lane(ops))).await;
            if let (Tail::Rebase(below), false) = (tail, shared.latched.get()) {
                let result = engine.rebase(&shared.guest, files, below).await;
                shared.hear();
                rebased.set(result.is_ok().then_some(below));
                shared.note(shared.allow_rebase(result));
            }
            end == End::Close && !shared.latched.get() && shared.close().await
        };
        let (mut steps, mut samples, mut before) = (0_u64, 0, None);
        let crash_at = if let End::Crash(at) = end { at } else { u64::MAX };
        let random = &mut self.random;
        let stop = || {
            steps += 1;
            shared.hear();
            let lefts: Vec<_> = match self.plan.looks {
                Looks::Some(often, most) if samples < most && random.chance(often) => {
                    vec![files.map(SimStorage::crash_state)]
                }
                Looks::Some(..) => Vec::new(),
                Looks::All(most) => {
                    let now =
                        (files.image.requests(), files.image.crash_outcomes(), shared.clock.now());
                    let all = now.1;
                    let news = before.replace(now) != Some(now);
                    let outcomes = if news { all.min(most) } else { 0 };
                    let some =
                        (0..outcomes).map(|at| if all > most { random.below(all) } else { at });
                    some.map(|at| files.map(|disk| disk.crash_outcome(at))).collect()
                }
            };
            for left in lefts {
                samples += 1;
                self.counts.borrow_mut().states += 1;
                let result = look(self.engine, self.plan, self.made, &left, &shared, random);
                shared.note(result.map_err(|what| format!("at step {steps}: {what}")));
            }
            steps >= crash_at || shared.wrong.borrow().is_some()
        };
        let closed = executor.run_until(all, stop).map_err(|stuck| stuck.to_string())?;
        shared.hear();
        if let Some(wrong) = shared.wrong.take() {
            return Err(wrong);
        }
        let closed = closed == Some(true);
        if self.counts.borrow().calls == [0; FILES] {
            let calls = self.files.numbered().map(|file| file.map_or(0, SimStorage::requests));
            self.counts.borrow_mut().calls = calls;
        }
        if !closed {
            // The power goes before anything can be tidied up.
            let left = self.files.map(SimStorage::crash);
            drop((shared, cleaner));
            self.files = left;
            self.leaky = true;
        } else {
            if let Some(cleaner) = cleaner {
                executor.run(cleaner).map_err(|stuck| format!("after close: {stuck}"))?;
            }
            drop(shared);
            for disk in self.files.all() {
                disk.set_faults(Faults::none());
            }
            self.leaky |= self.plan.faults != no_faults() || self.plan.named.is_some();
            self.files = self.files.map(SimStorage::crash);
        }
        self.settle(closed)?;
        if rebased.get().is_some_and(|below| below != self.below.get()) {
            return Err(format!("{:?} lies below, not {rebased:?}", self.below.get()));
        }
        if closed && tail == Tail::Commit && self.below.get() != Below::Nothing {
            self.commit().map_err(|what| format!("commit: {what}"))?;
        }
        Ok(())
    }

    /// Copies what the image has into what lies below it: the disk stays as it is, whatever happens.
    fn commit(&mut self) -> Result<(), String> {
        let below = self.below.get();
        let bytes = self.begin()?;
        let (files, random) = (&self.files, &mut self.random);
        let written = [Some(&files.image), files.data.as_ref(), files.below(below)];
        written.into_iter().flatten().for_each(|disk| disk.set_faults(self.plan.faults));
        let crash_at = if random.toss() { 1 + random.below(400) } else { u64::MAX };
        let (mut steps, mut looks, mut wrong) = (0_u64, 0, None);
        let stop = || {
            steps += 1;
            if looks < COMMIT_LOOKS_MAX && random.chance(300) {
                looks += 1;
                self.counts.borrow_mut().states += 1;
                let left = files.map(SimStorage::crash_state);
                let left = left.map(|disk| Frozen(disk.to_vec().into()));
                let look = read_all(self.engine, &left)
                    .and_then(|bytes| self.model.borrow().check_crash(&bytes))
                    .and_then(|()| check(self.engine, &left, u64::MAX));
                wrong = look.err().map(|what| format!("at step {steps}: {what}"));
            }
            steps >= crash_at || wrong.is_some()
        };
        let commit = self.engine.commit(files, self.plan.how, below);
        let result = self.executor.run_until(commit, stop).map_err(|stuck| stuck.to_string())?;
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let done = match result {
            Some(Ok(())) => true,
            Some(Err(Error::Storage { .. } | Error::Latched(_)))
                if self.plan.faults != no_faults() || self.excused.take() > 0 =>
            {
                false
            }
            Some(Err(error)) => return Err(format!("{error} ({error:?})")),
            None => false,
        };
        self.leaky |= !done || self.plan.faults != no_faults();
        self.files = self.files.map(SimStorage::crash);
        self.settle(false)?;
        let base = self.files.below(below).map(SimStorage::to_vec).unwrap_or_default();
        if done && !base.starts_with(&bytes) {
            return Err("the backing file does not have it all".into());
        }
        self.begin().map(drop)
    }

    /// Makes what the files hold what the model begins with, and returns what the disk holds.
    fn begin(&mut self) -> Result<Arc<[u8]>, String> {
        let frozen = self.files.map(|disk| Frozen(disk.to_vec().into()));
        let first: Arc<[u8]> = read_all(self.engine, &frozen)?.into();
        let granule = self.model.borrow().contents.granule;
        let below =
            |file: &Option<Frozen>| file.clone().map_or(Arc::new([]) as Arc<[u8]>, |file| file.0);
        let (backing, other) = (below(&frozen.backing), below(&frozen.other));
        let contents = Contents { granule, first: Arc::clone(&first), backing, other };
        self.model.borrow_mut().begin(contents);
        Ok(first)
    }

    /// After a power loss, or a close: what is there is what the model knows from now on.
    fn settle(&mut self, closed: bool) -> Result<(), String> {
        let how = if closed { "after close" } else { "after the power loss" };
        self.counts.borrow_mut().states += 1;
        let frozen = self.files.map(|disk| Frozen(disk.to_vec().into()));
        let bytes = read_all(self.engine, &frozen).map_err(|what| format!("{how}: {what}"))?;
        self.model.borrow_mut().crash(&bytes).map_err(|what| format!("{how}: {what}"))?;
        let below = block_on(self.engine.below(&frozen));
        self.below.set(below.map_err(|error| format!("{how}: {error}"))?);
        let leaks = if self.leaky { u64::MAX } else { 0 };
        check(self.engine, &frozen, leaks).map_err(|what| format!("{how}: {what}"))
    }

    /// Opens the disk for writing, after losing power in the middle of that now and then.
    #[allow(clippy::type_complexity, reason = "what an engine opens")]
    fn recover(
        &mut self,
    ) -> Result<(E::Guest<SimStorage>, Option<cowshed::cache::Cleaner>), String> {
        while self.plan.named.is_none() && self.random.chance(AGAIN_PERMILLE) {
            let mut steps = self.random.below(40);
            let stop = || {
                steps = steps.saturating_sub(1);
                steps == 0
            };
            let open = self.engine.open(&self.files, self.plan.how, self.workers.clone());
            let opened = self.executor.run_until(open, stop).map_err(|stuck| stuck.to_string())?;
            let left = self.files.map(SimStorage::crash);
            if let Some(Err(error)) = opened {
                return Err(format!("open for writing: {error} ({error:?})"));
            }
            self.files = left;
            self.leaky = true;
            self.counts.borrow_mut().recoveries += 1;
            self.settle(false).map_err(|what| format!("power loss in recovery: {what}"))?;
        }
        if self.leaky && self.random.toss() {
            let repair = self.engine.repair(&self.files);
            let repaired = self.executor.run(repair).map_err(|stuck| stuck.to_string())?;
            if repaired.map_err(|error| format!("repair: {error}"))? {
                self.leaky = false;
                self.counts.borrow_mut().repairs += 1;
                self.files = self.files.map(SimStorage::crash);
                self.settle(false).map_err(|what| format!("after a repair: {what}"))?;
            }
        }
        loop {
            let open = self.engine.open(&self.files, self.plan.how, self.workers.clone());
            match self.executor.run(open).map_err(|stuck| stuck.to_string())? {
                Ok(opened) => return Ok(opened),
                Err(Error::Storage { .. }) if self.excused.take() > 0 => self.leaky = true,
                Err(error) => return Err(format!("open for writing: {error} ({error:?})")),
            }
        }
    }
}

/// Reads the whole disk.
fn read_all<E: Engine>(engine: &E, files: &Files<Frozen>) -> Result<Vec<u8>, String> {
    block_on(async {
        let guest = engine.open_to_read(files).await?;
        let mut bytes = vec![0; usize::try_from(guest.size()).unwrap()];
        guest.read(&mut bytes, 0).await?;
        Ok(bytes)
    })
    .map_err(|error: Error| format!("read all: {error} ({error:?})"))
}

/// Checks the image.
fn check<E: Engine>(engine: &E, files: &Files<Frozen>, leaks_max: u64) -> Result<(), String> {
    let health = block_on(engine.check(files)).map_err(|error| format!("check: {error}"))?;
    if !health.wrong.is_empty() && !health.dirty {
        return Err(format!("check finds {}", health.wrong.join("\n  ")));
    }
    if health.leaks > leaks_max && !health.dirty {
        return Err(format!("check finds {} leaks: {:?}", health.leaks, health.findings));
    }
    Ok(())
}

/// Looks at what a power loss would leave.
fn look<E: Engine, G>(
    engine: &E,
    plan: &Plan,
    made: &Made,
    left: &Files<SimStorage>,
    shared: &Shared<'_, G>,
    random: &mut Random,
) -> Result<(), String> {
    let frozen = left.map(|disk| Frozen(disk.to_vec().into()));
    let bytes = read_all(engine, &frozen)?;
    shared.model.borrow().check_crash(&bytes)?;
    check(engine, &frozen, u64::MAX)?;
    if random.chance(AGAIN_PERMILLE) {
        shared.counts.borrow_mut().recoveries += 1;
        let again = crash_again(engine, plan, &frozen, random)?;
        let bytes = read_all(engine, &again).map_err(|what| format!("in recovery: {what}"))?;
        shared.model.borrow().check_crash(&bytes).map_err(|what| format!("in recovery: {what}"))?;
        check(engine, &again, u64::MAX).map_err(|what| format!("in recovery: {what}"))?;
    }
    if let Some(expected) = made.snapshot.as_ref().filter(|_| random.chance(100)) {
        let bytes = block_on(engine.snapshot(&frozen)).map_err(|error| error.to_string())?;
        if bytes.is_some_and(|bytes| bytes != **expected) {
            return Err("the snapshot has changed".into());
        }
    }
    if random.bits().is_multiple_of(qemu_agrees::ONE_IN) && engine.is_qcow2() {
        shared.counts.borrow_mut().qemu += 1;
        qemu_agrees::check(&plan.setup, &frozen, &bytes)?;
    }
    Ok(())
}

/// Begins to use what a power loss has left, in a world of its own, and loses the power again in the middle of that.
fn crash_again<E: Engine>(
    engine: &E,
    plan: &Plan,
    left: &Files<Frozen>,
    random: &mut Random,
) -> Result<Files<Frozen>, String> {
    let executor = Executor::new(random.bits());
    let disk = |file: &Frozen| SimStorage::new(&executor, Arc::clone(&file.0), Faults::none());
    let (files, repairs) = (left.map(disk), random.toss());
    let mut steps = 1 + random.below(60);
    let stop = || {
        steps -= 1;
        steps == 0
    };
    let recovery = async {
        if repairs {
            engine.repair(&files).await?;
        }
        let (guest, _) = engine.open(&files, plan.how, None).await?;
        guest.close().await
    };
    match executor.run_until(recovery, stop).map_err(|stuck| stuck.to_string())? {
        Some(Err(error)) => Err(format!("recovery: {error} ({error:?})")),
        _ => Ok(files.map(SimStorage::crash).map(|disk| Frozen(disk.to_vec().into()))),
    }
}

impl<G: Guest> Shared<'_, G> {
    async fn lane(&self, ops: Vec<Op>) {
        for op in ops {
            if self.latched.get() {
                return;
            }
            if op.pause > 0 {
                self.clock.sleep(std::time::Duration::from_micros(op.pause)).await;
            }
            let excused = self.excused.get();
            let mut result = self.perform(&op).await;
            if result.is_ok() && self.excused.get() < excused && !self.latched.get() {
                // It has failed, once, and nothing stands in its way any more.
                result = self.perform(&op).await;
            }
            self.note(result.map_err(|what| format!("{op}: {what}")));
        }
    }

    /// Remembers what is wrong first.
    fn note(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.wrong.borrow_mut().get_or_insert(what);
        }
    }

    fn flushes_failed(&self) -> u64 {
        self.disks.iter().map(SimStorage::flushes_failed).sum()
    }

    /// Tells the model of flushes that failed, whether or not the guest has been told.
    fn hear(&self) {
        let failed = self.flushes_failed();
        if failed > self.told.replace(failed) {
            self.model.borrow_mut().flush_failed();
        }
    }

    #[allow(clippy::await_holding_refcell_ref, reason = "it is dropped before each await")]
    async fn perform(&self, op: &Op) -> Result<(), String> {
        let granule = self.plan.granule;
        let size = self.guest.size();
        let (what, mut len) = (op.what, op.len);
        let cluster_size = self.plan.setup.cluster_size();
        if !matches!(what, What::Flush | What::Resize | What::Empty) {
            if op.offset >= size {
                return Ok(());
            }
            len = len.min(size - op.offset);
        }
        let at = |offset: u64| usize::try_from(offset / granule).unwrap();
        let (from, to) = (at(op.offset), at(op.offset + len));
        let polls = op.polls.unwrap_or(u64::MAX);
        let mut model = self.model.borrow_mut();
        self.counts.borrow_mut().requests += 1;
        let plain = |value| Effect { from, to, value, or: None, weak: false };
        let guest = &self.guest;
        match what {
            What::Read => {
                let started = model.start_read();
                drop(model);
                let mut bytes = vec![0xa5; usize::try_from(len).unwrap()];
                let result = cut(guest.read(&mut bytes, op.offset), polls).await;
                self.hear();
                match result {
                    Some(Ok(())) => self.model.borrow_mut().check_read(started, from, &bytes),
                    other => {
                        self.model.borrow_mut().end_read(started);
                        other.map_or(Ok(()), |result| self.allow(result))
                    }
                }
            }
            What::Write | What::WriteCompressed => {
                let change = model.start(&op.to_string(), |tag| vec![plain(tag)]);
                let bytes = model.contents.bytes(change, from, to);
                drop(model);
                let result = if what == What::Write {
                    cut(guest.write(&bytes, op.offset), polls).await
                } else {
                    cut(guest.write_compressed(&bytes, op.offset), polls).await
                };
                // As with QEMU, what has a cluster of its own is not compressed.
                let refused = matches!(&result, Some(Err(Error::InvalidArgument(_))));
                if refused && what == What::WriteCompressed {
                    self.model.borrow_mut().give_up(change);
                    return Ok(());
                }
                self.done(change, result)
            }
            What::WriteZeroes(mode) => {
                let change = model.start(&op.to_string(), |_| vec![plain(ZEROS)]);
                drop(model);
                let result = cut(guest.write_zeroes(op.offset, len, mode), polls).await;
                self.done(change, result)
            }
            What::Discard => {
                // Clusters that are not discarded as a whole keep what they have, or are zeros.
                let end = op.offset + len;
                // The last cluster counts as whole where the disk ends in it, which a resize at the same time may change.
                let resizes = self.plan.ops.iter().any(|op| op.what == What::Resize);
                let whole_end = match end == size && !resizes {
                    true => end,
                    false => end / cluster_size * cluster_size,
                };
                let whole = op.offset.next_multiple_of(cluster_size).min(end);
                let whole = whole..whole_end.max(whole);
                let setup = &self.plan.setup;
                let or = (setup.version == 2 && self.below != Below::Nothing)
                    .then_some(self.below.tag());
                // Version 2 has no zero clusters to hide the backing file with.
                let effect = |range: std::ops::Range<u64>, weak| Effect {
                    from: at(range.start),
                    to: at(range.end),
                    value: ZEROS,
                    or,
                    weak: weak || or.is_some(),
                };
                let change = model.start(&op.to_string(), |_| {
                    vec![
                        effect(op.offset..whole.start, true),
                        effect(whole.clone(), false),
                        effect(whole.end..end, true),
                    ]
                });
                drop(model);
                let result = cut(guest.discard(op.offset, len), polls).await;
                self.done(change, result)
            }
            What::Flush => {
                let asked = model.ask();
                drop(model);
                let unheard = self.flushes_failed() > self.heard.get();
                let result = cut(guest.flush(), polls).await;
                self.flushed(asked, unheard, result)
            }
            What::Empty => {
                drop(model);
                self.empty(op).await
            }
            What::Resize => {
                if len == size {
                    return Ok(());
                }
                let (from, to) = (at(size.min(len)), at(size.max(len)));
                // What is cut off is unmapped first: as long as the size is the old one it shows what lies below.
                let or = (len < size).then_some(self.below.tag());
                let effect = Effect { from, to, value: ZEROS, or, weak: false };
                let change = model.start(&op.to_string(), |_| vec![effect]);
                model.sizing(change, len);
                drop(model);
                self.resized.set(true);
                let result = cut(guest.resize(len), polls).await;
                self.done(change, result)
            }
        }
    }

    /// What everything reads that the image itself has nothing of.
    async fn empty(&self, op: &Op) -> Result<(), String> {
        let change = {
            let mut model = self.model.borrow_mut();
            // A disk that becomes longer meanwhile may lose there, too, what hides a longer backing file.
            let (size, all) = (self.guest.size() / self.plan.granule, model.granules() as u64);
            let effect =
                |from, to, weak| Effect { from, to, value: self.below.tag(), or: None, weak };
            let at = |granule| usize::try_from(granule).unwrap();
            model.start(&op.to_string(), |_| {
                vec![effect(0, at(size), false), effect(at(size), at(all), true)]
            })
        };
        let polls = op.polls.unwrap_or(u64::MAX);
        let result = cut(self.guest.make_empty(), polls).await;
        if let Some(Ok(())) = &result {
            self.model.borrow_mut().is_durable(change);
        }
        self.done(change, result)
    }

    fn done(&self, change: u32, result: Option<cowshed::Result<()>>) -> Result<(), String> {
        self.hear();
        let mut model = self.model.borrow_mut();
        match result {
            Some(Ok(())) => {
                model.complete(change);
                if self.plan.how.write_through {
                    model.is_durable(change);
                }
                Ok(())
            }
            Some(Err(error)) => {
                model.give_up(change);
                drop(model);
                self.allow(Err(error))
            }
            None => {
                model.give_up(change);
                self.counts.borrow_mut().dropped += 1;
                Ok(())
            }
        }
    }

    fn flushed(
        &self,
        asked: u64,
        unheard: bool,
        result: Option<cowshed::Result<()>>,
    ) -> Result<(), String> {
        self.hear();
        match result {
            Some(Ok(())) => {
                if unheard && self.flushes_failed() > self.heard.get() {
                    return Err("flush succeeds after one of the disk's has failed".into());
                }
                self.model.borrow_mut().flushed(asked);
                Ok(())
            }
            Some(Err(error)) => {
                self.model.borrow_mut().flush_failed();
                self.heard.set(self.flushes_failed());
                self.allow(Err(error))
            }
            None => Ok(()),
        }
    }

    /// Whether a rebase may end like this: a small header may have no room for a name.
    fn allow_rebase(&self, result: cowshed::Result<()>) -> Result<(), String> {
        match result {
            Err(Error::LimitExceeded { .. }) => Ok(()),
            result => self.allow(result).map_err(|what| format!("rebase: {what}")),
        }
    }

    /// Whether an error is one that the world has made.
    fn allow(&self, result: cowshed::Result<()>) -> Result<(), String> {
        let Err(error) = result else { return Ok(()) };
        self.counts.borrow_mut().failed += 1;
        let latched = format!("{error:?}").contains("Latched");
        let failing = self.plan.faults != no_faults();
        let named = self.plan.named.is_some();
        match error {
            Error::Storage { .. } if failing => Ok(()),
            Error::Storage { .. } if self.excused.take() > 0 => Ok(()),
            Error::OutOfBounds { .. } if self.resized.get() => Ok(()),
            _ if latched && (failing || named) => {
                self.latched.set(true);
                Ok(())
            }
            error => Err(format!("{error} ({error:?})")),
        }
    }

    /// Closes the disk, and says whether that went well.
    async fn close(&self) -> bool {
        let asked = self.model.borrow_mut().ask();
        let unheard = self.flushes_failed() > self.heard.get();
        let result = self.guest.close().await;
        let good = result.is_ok();
        self.note(
            self.flushed(asked, unheard, Some(result)).map_err(|what| format!("close: {what}")),
        );
        good
    }
}
