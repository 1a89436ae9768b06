//! What guests do, chosen by a seed. Each seed leaves out a random half of all there is (a swarm), so that what is rare
//! beside everything else is common in some of them.

use std::fmt;
use std::time::Duration;

use cowshed::image::ZeroMode;
use cowshed::sim::{Executor, Failure, Faults, Random};

use super::engine::{Act, Below, How};
use super::setup::{DataFile, Setup};

/// In how many lives of 1000 requests stall, where nothing fails: they last longer than anything that others do meanwhile.
const STALLING_PERMILLE: u32 = 200;
/// How many of 1000 stall there.
const STALLS_PERMILLE: u32 = 50;

/// In how many lives of 1000 requests are dropped all the time, flushes as well,
const DROPPING_PERMILLE: u32 = 100;
/// and how many of 1000 there.
const DROPPED_PERMILLE: u32 = 300;

/// In how many lives of 1000 writes are dropped beside flushes, with as little else in flight as can be: nothing but what the engine
/// remembers of a dropped write keeps its clusters from being taken while it may yet land.
const RELEASING_PERMILLE: u32 = 60;
/// How many of 1000 writes are dropped there.
const RELEASED_PERMILLE: u32 = 600;

/// How many kinds of images there are.
const SETUPS: u64 = 256;

/// How much a life reads to look what would be left if the power went.
const LOOKS_LEN_BYTES_MAX: u64 = 32 << 20;

/// Plain options, with a cleaner that passes all the time.
pub const PLAIN: How = How {
    tiny_caches: false,
    clean_interval: 1,
    workers: false,
    write_through: false,
    discard_no_unref: false,
    pass_discard: true,
};

/// A life: an image, how it is used, and what is done to it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub setup: Setup,
    pub how: How,
    /// In bytes.
    pub granule: u64,
    pub faults: Faults,
    pub ops: Vec<Op>,
    /// How each phase ends.
    pub ends: Vec<End>,
    /// What is done before that, or after a close.
    pub tails: Vec<Tail>,
    /// At which steps it is looked what would be left if the power went.
    pub looks: Looks,
    /// One request of one of the files that fails: requests that fail with it are made again.
    pub named: Option<(usize, u64, Failure)>,
}

/// At which steps it is looked what would be left if the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// At so many of 1000, but no more than so many in all.
    Some(u32, u64),
    /// At all of them, and at as many outcomes of each.
    All(u64),
}

/// How a phase ends: all its requests return, or the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Close,
    /// After so many polls of tasks, or when all is done.
    Crash(u64),
}

/// What is done alone at the end of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    Nothing,
    /// Something else comes to lie below the image.
    Rebase(Below),
    /// What the image has goes into what lies below it, after it was closed.
    Commit,
}

impl Tail {
    fn random(setup: &Setup, random: &mut Random) -> Self {
        if !setup.rebases() || !random.chance(200) {
            return Self::Nothing;
        }
        match random.below(4) {
            0 => Self::Rebase(Below::Nothing),
            1 => Self::Rebase(Below::Other),
            2 if setup.backing_len > 0 => Self::Rebase(Below::Backing),
            _ => Self::Commit,
        }
    }
}

/// Nothing that fails.
pub fn no_faults() -> Faults {
    let mut faults = Faults::none();
    // A pass of the cleaner every millisecond: half a minute would be very many.
    faults.stall = Duration::from_millis(40);
    faults
}

/// Whether these faults make requests fail, and not only take long.
pub fn can_fail(faults: &Faults) -> bool {
    let mut others = *faults;
    others.stalls = 0;
    others != no_faults()
}

/// Something that the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub phase: usize,
    /// Requests of one lane come one after the other.
    pub lane: usize,
    pub what: What,
    pub offset: u64,
    pub len: u64,
    /// Microseconds before it.
    pub pause: u64,
    /// It is dropped after so many polls.
    pub polls: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Read,
    Write,
    WriteCompressed,
    WriteZeroes(ZeroMode),
    Discard,
    Flush,
    /// To `len` bytes.
    Resize,
    /// The snapshot of the name with this number: see [`Plan::snapshot_name`].
    Snapshot(Act, usize),
    /// Other settings: `offset` chooses them.
    Reconfigure,
    /// Everything is what lies below again.
    Empty,
}

impl What {
    /// Whether it is done to a range of the disk.
    pub fn has_range(self) -> bool {
        !matches!(
            self,
            Self::Flush | Self::Resize | Self::Snapshot(..) | Self::Reconfigure | Self::Empty
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, lane, what, offset, len, pause, polls } = self;
        write!(f, "phase {phase} lane {lane}: {pause} us later {what:?} {offset:#x} +{len:#x}")?;
        match polls {
            Some(polls) => write!(f, ", dropped after {polls} polls"),
            None => Ok(()),
        }
    }
}

/// Where requests go.
struct Places {
    hot: Vec<u64>,
    setup: Setup,
    granule: u64,
}

