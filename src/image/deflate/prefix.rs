//! Prefix codes: their lengths from how often symbols occur, and the codes from the lengths.
//!
//! Spec: RFC 1951, 3.2.2.

/// The most symbols that a code has.
const SYMBOLS_MAX: usize = 288;

/// Finds lengths, of at most `len_max` bits, of a code for symbols that occur so often: the best one, or near to it if
/// that would be longer. At least two symbols have a code, as some readers refuse less.
pub(super) fn code_lengths(counts: &[u32], len_max: usize, lens: &mut [u8]) {
    lens.fill(0);
    // OK to cast here and below: there are at most 288 symbols.
    let mut leaves: Vec<(u32, u16)> = Vec::with_capacity(SYMBOLS_MAX);
    leaves.extend(
        counts.iter().enumerate().filter(|(_, c)| **c > 0).map(|(symbol, c)| (*c, symbol as u16)),
    );
    for (symbol, count) in counts.iter().enumerate() {
        if leaves.len() < 2 && *count == 0 {
            leaves.push((1, symbol as u16));
        }
    }
    leaves.sort_unstable();
    let mut lens_count = leaf_depths(&leaves, len_max);
    shorten(&mut lens_count, len_max);
    // The rarest have the longest.
    let mut rarest = leaves.iter();
    for len in (1..=len_max).rev() {
        for (_, symbol) in rarest.by_ref().take(lens_count[len]) {
            lens[usize::from(*symbol)] = len as u8;
        }
    }
}

/// How many leaves of Huffman's tree are at each depth; those that are deeper are counted at `depth_max`.
fn leaf_depths(leaves: &[(u32, u16)], depth_max: usize) -> [usize; 16] {
    // The two lightest of the leaves and the nodes that were made so far become a node, which is no lighter than those
    // before it: both are rows that are taken from the front.
    let mut weights = Vec::with_capacity(leaves.len());
    let mut leaf_parents = Vec::with_capacity(leaves.len());
    let mut node_parents = Vec::with_capacity(leaves.len());
    for made in 0..leaves.len() - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            let leaf = leaves.get(leaf_parents.len()).map(|leaf| leaf.0);
            let node = weights.get(node_parents.len()).copied();
            match (leaf, node) {
                (Some(leaf), node) if node.is_none_or(|node| leaf <= node) => {
                    weight += leaf;
                    leaf_parents.push(made);
                }
                (_, node) => {
                    weight += node.unwrap_or(0);
                    node_parents.push(made);
                }
            }
        }
        weights.push(weight);
    }
    // The last node is the root.
    let mut depths = vec![0; weights.len()];
    for node in (0..node_parents.len()).rev() {
        depths[node] = depths[node_parents[node]] + 1;
    }
    let mut counts = [0; 16];
    for parent in leaf_parents {
        counts[depth_max.min(depths[parent] + 1)] += 1;
    }
    counts
}

/// Makes a code of lengths some of which were too long: the sum of 2^-length becomes 1.
fn shorten(counts: &mut [usize; 16], len_max: usize) {
    let mut sum: usize = (1..=len_max).map(|len| counts[len] << (len_max - len)).sum();
    while sum > 1 << len_max {
        // One of the longest goes beside one that was shorter, which becomes a bit longer for it.
        counts[len_max] -= 1;
        if let Some(len) = (1..len_max).rev().find(|&len| counts[len] > 0) {
            counts[len] -= 1;
            counts[len + 1] += 2;
        }
        sum -= 1;
    }
}

/// The codes that have these lengths, their first bit the lowest.
pub(super) fn codes<const N: usize>(lens: &[u8; N]) -> [u16; N] {
    let mut counts = [0; 16];
    for &len in lens {
        counts[usize::from(len)] += 1;
    }
    counts[0] = 0;
    let mut next = [0_u16; 16];
    for len in 1..16 {
        next[len] = (next[len - 1] + counts[len - 1]) << 1;
    }
    lens.map(|len| {
        if len == 0 {
            return 0;
        }
        let code = next[usize::from(len)];
        next[usize::from(len)] = code.wrapping_add(1);
        code.reverse_bits() >> (16 - len)
    })
}

#[cfg(test)]
mod tests {
    use super::{code_lengths, codes};

    #[test]
    fn codes_of_the_specification() {
        // RFC 1951, 3.2.2: the example, with its codes reversed.
        let codes = codes(&[3, 3, 3, 3, 3, 2, 4, 4]);
        let expected = ["010", "011", "100", "101", "110", "00", "1110", "1111"];
        for (code, expected) in codes.iter().zip(expected) {
            let len = expected.len();
            let bits: String =
                (0..len).map(|bit| if code >> bit & 1 == 1 { '1' } else { '0' }).collect();
            assert_eq!(bits, expected);
        }
    }

    #[test]
    fn lengths_are_complete_and_within_the_limit() {
        // Fibonacci's numbers make the deepest tree.
        let mut counts = vec![1_u32, 1];
        while counts.len() < 30 {
            counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
        }
        for len_max in [7, 15] {
            for symbols in 0..=30 {
                let mut counts = counts[..symbols].to_vec();
                counts.resize(30, 0);
                let mut lens = vec![0; 30];
                code_lengths(&counts, len_max, &mut lens);
                let sum: f64 =
                    lens.iter().filter(|&&len| len > 0).map(|&len| 0.5_f64.powi(len.into())).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{symbols} symbols, {len_max}: {lens:?}");
                assert!(lens.iter().all(|&len| usize::from(len) <= len_max));
                assert!(counts.iter().zip(&lens).all(|(count, len)| *count == 0 || *len > 0));
            }
        }
    }
}
