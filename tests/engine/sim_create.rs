//! The fear: a creation that loses power, fails or is dropped leaves something that opens as an image and is none.
//!
//! What is on the disk afterwards must be the image that was there before, the new one whole, or no image at all.

use crate::support::seeds::for_each_seed;
use cowshed::image::{CreateOptions, Format, Preallocation, create, detect};
use cowshed::sim::{Executor, Failure, Faults, SimStorage, cut};
use cowshed::storage::MemoryStorage;

/// Images whose headers are longer than a sector, and tables that move.
fn cases() -> Vec<CreateOptions> {
    let mut named = CreateOptions::new(3 << 20);
    named.cluster_size = 4096;
    named.backing_file = Some(vec![b'n'; 600]);
    named.backing_format = Some(b"raw".to_vec());
    let mut preallocated = CreateOptions::new(700 << 10);
    preallocated.cluster_size = 512;
    preallocated.refcount_bits = 64;
    preallocated.preallocation = Preallocation::Metadata;
    let mut full = CreateOptions::new(64 << 10);
    full.cluster_size = 4096;
    full.preallocation = Preallocation::Full;
    vec![named, preallocated, full]
}

/// The image that the options make.
fn made(options: &CreateOptions) -> Vec<u8> {
    let storage = MemoryStorage::default();
    futures::executor::block_on(create(&storage, None, options)).unwrap();
    storage.into_vec()
}

/// Asserts that `found` is the old image, the new one, or none; whether it is the new one.
#[track_caller]
fn judge(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    if detect(found) == Format::Raw || found == old {
        return false;
    }
    assert!(found == new, "neither the old image nor the new one nor none");
    true
}

#[test]
fn power_loss_leaves_the_old_image_the_new_one_or_none() {
    let (mut whole, mut none) = (0, 0);
    let cases = cases();
    let images: Vec<_> = cases.iter().map(made).collect();
    for_each_seed(400, |seed| {
        let pick = |shift: u32| usize::try_from(seed >> shift).unwrap() % cases.len();
        let (options, new) = (&cases[pick(0)], &images[pick(0)]);
        let old = if seed % 4 == 0 { Vec::new() } else { images[pick(3)].clone() };
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, old.clone(), Faults::none());
        let created = executor.run_until(create(&disk, None, options), || {
            match judge(&disk.crash_state().to_vec(), &old, new) {
                true => whole += 1,
                false => none += 1,
            }
            false
        });
        created.unwrap().unwrap().unwrap();
        assert!(disk.crash_state().to_vec() == *new, "it is durable when it has returned");
    });
    println!("power losses that left the new image: {whole}, none or the old one: {none}");
    assert!(whole > 0 && none > 0);
}

#[test]
fn failed_request_leaves_the_old_image_the_new_one_or_none() {
    let cases = cases();
    let images: Vec<_> = cases.iter().map(made).collect();
    for (options, new) in cases.iter().zip(&images) {
        for old in [Vec::new(), images[0].clone()] {
            for number in 0.. {
                let executor = Executor::new(number);
                let disk = SimStorage::new(&executor, old.clone(), Faults::none());
                let failure = match number % 3 {
                    0 => Failure::Io,
                    1 => Failure::NoSpace,
                    _ => Failure::Losing,
                };
                disk.fail_request(number, failure);
                let created = executor.run(create(&disk, None, options)).unwrap();
                judge(&disk.to_vec(), &old, new);
                judge(&disk.crash_state().to_vec(), &old, new);
                if disk.requests() <= number {
                    created.unwrap();
                    break;
                }
                created.unwrap_err();
            }
        }
    }
}

#[test]
fn dropped_creation_leaves_the_old_image_the_new_one_or_none() {
    let cases = cases();
    let images: Vec<_> = cases.iter().map(made).collect();
    for (options, new) in cases.iter().zip(&images) {
        let old = &images[1];
        for polls in 0.. {
            let executor = Executor::new(polls);
            let disk = SimStorage::new(&executor, old.clone(), Faults::none());
            let created = executor.run(cut(create(&disk, None, options), polls)).unwrap();
            judge(&disk.crash_state().to_vec(), old, new);
            if let Some(created) = created {
                created.unwrap();
                break;
            }
        }
    }
}
