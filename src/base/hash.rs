//! Hashes that are the same on every node, in every process and in every version: nodes that agree on nothing else send a
//! key to the same endpoint. Not for secrets, and not for tables that a stranger could fill with collisions.

/// The finaliser of SplitMix64 (public domain): spreads a number over 64 bits.
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A hash of some bytes, eight at a time. Different seeds are different hashes.
pub fn stable(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let whole = words.iter().fold(mix(seed), |hash, word| mix(hash ^ u64::from_le_bytes(*word)));
    let rest = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    // The length tells zero bytes at the end from none.
    mix(mix(whole ^ rest) ^ bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A change here moves every key of every user to another backend.
    #[test]
    fn hashes_never_change() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(stable(0, b""), 0x2382_75bc_38fc_be91);
        assert_eq!(stable(0, b"10.0.0.1:8080"), 0x1869_bbc8_cc50_ba4d);
        assert_eq!(stable(1, b"10.0.0.1:8080"), 0x0891_19c9_952b_a3f8);
    }

    #[test]
    fn short_long_and_padded_texts_differ() {
        let texts: Vec<Vec<u8>> = (0..100).flat_map(|n| [vec![0; n], vec![b'a'; n]]).collect();
        let hashes: HashSet<u64> = texts.iter().map(|text| stable(7, text)).collect();
        assert_eq!(hashes.len(), texts.iter().collect::<HashSet<_>>().len());
    }

    #[test]
    fn the_bits_of_similar_keys_are_spread() {
        for bit in 0..64 {
            let set = (0..1_000u32).filter(|n| stable(0, format!("user-{n}").as_bytes()) >> bit & 1 == 1);
            assert!((420..580).contains(&set.count()), "bit {bit}");
        }
    }
}
