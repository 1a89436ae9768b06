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

    /// Whether the same zeros are left out if runs are cut at multiples of `len` bytes: each aligned unit is a gap or it is
    /// not, whatever is beside it.
    pub(super) fn can_be_cut_at(self, len: u64) -> bool {
        let unit = self.alignment() * SECTOR_LEN_BYTES as u64;
        !self.leaves_gaps() || (self.sectors_min.is_power_of_two() && len.is_multiple_of(unit))
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

/// Whether all bytes are zero. Of what is not, most begins with something else than zeros: no more is looked at then.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    if words.first().is_some_and(|word| *word != [0; 8]) {
        return false;
    }
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
    fn a_run_that_is_cut_has_the_same_gaps() {
        for sectors_min in [0, 1, 2, 3, 4, 6, 8, 16] {
            let sparse = Sparse { sectors_min };
            if !sparse.can_be_cut_at(8 * 512) {
                assert!(!sectors_min.is_power_of_two() || sectors_min > 8, "{sectors_min}");
                continue;
            }
            for bits in 0..1_u32 << 12 {
                let sectors: String =
                    (0..12).map(|bit| if bits >> bit & 1 == 0 { '.' } else { 'a' }).collect();
                // From where units begin, and from in between.
                for offset in [0, 3] {
                    let cut = 8 - offset;
                    let each = |runs: Vec<(usize, bool)>| -> Vec<bool> {
                        runs.into_iter().flat_map(|(len, is_data)| vec![is_data; len]).collect()
                    };
                    let whole = each(runs(sectors_min, offset as u64, &sectors));
                    let mut parts = each(runs(sectors_min, offset as u64, &sectors[..cut]));
                    parts.extend(each(runs(sectors_min, 8, &sectors[cut..])));
                    assert_eq!(parts, whole, "{sectors_min} {offset} {sectors}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_out_without_sparseness() {
        assert_eq!(runs(0, 0, "........"), [(8, true)]);
    }
}
