//! A life: a plan carried out in a simulated world, held against the model at every turn, with the power gone now and
//! then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cowshed::Error;
use cowshed::sim::{Clock, Executor, Faults, Random, SimStorage, Task, cut};
use cowshed::timer::Timer;
use cowshed::workers::Workers;
use futures::executor::block_on;
use futures::future::join_all;

use super::bitmaps;
use super::engine::{Act, Below, Engine, FILES, Files, Frozen, Guest};
use super::model::{Contents, Effect, KEPT, Model, ZEROS};
use super::qemu_agrees;
use super::setup::Made;
use super::snapshots::Snapshots;
use super::workload::{End, Looks, Op, Plan, Tail, What, can_fail};

/// How often a crash comes in the middle of the recovery from another, in 1000.
const AGAIN_PERMILLE: u32 = 250;

/// How many steps a request may take: several for each part of each table of an image with large clusters.
const STEPS_MAX: u64 = 1_000_000;

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
struct Shared<'a, 'e, G> {
    guest: G,
    plan: &'a Plan,
    clock: Clock,
    model: &'a RefCell<Model>,
    snapshots: &'a RefCell<Snapshots>,
    /// The snapshots that the disks have now, as if they had been read.
    found: &'a dyn Fn() -> Result<Vec<(String, Vec<u8>)>, String>,
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
    executor: &'a Executor<'e>,
    /// Those that reconfigurations have brought.
    cleaners: RefCell<Vec<Task<'e, ()>>>,
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
    snapshots: RefCell<Snapshots>,
    counts: RefCell<Counts>,
    workers: Option<Arc<dyn Workers>>,
    /// There may be leaks: the power went, and nothing was repaired.
    leaky: bool,
    /// The bitmaps that a power loss has left in use.
    in_use: BTreeSet<Vec<u8>>,
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
            kept: made.snapshot.clone().unwrap_or_default(),
            other: Arc::clone(&made.other),
        };
        let size = made.first.len() as u64;
        let mut snapshots = Snapshots::default();
        if let Some(bytes) = made.snapshot.as_ref().filter(|_| engine.is_qcow2()) {
            let granules = bytes.len() as u64 / plan.granule;
            let tags = (0..granules).map(|_| KEPT).collect();
            snapshots.listed(Plan::snapshot_name(0), tags, true, 0);
        }
        let mut model = Model::new(contents, size, made.setup.size_max.max(size));
        model.copied_together = usize::try_from(made.setup.cluster_size() / plan.granule).unwrap();
        model.monotonic = plan.faults.flush_losses == 0 && plan.named.is_none();
        Self {
            engine,
            plan,
            made,
            executor,
            random: executor.random(),
            files: engine.files(made).map(disk),
            model: RefCell::new(model),
            snapshots: RefCell::new(snapshots),
            counts: RefCell::default(),
            workers: plan.how.workers.then(|| executor.workers() as Arc<dyn Workers>),
            leaky: false,
            in_use: BTreeSet::new(),
            excused: Cell::new(u64::from(plan.named.is_some())),
            below: Cell::new(if made.backing.is_some() { Below::Backing } else { Below::Nothing }),
        }
    }

    /// Opens the disk, does everything, and closes it or crashes.
    fn phase(&mut self, ops: &[Op], tail: Tail, end: End) -> Result<(), String> {
        let (guest, cleaner) = self.recover()?;
        let executor = self.executor;
        executor.steps_max(STEPS_MAX);
        let cleaner = cleaner.map(|cleaner| executor.spawn(cleaner.run(executor.clock())));
        for disk in [Some(&self.files.image), self.files.data.as_ref()].into_iter().flatten() {
            disk.set_faults(self.plan.faults);
        }
        let (engine, current) = (self.engine, self.files.clone());
        let found =
            move || read_snapshots(engine, &current.map(|disk| Frozen(disk.to_vec().into())));
        let shared = Shared {
            guest,
            plan: self.plan,
            clock: executor.clock(),
            model: &self.model,
            snapshots: &self.snapshots,
            found: &found,
            counts: &self.counts,
            disks: self.files.all().cloned().collect(),
            resized: Cell::new(false),
            latched: Cell::new(false),
            wrong: RefCell::default(),
            heard: Cell::new(0),
            told: Cell::new(0),
            excused: &self.excused,
            executor,
            cleaners: RefCell::default(),
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
            for cleaner in cleaner.into_iter().chain(shared.cleaners.take()) {
                executor.run(cleaner).map_err(|stuck| format!("after close: {stuck}"))?;
            }
            drop(shared);
            for disk in self.files.all() {
                disk.set_faults(Faults::none());
            }
            self.leaky |= can_fail(&self.plan.faults) || self.plan.named.is_some();
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
                    .and_then(|()| check(self.engine, self.plan, &left, u64::MAX));
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
                if can_fail(&self.plan.faults) || self.excused.take() > 0 =>
            {
                false
            }
            Some(Err(error)) => return Err(format!("{error} ({error:?})")),
            None => false,
        };
        self.leaky |= !done || can_fail(&self.plan.faults);
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
        let kept = Arc::clone(&self.model.borrow().contents.kept);
        let contents = Contents { granule, first: Arc::clone(&first), backing, kept, other };
        self.model.borrow_mut().begin(contents);
        Ok(first)
    }

    /// After a power loss, or a close: what is there is what the model knows from now on.
    fn settle(&mut self, closed: bool) -> Result<(), String> {
        let how = if closed { "after close" } else { "after the power loss" };
        self.counts.borrow_mut().states += 1;
        let frozen = self.files.map(|disk| Frozen(disk.to_vec().into()));
        let bytes = read_all(self.engine, &frozen).map_err(|what| format!("{how}: {what}"))?;
        let found = read_snapshots(self.engine, &frozen)?;
        let left = self.snapshots.borrow().check_crash(&found, &self.model.borrow());
        let left = left.map_err(|what| format!("{how}: {what}"))?;
        self.model.borrow_mut().crash(&bytes).map_err(|what| format!("{how}: {what}"))?;
        self.snapshots.borrow_mut().crash(left);
        if self.made.setup.bitmaps && self.engine.is_qcow2() {
            let in_use = bitmaps::check(self.plan, &self.made.first, &frozen, &bytes)
                .map_err(|what| format!("{how}: {what}"))?;
            let before = std::mem::replace(&mut self.in_use, in_use);
            if closed && !self.in_use.is_subset(&before) {
                return Err(format!("{how}: bitmaps are in use: {:?}", self.in_use));
            }
            if !before.is_subset(&self.in_use) {
                return Err(format!("{how}: bitmaps are trusted again: {before:?}"));
            }
        }
        let below = block_on(self.engine.below(&frozen));
        self.below.set(below.map_err(|error| format!("{how}: {error}"))?);
        let leaks = if self.leaky { u64::MAX } else { 0 };
        check(self.engine, self.plan, &frozen, leaks).map_err(|what| format!("{how}: {what}"))
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

/// Reads all of the snapshots.
fn read_snapshots<E: Engine>(
    engine: &E,
    files: &Files<Frozen>,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    block_on(engine.snapshots(files)).map_err(|error| format!("snapshots: {error} ({error:?})"))
}

/// Checks the image.
fn check<E: Engine>(
    engine: &E,
    plan: &Plan,
    files: &Files<Frozen>,
    leaks_max: u64,
) -> Result<(), String> {
    let health = block_on(engine.check(files)).map_err(|error| format!("check: {error}"))?;
    // In version 2 there is no dirty bit to say that copied flags are out of date while a snapshot comes or goes.
    let stale = plan.setup.version == 2 && plan.has_snapshots() && leaks_max > 0;
    let excused = health.dirty || (stale && health.only_flags);
    if !health.wrong.is_empty() && !excused {
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
    shared: &Shared<'_, '_, G>,
    random: &mut Random,
) -> Result<(), String> {
    let frozen = left.map(|disk| Frozen(disk.to_vec().into()));
    let bytes = read_all(engine, &frozen)?;
    shared.model.borrow().check_crash(&bytes)?;
    check(engine, plan, &frozen, u64::MAX)?;
    if made.setup.bitmaps && engine.is_qcow2() {
        bitmaps::check(plan, &made.first, &frozen, &bytes)?;
    }
    if random.chance(300) {
        let found = read_snapshots(engine, &frozen)?;
        shared.snapshots.borrow().check_crash(&found, &shared.model.borrow())?;
    }
    // By choices of its own, so that the lives without it are those that they were.
    let own = &mut Random::new(plan.seed ^ shared.counts.borrow().states << 32);
    if own.chance(AGAIN_PERMILLE) {
        shared.counts.borrow_mut().recoveries += 1;
        let again = crash_again(engine, plan, &frozen, own)?;
        let bytes = read_all(engine, &again).map_err(|what| format!("in recovery: {what}"))?;
        shared.model.borrow().check_crash(&bytes).map_err(|what| format!("in recovery: {what}"))?;
        check(engine, plan, &again, u64::MAX).map_err(|what| format!("in recovery: {what}"))?;
    }
    if random.bits().is_multiple_of(qemu_agrees::ONE_IN) && engine.is_qcow2() {
        shared.counts.borrow_mut().qemu += 1;
        qemu_agrees::check(plan, &frozen, &bytes)?;
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

impl<G: Guest> Shared<'_, '_, G> {
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
            // One of them may read all tables of an image with large clusters.
            self.executor.progress().note();
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
            let mut model = self.model.borrow_mut();
            model.flush_failed();
            let now = model.ask();
            self.snapshots.borrow_mut().flush_failed(now);
        }
    }

    #[allow(clippy::await_holding_refcell_ref, reason = "it is dropped before each await")]
    async fn perform(&self, op: &Op) -> Result<(), String> {
        let granule = self.plan.granule;
        let size = self.guest.size();
        let (what, mut len) = (op.what, op.len);
        let cluster_size = self.plan.setup.cluster_size();
        if what.has_range() {
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
                let resizes = self
                    .plan
                    .ops
                    .iter()
                    .any(|op| matches!(op.what, What::Resize | What::Snapshot(Act::Apply, _)));
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
            What::Snapshot(act, number) => {
                drop(model);
                self.snapshot(op, act, Plan::snapshot_name(number)).await
            }
            What::Flush => {
                let asked = model.ask();
                drop(model);
                let unheard = self.flushes_failed() > self.heard.get();
                let result = cut(guest.flush(), polls).await;
                self.flushed(asked, unheard, result)
            }
            What::Reconfigure => {
                let asked = model.ask();
                drop(model);
                let unheard = self.flushes_failed() > self.heard.get();
                let change = guest.change_settings(self.plan.how, op.offset);
                let result = cut(change, polls).await;
                self.flushed(
                    asked,
                    unheard,
                    result.map(|result| {
                        let cleaner = result?;
                        let clock = self.clock.clone();
                        let run = cleaner.map(|cleaner| self.executor.spawn(cleaner.run(clock)));
                        self.cleaners.borrow_mut().extend(run);
                        Ok(())
                    }),
                )
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

    /// Takes, applies or deletes a snapshot, if there is none of this name or one.
    #[allow(clippy::await_holding_refcell_ref, reason = "it is dropped before each await")]
    async fn snapshot(&self, op: &Op, act: Act, name: &str) -> Result<(), String> {
        if (act == Act::Take) == self.snapshots.borrow().is_listed(name) {
            return Ok(());
        }
        let mut model = self.model.borrow_mut();
        let asked = model.ask();
        let size = self.guest.size();
        let mut change = None;
        match act {
            Act::Take => {
                let started = model.start_read();
                self.snapshots.borrow_mut().gone(name, &mut model);
                self.snapshots.borrow_mut().begin(name, started);
            }
            Act::Delete => self.snapshots.borrow_mut().doubt(name),
            Act::Apply => {
                let snapshots = self.snapshots.borrow();
                let Some(tags) = snapshots.tags(name) else { return Ok(()) };
                let restored = model.start_restoring(&op.to_string(), tags);
                let len = tags.len() as u64 * self.plan.granule;
                if len != size {
                    model.sizing(restored, len);
                    self.resized.set(true);
                }
                change = Some(restored);
            }
        }
        drop(model);
        let result = cut(self.guest.snapshot(act, name), op.polls.unwrap_or(u64::MAX)).await;
        self.hear();
        let mut model = self.model.borrow_mut();
        let is_good = matches!(&result, Some(Ok(())));
        let now = model.ask();
        let listed = self.guest.has_snapshot(name);
        if act == Act::Take && listed {
            // It is on the disks, if not durably.
            let found = (self.found)()?;
            let mut snapshots = self.snapshots.borrow_mut();
            let found: Vec<_> = found.into_iter().filter(|(it, _)| it == name).collect();
            if found.is_empty() && !model.has_lost() {
                return Err("the guest has a snapshot that the disk has not".into());
            } else if found.is_empty() {
                snapshots.unsure(name, listed, now);
            } else {
                let tags = snapshots.check_crash_of(name, &found, &model)?;
                snapshots.gone(name, &mut model);
                snapshots.listed(name, tags, is_good, now);
            }
        } else if act != Act::Apply {
            self.snapshots.borrow_mut().unsure(name, listed, now);
        }
        match (change, is_good) {
            (Some(change), true) => {
                model.complete(change);
                model.is_durable(change);
            }
            (Some(change), false) => model.give_up(change),
            (None, _) => {}
        }
        if is_good {
            let as_asked = match act {
                Act::Take => listed,
                Act::Delete => !listed,
                Act::Apply => true,
            };
            if !as_asked {
                return Err(format!("{act:?} has no effect"));
            }
            if act == Act::Delete {
                self.snapshots.borrow_mut().gone(name, &mut model);
            }
            model.flushed(asked);
            self.snapshots.borrow_mut().flushed(asked, &mut model);
        }
        drop(model);
        match result {
            // Narrow refcounts have no room for many.
            Some(Err(Error::LimitExceeded { what: "refcount", .. })) if act != Act::Delete => {
                Ok(())
            }
            Some(result) => self.allow(result),
            None => {
                self.counts.borrow_mut().dropped += 1;
                Ok(())
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
                let mut model = self.model.borrow_mut();
                model.flushed(asked);
                self.snapshots.borrow_mut().flushed(asked, &mut model);
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
        let failing = can_fail(&self.plan.faults);
        let named = self.plan.named.is_some();
        match error {
            Error::Storage { .. } if failing => Ok(()),
            Error::Storage { .. } if self.excused.take() > 0 => Ok(()),
            Error::OutOfBounds { .. } if self.resized.get() => Ok(()),
            // What a failed flush has lost may be a part of a compressed cluster, which reads and writes of a part want.
            Error::Corrupt(corrupt)
                if corrupt.structure() == "compressed cluster"
                    && self.model.borrow().has_lost() =>
            {
                Ok(())
            }
            // A bitmap that a power loss has left in use keeps the disk from another size, as with QEMU.
            Error::InvalidArgument(text)
                if self.plan.setup.bitmaps
                    && text.ends_with("is inconsistent and cannot be used") =>
            {
                Ok(())
            }
            // The settings are being changed, or could not be changed back.
            Error::ReadOnly(_) if self.reconfigures() => Ok(()),
            _ if latched && (failing || named) => {
                self.latched.set(true);
                Ok(())
            }
            error => Err(format!("{error} ({error:?})")),
        }
    }

    fn reconfigures(&self) -> bool {
        self.plan.ops.iter().any(|op| op.what == What::Reconfigure)
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
