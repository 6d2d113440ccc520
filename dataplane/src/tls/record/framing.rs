//! Where one record ends and the next begins (RFC 8446 section 5.1), whatever the pieces in which
//! they come.
//!
//! rustls is fed one encrypted record at a time by it, so that it never holds a part of the next
//! one: whoever takes over from it finds what follows in the pump. What is in the clear belongs to
//! the handshake, and may as well come with what follows.

use super::APPLICATION_DATA;

/// Type, version and length of a record. Bytes.
pub(super) const HEADER: usize = 5;

/// How far the record under way has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordFraming {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    header_len: usize,
    /// Bytes of the body that are not.
    body_missing: usize,
}

impl RecordFraming {
    /// Goes on to the end of the next encrypted record, or of the data; gives how many bytes that
    /// were.
    pub fn advance(&mut self, data: &[u8]) -> usize {
        let mut rest = data;
        while !rest.is_empty() {
            if self.advance_part(&mut rest) == Some(APPLICATION_DATA) {
                break;
            }
        }
        data.len() - rest.len()
    }

    /// Goes on to the end of the header, of the record, or of the data; the record's type if it was
    /// its end.
    fn advance_part(&mut self, data: &mut &[u8]) -> Option<u8> {
        if let Some(header) = self.header.get_mut(self.header_len..).filter(|header| !header.is_empty()) {
            let (now, later) = data.split_at(header.len().min(data.len()));
            header.iter_mut().zip(now).for_each(|(byte, now)| *byte = *now);
            *data = later;
            self.header_len += now.len();
            self.body_missing = body_len(self.header);
        } else {
            let (now, later) = data.split_at(self.body_missing.min(data.len()));
            *data = later;
            self.body_missing -= now.len();
        }
        if self.header_len < HEADER || self.body_missing > 0 {
            return None;
        }
        let [kind, ..] = std::mem::take(self).header;
        Some(kind)
    }

    /// Whether no part of a record is there without the rest of it.
    pub fn is_at_boundary(&self) -> bool {
        self.header_len == 0
    }
}

/// How long the body is that follows a header.
pub(super) fn body_len([_, _, _, high, low]: [u8; HEADER]) -> usize {
    u16::from_be_bytes([high, low]).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_record_has_an_end_too() {
        let mut framing = RecordFraming::default();
        assert_eq!(framing.advance(&[23, 3, 3, 0, 0, 23, 3, 3, 0, 0]), HEADER);
        assert!(framing.is_at_boundary());
    }

    proptest! {
        #[test]
        fn ends_are_found_in_any_pieces(
            records in prop::collection::vec((20_u8..24, 0_u16..700), 1..8),
            pieces in prop::collection::vec(1_usize..400, 1..40),
        ) {
            let mut wire = Vec::new();
            let mut ends = Vec::new();
            for (kind, length) in &records {
                wire.extend_from_slice(&[*kind, 3, 3]);
                wire.extend_from_slice(&length.to_be_bytes());
                wire.resize(wire.len() + usize::from(*length), 0);
                if *kind == APPLICATION_DATA {
                    ends.push(wire.len());
                }
            }
            let (mut framing, mut at, mut found) = (RecordFraming::default(), 0, Vec::new());
            let mut piece = pieces.iter().cycle();
            while at < wire.len() {
                let end = (at + piece.next().unwrap()).min(wire.len());
                let passed = framing.advance(&wire[at..end]);
                prop_assert!(passed > 0);
                at += passed;
                if at < end {
                    prop_assert!(framing.is_at_boundary());
                    found.push(at);
                } else if framing.is_at_boundary() && ends.contains(&at) {
                    found.push(at);
                }
            }
            prop_assert!(framing.is_at_boundary());
            prop_assert_eq!(found, ends);
        }
    }
}
