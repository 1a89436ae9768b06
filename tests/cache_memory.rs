//! Memory: that the budget bounds it, that a pass gives it back to the system, and that a hit takes none.
//!
//! Marking a slot as empty is not giving its memory back: QEMU releases pages, and so must we, measured where the user
//! sees it: in the resident size of the process. One test in a program of its own, as others would disturb the figures.

#![cfg(not(target_family = "wasm"))]
#![cfg(target_os = "linux")]

mod gated;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use cowshed::cache::TableCache;
use cowshed::format::HostOffset;
use futures::FutureExt;
use gated::{Gated, word_at};

const SLICE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Reads the resident size without allocating: what is allocated after the slices, and is kept by the allocator or
/// somebody else, keeps glibc from giving back what lies below.
struct Resident(File);

impl Resident {
    fn bytes(&self) -> u64 {
        let mut buf = [0; 128];
        let len = self.0.read_at(&mut buf, 0).unwrap();
        let text = std::str::from_utf8(&buf[..len]).unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
}

fn load(cache: &TableCache, storage: &Gated, number: u64) {
    let slice =
        cache.get(storage, HostOffset::new(number * SLICE)).now_or_never().unwrap().unwrap();
    assert_eq!(slice.word(0), word_at(number * SLICE));
}

#[test]
fn memory_is_bounded_while_a_huge_image_is_scanned_and_given_back_by_passes() {
    let cache = TableCache::new(32 * MIB, SLICE);
    let storage = Gated::open();
    let resident = Resident(File::open("/proc/self/statm").unwrap());
    let empty = resident.bytes();

    // The L2 tables of 1 TiB: 128 MiB.
    for number in 0..128 * MIB / SLICE {
        load(&cache, &storage, number);
    }
    let full = resident.bytes();
    assert_eq!(cache.statistics().bytes_held, 32 * MIB);
    assert!(full - empty >= 30 * MIB, "{empty} -> {full}");
    assert!(full - empty <= 36 * MIB, "the budget is 32 MiB: {empty} -> {full}");

    // Hits allocate nothing.
    let number = 128 * MIB / SLICE - 1;
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        let word = cache.hit(HostOffset::new(number * SLICE), |slice| slice.word(3));
        assert_eq!(word, Some(word_at(number * SLICE + 24)));
    }
    assert_eq!(ALLOCATIONS.get(), before);

    cache.pass();
    cache.pass();
    assert_eq!(cache.statistics().bytes_held, 0);
    let cleaned = resident.bytes();
    println!("empty {empty}, full {full}, cleaned {cleaned}");
    assert!(full - cleaned >= 28 * MIB, "{full} -> {cleaned}");
}