impl Places {
    fn new(setup: Setup, granule: u64, random: &mut Random) -> Self {
        let cluster_size = setup.cluster_size();
        let clusters = setup.size.div_ceil(cluster_size);
        let entry_len = if setup.extended_l2 { 16 } else { 8 };
        let table = cluster_size / entry_len;
        let mut hot: Vec<u64> = (0..3).map(|_| random.below(clusters)).collect();
        // Neighbours on both sides of an L2 table's end, and the end of the disk.
        hot.push((table * random.below(clusters.div_ceil(table))).saturating_sub(1));
        hot.push(clusters - 1);
        Self { hot, setup, granule }
    }

    /// A range of granules, which may reach past the end.
    fn range(&self, random: &mut Random) -> (u64, u64) {
        let cluster_size = self.setup.cluster_size();
        let place = self.hot[random.index(self.hot.len())] * cluster_size;
        let whole = random.chance(400);
        let jitter = if whole { 0 } else { random.below(2 * cluster_size) };
        let longest = (4 * cluster_size).clamp(2048, 100_000);
        let len = match random.below(4) {
            0 => 512,
            1 => self.granule * (1 + random.below(8)),
            2 => cluster_size * (1 + random.below(3)),
            _ => 1 + random.below(longest),
        };
        let len = len.min(longest.max(cluster_size)).next_multiple_of(self.granule);
        ((place + jitter) / self.granule * self.granule, len)
    }
}

impl Plan {
    /// The life of `seed`.
    pub fn new(seed: u64) -> Self {
        // The executor's own choices begin with the same number.
        let random = &mut Random::new(seed ^ 0x0057_0a4b_10ad);
        let setup = Setup::numbered(random.below(SETUPS));
        Self::with(seed, setup, random)
    }

    /// The life of `seed` with an image of this kind.
    pub fn with(seed: u64, setup: Setup, random: &mut Random) -> Self {
        let how = How {
            tiny_caches: random.toss(),
            clean_interval: random.below(6),
            workers: random.toss(),
            write_through: random.chance(50),
            discard_no_unref: setup.version == 3 && random.chance(100),
            pass_discard: random.toss(),
        };
        let mut faults = if random.chance(250) { Faults::random(random) } else { no_faults() };
        faults.stall = no_faults().stall;
        let granule = if random.chance(200) { 64 } else { 512 };
        let phases = 1 + random.index(3);
        let lanes = 1 + random.index(4);
        let each = 4 + random.index(16);
        let drops = if random.toss() { 50 } else { 0 };
        let places = Places::new(setup, granule, random);
        let kinds = Kinds::random(&setup, random);
        let mut ops = Vec::new();
        for phase in 0..phases {
            for lane in 0..lanes {
                for _ in 0..each {
                    let mut op = places.op(&kinds, random);
                    (op.phase, op.lane) = (phase, lane);
                    if matches!(op.what, What::Resize | What::Snapshot(..)) && lane > 0 {
                        op.what = What::Flush;
                    }
                    op.polls = random.chance(drops).then(|| 1 + random.below(12));
                    ops.push(op);
                }
            }
        }
        // By choices of its own, so that the lives without it are those that they were.
        let own = &mut Random::new(seed ^ 0x7265_636f_6e66);
        if own.chance(300) {
            for _ in 0..1 + own.below(4) {
                let at = own.index(ops.len());
                let (what, offset) = (What::Reconfigure, own.bits());
                ops.insert(at, Op { what, offset, len: 0, pause: own.below(500), ..ops[at] });
            }
        }
        let ends = (0..phases)
            .map(|_| match random.below(3) {
                0 => End::Close,
                1 => End::Crash(u64::MAX),
                _ => End::Crash(1 + random.below(40 * (lanes * each) as u64)),
            })
            .collect();
        // Each reads the whole disk.
        let looks = Looks::Some(500, (LOOKS_LEN_BYTES_MAX / setup.size_max).clamp(4, 60));
        // By choices of their own, too.
        let own = &mut Random::new(seed ^ 0x0074_6169_6c73);
        if own.chance(100) && setup.data_file != DataFile::ExternalRaw {
            for _ in 0..1 + own.below(3) {
                let at = own.index(ops.len());
                let op = Op { lane: 0, what: What::Empty, polls: None, ..ops[at] };
                ops.insert(at, op);
            }
        }
        if own.chance(STALLING_PERMILLE) && faults == no_faults() {
            faults.stalls = STALLS_PERMILLE;
        }
        if own.chance(DROPPING_PERMILLE) {
            for op in &mut ops {
                if own.chance(DROPPED_PERMILLE) && op.what != What::Empty {
                    op.polls = Some(1 + own.below(12));
                }
            }
        }
        // By choices of their own, once more.
        let releasing = &mut Random::new(seed ^ 0x7265_6c65_6173);
        if releasing.chance(RELEASING_PERMILLE) && setup.data_file == DataFile::Internal {
            ops = places.releasing(phases, releasing);
            faults = no_faults();
        }
        let changes = ops.iter().any(|op| matches!(op.what, What::Snapshot(..)));
        let tail = |_| if changes { Tail::Nothing } else { Tail::random(&setup, own) };
        let tails = (0..phases).map(tail).collect();
        Self { seed, setup, how, granule, faults, ops, ends, tails, looks, named: None }
    }

