//! The fear: a future that is dropped at the one await at which something is half done. Each request that changes
//! something is dropped at each of its polls; then the same place and another one are written to, and after a flush and
//! a close everything is where it belongs and nothing has leaked.

use cowshed::image::ZeroMode;

use super::engine::{Act, Cow, How};
use super::seeds::try_live;
use super::setup::{DataFile, Setup};
use super::workload::{Looks, Op, PLAIN, Plan, What};

/// More polls than any request takes.
const POLLS_MAX: u64 = 400;

/// The images, by their numbers, and options: few enough to be exhaustive with.
fn worlds() -> impl Iterator<Item = (Setup, How)> {
    let how = [PLAIN, How { tiny_caches: true, ..PLAIN }];
    (0..12).map(move |number| (Setup::numbered(number), how[usize::try_from(number % 2).unwrap()]))
}

#[test]
fn request_dropped_at_any_poll_loses_nothing_and_leaks_nothing() {
    let (mut lives, mut polls_most) = (0, 0);
    for (seed, (setup, how)) in (0..).zip(worlds()) {
        let cluster = setup.cluster_size();
        let mut kinds = vec![
            (What::Write, 512, cluster),
            (What::Write, 0, 3 * cluster),
            (What::Write, cluster, 512),
            (What::WriteZeroes(ZeroMode::MayUnmap), 0, 2 * cluster),
            (What::WriteZeroes(ZeroMode::KeepSpace), 512, cluster),
            (What::Discard, 0, 2 * cluster),
            (What::Flush, 0, 0),
            (What::Empty, 0, 0),
        ];
        if setup.compresses() {
            kinds.push((What::WriteCompressed, cluster, cluster));
        }
        if !setup.snapshot {
            kinds.push((What::Resize, 0, setup.size / 2 / 512 * 512));
            kinds.push((What::Resize, 0, setup.size_max));
        }
        if setup.shares() {
            kinds.push((What::Snapshot(Act::Take, 1), 0, 0));
            kinds.push((What::Snapshot(Act::Apply, 2), 0, 0));
            kinds.push((What::Snapshot(Act::Delete, 2), 0, 0));
        }
        for kind in kinds {
            let mut ops = vec![
                (What::Write, cluster, cluster),
                (What::Write, 2 * cluster, 512),
                (What::Flush, 0, 0),
                (What::Write, 2 * cluster + 512, 512),
            ];
            if let What::Snapshot(act, number) = kind.0 {
                if act != Act::Take {
                    ops.insert(1, (What::Snapshot(Act::Take, number), 0, 0));
                }
                // What some tables of the active state are its own for.
                ops.push((What::Write, cluster, 512));
            }
            let dropped = ops.len();
            ops.push(kind);
            if kind.0 == What::Resize {
                // Read-only, and writable again: the disk and its header must agree.
                ops.push((What::Reconfigure, 64, 0));
            }
            ops.extend([
                (What::Read, 0, 4 * cluster),
                (What::Write, 3 * cluster, 512),
                (What::Write, cluster, 512),
                (What::Discard, 2 * cluster, cluster),
                (What::Write, 2 * cluster, 512),
                (What::Read, 0, 4 * cluster),
                (What::Flush, 0, 0),
                (What::Read, 0, 4 * cluster),
                (What::Snapshot(Act::Delete, 1), 0, 0),
            ]);
            let (lived, polls) = drop_at_each_poll(seed, setup, how, &ops, dropped);
            lives += lived;
            polls_most = polls_most.max(polls);
        }
    }
    println!("{lives} lives, at most {polls_most} polls");
}

/// As long as a refcount table of a cluster tells of, but for some clusters.
const NEARLY_FULL: Setup = Setup {
    version: 3,
    cluster_bits: 9,
    refcount_bits: 64,
    extended_l2: false,
    lazy_refcounts: false,
    zstd: false,
    data_file: DataFile::Internal,
    backing_len: 0,
    snapshot: false,
    metadata_preallocated: true,
    made_by_qemu: false,
    bitmaps: false,
    encrypted: false,
    size: 3930 * 512,
    size_max: 4200 * 512,
};

#[test]
fn write_that_moves_the_refcount_table_can_be_dropped_at_any_poll() {
    let used = NEARLY_FULL.make().image.len() as u64 / 512;
    let left = 64 * 64 - used;
    assert!((1..64).contains(&left), "{used} clusters");
    let (size, size_max) = (NEARLY_FULL.size, NEARLY_FULL.size_max);
    let ops = [
        (What::Resize, 0, size_max),
        (What::Write, size, 512 * (left + 2)),
        (What::Write, size_max - 8192, 8192),
        (What::Flush, 0, 0),
        (What::Write, 0, 512),
        (What::Read, 0, size_max),
    ];
    let (lives, polls) = drop_at_each_poll(77, NEARLY_FULL, PLAIN, &ops, 1);
    println!("{lives} lives, at most {polls} polls");
}

/// Lives in each of which the request with the number `dropped` is dropped at another poll. Returns how many lives there
/// were, and how many polls the request takes.
fn drop_at_each_poll(
    seed: u64,
    setup: Setup,
    how: How,
    ops: &[(What, u64, u64)],
    dropped: usize,
) -> (u64, u64) {
    let (mut lives, mut done) = (0, false);
    for polls in 1..POLLS_MAX {
        let mut plan = Plan::simple(seed + 1000 * polls, setup, how, ops.iter().copied());
        plan.ops[dropped].polls = Some(polls);
        plan.looks = Looks::Some(20, 5);
        let lived = try_live(&Cow, &plan, &plan.ops);
        let (counts, _) = lived.unwrap_or_else(|what| {
            let ops: Vec<String> = plan.ops.iter().map(Op::to_string).collect();
            panic!("seed {}: {what}\n{setup:?} {how:?}\n{}", plan.seed, ops.join("\n"))
        });
        lives += 1;
        // Once more when it was not dropped: the next seed may take longer.
        if counts.dropped == 0 && std::mem::replace(&mut done, true) {
            return (lives, polls);
        }
    }
    panic!("{:?} takes more than {POLLS_MAX} polls on {setup:?}", ops[dropped]);
}
