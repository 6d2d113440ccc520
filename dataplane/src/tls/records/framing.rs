//! Where one record ends and the next begins (RFC 8446 section 5.1), whatever the pieces in which they come.
//!
//! rustls is fed one record at a time by it, so that it never holds a part of one: whoever takes over from it finds what follows
//! in the pump.

/// Type, version and length of a record. Bytes.
pub(super) const HEADER: usize = 5;

/// How far the record under way has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Framing {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    begun: usize,
    /// Bytes of the body that are not.
    missing: usize,
}

impl Framing {
    /// Goes on to the end of the record under way, or of the data; gives how many bytes that were.
    pub fn pass(&mut self, data: &[u8]) -> usize {
        let mut passed = 0;
        for byte in data {
            let Some(next) = self.header.get_mut(self.begun) else { break };
            *next = *byte;
            self.begun += 1;
            passed += 1;
            if self.begun == HEADER {
                self.missing = length(self.header);
            }
        }
        if self.begun == HEADER {
            let body = self.missing.min(data.len() - passed);
            self.missing -= body;
            passed += body;
            if self.missing == 0 {
                *self = Self::default();
            }
        }
        passed
    }

    /// Whether no part of a record is there without the rest of it.
    pub fn is_between(&self) -> bool {
        self.begun == 0
    }
}

/// How long the body is that follows a header.
pub(super) fn length([_, _, _, high, low]: [u8; HEADER]) -> usize {
    u16::from_be_bytes([high, low]).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ends_are_found_in_any_pieces(
            lengths in prop::collection::vec(0_u16..700, 1..6),
            pieces in prop::collection::vec(1_usize..400, 1..40),
        ) {
            let mut wire = Vec::new();
            let mut ends = Vec::new();
            for length in &lengths {
                wire.extend_from_slice(&[23, 3, 3]);
                wire.extend_from_slice(&length.to_be_bytes());
                wire.resize(wire.len() + usize::from(*length), 0);
                ends.push(wire.len());
            }
            let (mut framing, mut at, mut found) = (Framing::default(), 0, Vec::new());
            let mut piece = pieces.iter().cycle();
            while at < wire.len() {
                let end = (at + piece.next().unwrap()).min(wire.len());
                let passed = framing.pass(&wire[at..end]);
                prop_assert!(passed > 0);
                at += passed;
                if framing.is_between() {
                    found.push(at);
                }
            }
            prop_assert_eq!(found, ends);
        }
    }
}