    /// A life of one phase in which nothing fails, and `ops` come one after the other.
    pub fn simple(
        seed: u64,
        setup: Setup,
        how: How,
        ops: impl IntoIterator<Item = (What, u64, u64)>,
    ) -> Self {
        let op = |(what, offset, len)| Op {
            phase: 0,
            lane: 0,
            what,
            offset,
            len,
            pause: 0,
            polls: None,
        };
        Self {
            seed,
            setup,
            how,
            granule: 512,
            faults: no_faults(),
            ops: ops.into_iter().map(op).collect(),
            ends: vec![End::Close],
            tails: vec![Tail::Nothing],
            looks: Looks::Some(0, 0),
            named: None,
        }
    }

    /// The names of snapshots. An image that has one at first calls it by the first of them.
    pub fn snapshot_name(number: usize) -> &'static str {
        ["one", "two", "three"][number]
    }

    /// Whether snapshots come or go in it.
    pub fn has_snapshots(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.what, What::Snapshot(..)))
    }

    /// The world in which it takes place.
    pub fn executor(&self) -> Executor<'static> {
        Executor::new(self.seed)
    }
}

/// What kinds of requests there are in a life: each as often as its number says.
struct Kinds(Vec<(What, u64)>);

impl Kinds {
    fn random(setup: &Setup, random: &mut Random) -> Self {
        let mut kinds = vec![(What::Write, 6)];
        let mut maybe = |what, often| {
            if random.toss() {
                kinds.push((what, often));
            }
        };
        maybe(What::Read, 4);
        maybe(What::WriteZeroes(ZeroMode::MayUnmap), 2);
        maybe(What::WriteZeroes(ZeroMode::KeepSpace), 2);
        maybe(What::Discard, 3);
        maybe(What::Flush, 2);
        maybe(What::Flush, 1);
        if setup.compresses() {
            maybe(What::WriteCompressed, 3);
        }
        let shares = setup.shares();
        if setup.data_file != DataFile::ExternalRaw && (!setup.snapshot || shares) {
            maybe(What::Resize, 1);
        }
        if shares {
            maybe(What::Snapshot(Act::Take, 0), 2);
            maybe(What::Snapshot(Act::Apply, 0), 1);
            maybe(What::Snapshot(Act::Delete, 0), 1);
        }
        // There it cannot be resized while there are snapshots.
        let with = kinds.iter().any(|(what, _)| matches!(what, What::Snapshot(..)));
        if setup.version == 2 && (with || setup.snapshot) {
            kinds.retain(|(what, _)| *what != What::Resize);
        }
        Self(kinds)
    }

    fn choose(&self, random: &mut Random) -> What {
        let mut rest = random.below(self.0.iter().map(|(_, often)| often).sum());
        for &(what, often) in &self.0 {
            match rest.checked_sub(often) {
                Some(less) => rest = less,
                None => return what,
            }
        }
        What::Flush
    }
}

impl Places {
    /// Writes into clusters that have just been discarded, many of which are dropped, beside flushes.
    fn releasing(&self, phases: usize, random: &mut Random) -> Vec<Op> {
        let cluster_size = self.setup.cluster_size();
        let mut ops = Vec::new();
        for phase in 0..phases {
            let mut add = |lane, what, offset, len, pause, polls| {
                ops.push(Op { phase, lane, what, offset, len, pause, polls });
            };
            for _ in 0..10 + random.below(10) {
                let offset = self.hot[random.index(self.hot.len())] * cluster_size;
                add(1, What::Discard, offset, cluster_size, random.below(400), None);
                let len = 512 * (1 + random.below(cluster_size / 512));
                let polls = random.chance(RELEASED_PERMILLE).then(|| 1 + random.below(3));
                add(1, What::Write, offset, len, random.below(1500), polls);
                add(0, What::Flush, 0, 0, random.below(1000), None);
            }
        }
        ops
    }

    fn op(&self, kinds: &Kinds, random: &mut Random) -> Op {
        let what = kinds.choose(random);
        let (mut offset, mut len) = self.range(random);
        let cluster_size = self.setup.cluster_size();
        match what {
            What::WriteCompressed => {
                offset = offset / cluster_size * cluster_size;
                len = cluster_size * (1 + random.below(2));
            }
            What::Resize => len = 512 * (1 + random.below(self.setup.size_max / 512)),
            _ => {}
        }
        let what = match what {
            What::Snapshot(act, _) => What::Snapshot(act, random.index(3)),
            what => what,
        };
        let pause = if random.toss() { 0 } else { random.below(2000) };
        Op { phase: 0, lane: 0, what, offset, len, pause, polls: None }
    }
}
