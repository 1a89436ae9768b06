//! The fear: a corner that no seed has come to. All short programs of a small grammar, on the smallest image, with the
//! power gone after every step; and of each step every outcome, as long as there are not too many.

use cowshed::image::ZeroMode;

use super::engine::{Act, Cow};
use super::seeds::try_live;
use super::setup::{DataFile, Setup};
use super::workload::{Looks, Op, PLAIN, Plan, What};

/// How many requests a program has at most, and how many outcomes of a step are looked at: where nobody says otherwise.
const REQUESTS_DEFAULT: u64 = 3;
const OUTCOMES_DEFAULT: u64 = 12;

const SETUP: Setup = Setup {
    version: 3,
    cluster_bits: 9,
    refcount_bits: 16,
    extended_l2: false,
    lazy_refcounts: false,
    zstd: false,
    data_file: DataFile::Internal,
    backing_len: 2048,
    snapshot: false,
    metadata_preallocated: false,
    made_by_qemu: false,
    bitmaps: false,
    encrypted: false,
    size: 4096,
    size_max: 4096,
};

/// The grammar: clusters of 512 bytes, of which the backing file has the first four.
const WORDS: [(What, u64, u64); 10] = [
    (What::Write, 0, 512),
    (What::Write, 256, 512),
    (What::WriteZeroes(ZeroMode::MayUnmap), 0, 512),
    (What::Discard, 0, 1024),
    (What::WriteCompressed, 512, 512),
    (What::Flush, 0, 0),
    (What::Resize, 0, 512),
    (What::Snapshot(Act::Take, 1), 0, 0),
    (What::Snapshot(Act::Apply, 1), 0, 0),
    (What::Snapshot(Act::Delete, 1), 0, 0),
];

#[test]
fn every_short_program_survives_a_power_loss_after_every_step() {
    let requests = super::number("COWSHED_SIM_REQUESTS").unwrap_or(REQUESTS_DEFAULT);
    let outcomes = super::number("COWSHED_SIM_OUTCOMES").unwrap_or(OUTCOMES_DEFAULT);
    let (mut programs, mut states) = (0_u64, 0);
    let words = WORDS.len() as u64;
    for len in 1..=u32::try_from(requests).unwrap() {
        for program in 0..words.pow(len) {
            let word = |at| WORDS[usize::try_from(program / words.pow(at) % words).unwrap()];
            let mut plan = Plan::simple(programs, SETUP, PLAIN, (0..len).map(word));
            plan.granule = 64;
            plan.looks = Looks::All(outcomes);
            let lived = try_live(&Cow, &plan, &plan.ops);
            let (counts, _) = lived.unwrap_or_else(|what| {
                let ops: Vec<String> = plan.ops.iter().map(Op::to_string).collect();
                panic!("program {programs}: {what}\n{}", ops.join("\n"))
            });
            programs += 1;
            states += counts.states;
        }
    }
    println!("{programs} programs, {states} states after a power loss");
}
