//! Finds the dots of a name eight bytes at a time. Lookups among many names are bound by memory
//! latency, and fewer instructions let the processor start the next load earlier.

const DOTS: u64 = repeated(b'.');
const HIGH: u64 = repeated(0x80);

const fn repeated(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Counts the dots of an ASCII name of at most 253 bytes.
#[inline]
pub(crate) fn count(name: &[u8]) -> usize {
    let (words, rest) = name.as_chunks();
    let Some(last) = name.last_chunk() else {
        return rest.iter().filter(|byte| **byte == b'.').count();
    };
    // The bytes behind the last whole word; with none, the shift by all bits gives zero.
    let rest = u64::from_le_bytes(*last).checked_shr(u64::BITS - 8 * rest.len() as u32).unwrap_or_default();
    let words = words.iter().map(|word| dots(u64::from_le_bytes(*word)) >> 7);
    // Each byte of the sum counts separately, and the multiplication adds them.
    let sum = words.sum::<u64>() + (dots(rest) >> 7);
    (sum.wrapping_mul(repeated(1)) >> 56) as usize
}

/// The index of the first dot.
#[inline]
pub(crate) fn first(name: &[u8]) -> Option<usize> {
    let (words, rest) = name.as_chunks();
    for (at, word) in words.iter().enumerate() {
        let dots = dots(u64::from_le_bytes(*word));
        if dots != 0 {
            return Some(at * 8 + dots.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|byte| *byte == b'.').map(|at| words.len() * 8 + at)
}

/// Sets the highest bit of each byte that is a dot.
#[inline]
fn dots(word: u64) -> u64 {
    // Names are ASCII, so no byte carries into the next.
    !(word ^ DOTS).wrapping_add(!HIGH) & HIGH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn dots_are_found_and_counted_like_byte_by_byte(name in prop::collection::vec(prop_oneof![Just(b'.'), 0..0x80_u8], 0..=253)) {
            let is_dot = |byte: &u8| *byte == b'.';
            prop_assert_eq!(count(&name), name.iter().filter(|byte| is_dot(byte)).count());
            prop_assert_eq!(first(&name), name.iter().position(is_dot));
        }
    }

    #[test]
    fn every_byte_of_the_longest_name_may_be_a_dot() {
        for length in 0..=253 {
            assert_eq!(count(&vec![b'.'; length]), length);
            let mut name = vec![b'/'; length];
            name.push(b'.');
            assert_eq!((first(&name), count(&name)), (Some(length), 1));
        }
    }
}
