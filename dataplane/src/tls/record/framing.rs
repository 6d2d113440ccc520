//! Where one record ends and the next begins (RFC 8446 section 5.1), whatever pieces they arrive
//! in.
//!
//! It feeds rustls one encrypted record at a time, so that rustls never holds a part of the next
//! one when a connection detaches. Plaintext records belong to the handshake, and may go together.

use super::APPLICATION_DATA;

/// Type, version and length of a record. Bytes.
pub(super) const HEADER: usize = 5;

/// The position in the record that is being read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordFraming {
    header: [u8; HEADER],
    /// Bytes of the header that were read.
    header_len: usize,
    /// Bytes of the body that were not read.
    body_missing: usize,
}

impl RecordFraming {
    /// Advances to the end of the next encrypted record, or of the data; returns by how many bytes.
    pub fn advance(&mut self, data: &[u8]) -> usize {
        let mut rest = data;
        while !rest.is_empty() {
            if self.advance_part(&mut rest) == Some(APPLICATION_DATA) {
                break;
            }
        }
        data.len() - rest.len()
    }

    /// Advances to the end of the header, of the record, or of the data; returns the type of a
    /// record that ends.
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

    /// Whether no record is incomplete.
    pub fn is_at_boundary(&self) -> bool {
        self.header_len == 0
    }
}

/// The length of the body behind a header.
pub(super) fn body_len([_, _, _, high, low]: [u8; HEADER]) -> usize {
    u16::from_be_bytes([high, low]).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_record_ends_with_its_header() {
        let mut framing = RecordFraming::default();
        assert_eq!(framing.advance(&[23, 3, 3, 0, 0, 23, 3, 3, 0, 0]), HEADER);
        assert!(framing.is_at_boundary());
    }

    proptest! {
        #[test]
        fn record_ends_are_found_in_any_fragmentation(
            records in prop::collection::vec((20_u8..24, 0_u16..700), 1..8),
            pieces in prop::collection::vec(1_usize..400, 1..40),
        ) {
            let mut wire = Vec::new();
            let mut expected = Vec::new();
            for (kind, length) in &records {
                wire.extend_from_slice(&[*kind, 3, 3]);
                wire.extend_from_slice(&length.to_be_bytes());
                wire.resize(wire.len() + usize::from(*length), 0);
                if *kind == APPLICATION_DATA {
                    expected.push(wire.len());
                }
            }
            let (mut framing, mut at, mut ends) = (RecordFraming::default(), 0, Vec::new());
            let mut piece = pieces.iter().cycle();
            while at < wire.len() {
                let end = (at + piece.next().unwrap()).min(wire.len());
                let advanced = framing.advance(&wire[at..end]);
                prop_assert!(advanced > 0);
                at += advanced;
                if at < end {
                    prop_assert!(framing.is_at_boundary());
                    ends.push(at);
                } else if framing.is_at_boundary() && expected.contains(&at) {
                    ends.push(at);
                }
            }
            prop_assert!(framing.is_at_boundary());
            prop_assert_eq!(ends, expected);
        }
    }
}
