//! The fear: an image that is damaged already becomes worse because somebody writes to it. A refcount that is too low makes
//! a table look like free space; an entry that points to a table makes a guest's write land there. Whatever the damage, a
//! write either is refused or changes what it names, and nothing else: no other byte of the disk, no snapshot, and there is
//! not more wrong with the tables than before.
//!
//! The images are QEMU's, damaged by hand and by seeds. What they read as before is what they must read as afterwards.

mod bases;
mod damages;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::data::Choices;
use crate::support::seeds::for_each_seed;
use bases::{Base, EMPTY, FAR, FRESH, KEPT, PACKED, REWRITTEN, bases};
use damages::{damages, random_damage};
use world::{Op, OpKind, World};

/// Runs `check`, and returns what it fails with: all that fail are shown together.
fn failure<T>(check: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(check)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = panic.downcast_ref::<String>().cloned().or(text);
        text.unwrap_or_else(|| "a panic".to_owned())
    })
}

fn assert_none(failures: &[String]) {
    // One of each damage.
    let damage = |text: &String| text.split(',').next().unwrap_or_default().to_owned();
    let each: BTreeMap<_, _> = failures.iter().map(|text| (damage(text), text)).collect();
    let shown: Vec<_> = each.values().take(200).map(|text| text.as_str()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), shown.join("\n"));
}

/// Requests to one guest cluster, each in several shapes.
fn requests(size: u64, cluster: u64) -> Vec<Op> {
    let mut ops = Vec::new();
    for (kind, seed) in OpKind::EVERY.into_iter().zip(0x31..) {
        let start = cluster * size;
        ops.push(Op { kind, offset: start, len: size, seed });
        if kind == OpKind::Write {
            ops.push(Op { kind, offset: start + 100, len: 200, seed: seed + 64 });
            ops.push(Op { kind, offset: start + size - 512, len: size, seed: seed + 65 });
        }
    }
    ops
}

/// Requests all over the disk.
fn mixed(base: &Base, choices: &mut Choices, count: usize) -> Vec<Op> {
    let (size, disk) = (base.tables.cluster_size(), base.tables.size());
    let near = [REWRITTEN, KEPT, FRESH, PACKED, EMPTY, FAR, 20, 40];
    (0..count)
        .map(|index| {
            let kind = OpKind::EVERY[choices.below(5) as usize];
            let start = near[choices.below(8) as usize] * size;
            let (offset, len) = match choices.below(3) {
                _ if kind == OpKind::Compressed => (start, size),
                0 => (start, size * choices.between(1, 2)),
                1 => (start + choices.below(size), 1 + choices.below(size)),
                _ => (start, size),
            };
            Op { kind, offset, len: len.min(disk - offset), seed: index as u8 * 16 + 3 }
        })
        .collect()
}

#[test]
fn sound_image_takes_every_request() {
    for base in bases() {
        let world = World::new(&base.tables.bytes);
        for cluster in [REWRITTEN, KEPT, FRESH, PACKED, EMPTY, FAR] {
            for op in requests(base.tables.cluster_size(), cluster) {
                let outcome = world.run(std::slice::from_ref(&op), &base.name);
                // QEMU packs no cluster that is allocated, either.
                if op.kind != OpKind::Compressed {
                    assert_eq!((outcome.done, outcome.refused), (1, vec![]), "{op:?}");
                }
            }
        }
        for_each_seed(20, |seed| {
            world.run(&mixed(&base, &mut Choices::new(seed), 12), &base.name);
        });
    }
}

#[test]
fn request_to_a_damaged_image_changes_what_it_names_or_is_refused() {
    let (mut done, mut refused, mut failures) = (0, BTreeMap::new(), Vec::new());
    let mut number = 0;
    for base in bases() {
        for damage in damages(&base) {
            let world = World::new(&damage.bytes);
            for cluster in [REWRITTEN, KEPT, FRESH, FRESH + 1, PACKED, EMPTY, FAR] {
                for op in requests(base.tables.cluster_size(), cluster) {
                    // A part of them, spread over all.
                    number += 1;
                    if number % 5 != 0 {
                        continue;
                    }
                    match failure(|| world.run(&[op], &damage.name)) {
                        Ok(outcome) => {
                            done += outcome.done;
                            for reason in outcome.refused {
                                *refused.entry(reason).or_insert(0) += 1;
                            }
                        }
                        Err(text) => failures.push(text),
                    }
                }
            }
        }
    }
    assert_none(&failures);
    // Most damage is no reason to refuse, and what must be refused is.
    assert!(refused.contains_key("write-unsafe") && refused.contains_key("invalid-write"));
    assert!(done > refused.values().sum::<usize>());
}

#[test]
fn many_requests_to_a_damaged_image_change_what_they_name() {
    let mut failures = Vec::new();
    for base in bases() {
        for damage in damages(&base) {
            let world = World::new(&damage.bytes);
            for_each_seed(2, |seed| {
                let ops = mixed(&base, &mut Choices::new(seed), 12);
                failures.extend(failure(|| world.run(&ops, &(&damage.name, seed))).err());
            });
        }
    }
    assert_none(&failures);
}

#[test]
fn requests_to_randomly_damaged_images_change_what_they_name() {
    let (bases, mut failures) = (bases(), Vec::new());
    for_each_seed(2000, |seed| {
        let base = &bases[seed as usize % bases.len()];
        let damage = random_damage(base, seed);
        let ops = mixed(base, &mut Choices::new(seed ^ 0x5555), 6);
        failures.extend(failure(|| World::new(&damage.bytes).run(&ops, &damage.name)).err());
    });
    assert_none(&failures);
}
