//! Bytes to fill images with, such that a byte from the wrong place shows, and a small generator of choices.

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

/// How many pattern files there are; see [`pattern_file`].
pub const PATTERN_FILES: usize = 8;

/// A small deterministic generator (splitmix64). The same seed makes the same images everywhere.
pub struct Choices(u64);

impl Choices {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x6a09_e667_f3bc_c908)
    }

    /// Any 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
}

/// Returns the path of a file of patterned bytes for `qemu-io write -s`.
///
/// Files with even numbers compress to about a third, those with odd numbers do not compress. No file's length is a
/// multiple of a sector, so that repetition never lines up with a cluster. The files are always the same: they are
/// made once for the machine, and every process finds them again.
pub fn pattern_file(number: usize) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join("cowshed-test-patterns-1");
        std::fs::create_dir_all(&dir).expect("a folder for patterns");
        for number in 0..PATTERN_FILES {
            let path = dir.join(format!("{number}"));
            if std::fs::metadata(&path).is_ok_and(|found| found.len() == PATTERN_LEN_BYTES) {
                continue;
            }
            // Renamed into place: another process may be making the same file.
            let mut file = tempfile::NamedTempFile::new_in(&dir).expect("a pattern file");
            file.write_all(&pattern(number)).expect("a pattern file");
            file.persist(&path).expect("a pattern file");
        }
        dir
    });
    dir.join(format!("{}", number % PATTERN_FILES))
}

/// A prime number of 8-byte words, less five bytes.
const PATTERN_LEN_BYTES: u64 = 24_593 * 8 - 5;

fn pattern(number: usize) -> Vec<u8> {
    let mut choices = Choices::new(number as u64 + 1);
    let mut bytes = Vec::new();
    for word in 0..PATTERN_LEN_BYTES.div_ceil(8) {
        let value = if number.is_multiple_of(2) {
            ((number as u64) << 56) | ((word / 3) << 8) | 0x5a
        } else {
            choices.next()
        };
        bytes.extend_from_slice(&value.to_be_bytes());
    }
    bytes.truncate(PATTERN_LEN_BYTES as usize);
    bytes
}
