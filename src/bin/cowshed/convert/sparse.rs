//! Which parts of data are worth writing: `qemu-img`'s rules for leaving out zeros.

/// The unit of looking for zeros, in bytes.
pub(super) const SECTOR_LEN_BYTES: usize = 512;

/// How zeros are left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sparse {
    /// How many sectors of zeros in a row make a gap; 0 writes everything.
    pub(super) sectors_min: usize,
}

impl Sparse {
    /// Whether gaps are left at all.
    pub(super) fn leaves_gaps(self) -> bool {
        self.sectors_min > 0
    }

    /// Gaps and data begin and end at multiples of this many sectors, where they can.
    fn alignment(self) -> u64 {
        match self.sectors_min {
            0 => 1,
            sectors => 1 << sectors.ilog2(),
        }
    }

    /// The run at the start of `bytes`, which lie at a multiple of a sector: its length in bytes and whether it is to be
    /// written. `bytes` must not be empty.
    pub(super) fn run(self, bytes: &[u8], offset: u64) -> (usize, bool) {
        if !self.leaves_gaps() {
            return (bytes.len(), true);
        }
        let sector = offset / SECTOR_LEN_BYTES as u64;
        let sectors = bytes.len().div_ceil(SECTOR_LEN_BYTES);
        let gap_min = self.sectors_min.min(sectors);
        let (mut end, is_data) = self.aligned_run(bytes, sector);
        if is_data {
            // Gaps that are too short belong to the data around them.
            let mut looked_at = end;
            while looked_at < sectors {
                let rest = &bytes[looked_at * SECTOR_LEN_BYTES..];
                let (len, is_data) = self.aligned_run(rest, sector + looked_at as u64);
                looked_at += len;
                if is_data {
                    end = looked_at;
                } else if len >= gap_min {
                    break;
                }
            }
        }
        (bytes.len().min(end * SECTOR_LEN_BYTES), is_data)
    }

    /// The run at the start in sectors, its end moved to an aligned one: data grows and a gap shrinks.
    fn aligned_run(self, bytes: &[u8], sector: u64) -> (usize, bool) {
        let sectors = bytes.len().div_ceil(SECTOR_LEN_BYTES);
        let mut zeros = bytes.chunks(SECTOR_LEN_BYTES).map(is_zero);
        let is_gap = zeros.next().unwrap_or(true);
        let len = 1 + zeros.take_while(|zero| *zero == is_gap).count();
        let alignment = self.alignment();
        let over = (sector + len as u64) % alignment;
        if len >= sectors || over == 0 {
            return (len.min(sectors), !is_gap);
        }
        // OK to narrow: less than the alignment, which is at most `sectors_min`.
        let (over, missing) =
            (usize::try_from(over).unwrap_or(0), usize::try_from(alignment - over).unwrap_or(0));
        match is_gap {
            true if len > over => (len - over, false),
            // A gap within one aligned unit: its end is data anyway.
            _ => (sectors.min(len + missing), true),
        }
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of sectors written as letters: `.` is zeros, anything else is data.
    fn runs(sectors_min: usize, offset_sectors: u64, sectors: &str) -> Vec<(usize, bool)> {
        let bytes: Vec<u8> = sectors
            .bytes()
            .flat_map(|letter| [if letter == b'.' { 0 } else { letter }; 512])
            .collect();
        let sparse = Sparse { sectors_min };
        let mut at = 0;
        let mut runs = Vec::new();
        while at < bytes.len() {
            let (len, is_data) = sparse.run(&bytes[at..], offset_sectors * 512 + at as u64);
            runs.push((len / 512, is_data));
            at += len;
        }
        runs
    }

    #[test]
    fn short_gaps_are_written() {
        assert_eq!(runs(8, 0, "aaaaaaaa....aaaa"), [(16, true)]);
        assert_eq!(runs(8, 0, "aaaaaaaa........aaaaaaaa"), [(8, true), (8, false), (8, true)]);
    }

    #[test]
    fn gaps_end_at_aligned_sectors() {
        assert_eq!(
            runs(8, 0, "a..........................a...."),
            [(8, true), (16, false), (8, true)]
        );
        assert_eq!(runs(8, 4, "....aaaaaaaa"), [(4, false), (8, true)]);
        assert_eq!(runs(1, 0, "a.a."), [(1, true), (1, false), (1, true), (1, false)]);
    }

    #[test]
    fn nothing_is_left_out_without_sparseness() {
        assert_eq!(runs(0, 0, "........"), [(8, true)]);
    }
}
