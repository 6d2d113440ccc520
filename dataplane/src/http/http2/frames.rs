//! The frames of an HTTP/2 connection as they are read: whether the first one has begun, whether a
//! header block is open, and how many frames of data are small.
//!
//! `h2` reads a header block whole and does not show an incomplete one, so that a slow head
//! (HEADERS, then CONTINUATION after CONTINUATION) is detected here. Invariant: the scanner counts
//! bytes only; `h2` parses and validates the frames.

use super::intake::SMALL_FRAME;

/// Bytes of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// Bytes of a client's preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The position of a connection in its frames.
#[derive(Debug)]
pub(crate) struct FrameScanner {
    /// Bytes of the preface still to come.
    preface: usize,
    header: [u8; HEADER],
    /// Bytes in `header`.
    filled: usize,
    /// Bytes of the current frame's payload still to come.
    payload: usize,
    first_frame_seen: bool,
    /// The number of header blocks.
    blocks: u32,
    block_open: bool,
    small_frames: u32,
}

impl FrameScanner {
    /// A scanner before the client's preface.
    pub(in crate::http) fn new() -> Self {
        Self { preface: PREFACE, ..Self::of_server() }
    }

    /// A scanner of a server's frames, which have no preface.
    pub(crate) fn of_server() -> Self {
        Self {
            preface: 0,
            header: [0; HEADER],
            filled: 0,
            payload: 0,
            first_frame_seen: false,
            blocks: 0,
            block_open: false,
            small_frames: 0,
        }
    }

    /// Reads the next bytes.
    pub(crate) fn read(&mut self, data: &[u8]) {
        let mut rest = skip(data, &mut self.preface);
        while !rest.is_empty() {
            if self.filled < HEADER {
                let header = self.header.get_mut(self.filled..).unwrap_or_default();
                let n = header.len().min(rest.len());
                let (read, after) = rest.split_at_checked(n).unwrap_or((rest, &[]));
                header.iter_mut().zip(read).for_each(|(to, from)| *to = *from);
                self.filled += n;
                rest = after;
                if self.filled < HEADER {
                    return;
                }
                self.begin_frame();
            }
            rest = skip(rest, &mut self.payload);
            if self.payload == 0 {
                self.end_frame();
            }
        }
    }

    /// Whether the preface and the header of the first frame are read.
    pub(in crate::http) fn has_begun(&self) -> bool {
        self.first_frame_seen
    }

    /// The number of the header block that has begun and not ended.
    pub(in crate::http) fn open_header_block(&self) -> Option<u32> {
        self.block_open.then_some(self.blocks)
    }

    /// How many frames of data were smaller than [`SMALL_FRAME`], and not empty.
    pub(crate) fn small_frames(&self) -> u32 {
        self.small_frames
    }

    fn begin_frame(&mut self) {
        let [a, b, c, kind, ..] = self.header;
        self.payload = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        self.first_frame_seen = true;
        if kind == DATA && (1..SMALL_FRAME).contains(&self.payload) {
            self.small_frames = self.small_frames.wrapping_add(1);
        }
        if kind == HEADERS {
            self.block_open = true;
            self.blocks = self.blocks.wrapping_add(1);
        }
    }

    fn end_frame(&mut self) {
        self.filled = 0;
        let [_, _, _, kind, flags, ..] = self.header;
        if matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0 {
            self.block_open = false;
        }
    }
}

/// Skips up to `to_come` bytes of `data`, subtracts them from `to_come` and returns the rest.
fn skip<'a>(data: &'a [u8], to_come: &mut usize) -> &'a [u8] {
    let n = data.len().min(*to_come);
    *to_come -= n;
    data.get(n..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER + payload, kind);
        frame
    }

    fn after(pieces: &[Vec<u8>]) -> FrameScanner {
        let mut scanner = FrameScanner::new();
        scanner.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        pieces.iter().for_each(|piece| scanner.read(piece));
        scanner
    }

    #[test]
    fn small_frames_of_data_are_counted() {
        let frames = [1, SMALL_FRAME - 1, SMALL_FRAME, 0].map(|size| frame(DATA, 0, size));
        assert_eq!(after(&frames).small_frames(), 2);
        let mut of_server = FrameScanner::of_server();
        of_server.read(&[frame(4, 0, 6), frame(DATA, 0, 5), frame(HEADERS, 0, 5)].concat());
        assert_eq!(of_server.small_frames(), 1);
    }

    #[test]
    fn a_header_block_is_open_until_its_last_frame_ends() {
        let settings = frame(4, 0, 6);
        let last = frame(HEADERS, END_HEADERS, 20);
        assert!(!after(&[]).has_begun());
        assert!(after(std::slice::from_ref(&settings)).has_begun());
        assert_eq!(after(std::slice::from_ref(&settings)).open_header_block(), None);
        assert_eq!(after(&[settings, last[..25].to_vec()]).open_header_block(), Some(1));
        assert_eq!(after(std::slice::from_ref(&last)).open_header_block(), None);
        let first = frame(HEADERS, 1, 20);
        assert_eq!(after(std::slice::from_ref(&first)).open_header_block(), Some(1));
        let more = [first.clone(), frame(CONTINUATION, 0, 0), frame(CONTINUATION, 0, 3)];
        assert_eq!(after(&more).open_header_block(), Some(1));
        let ended = [first.clone(), frame(CONTINUATION, END_HEADERS, 0)];
        assert_eq!(after(&ended).open_header_block(), None);
        assert_eq!(after(&[last, first]).open_header_block(), Some(2), "each block has its number");
    }

    proptest! {
        #[test]
        fn frames_may_be_read_in_any_pieces(
            kinds in vec((0_u8..10, 0_u8..8, 0_usize..40), 0..8),
            cuts in vec(1_usize..50, 0..40),
        ) {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            kinds.iter().for_each(|&(kind, flags, payload)| bytes.extend(frame(kind, flags, payload)));
            let mut whole = FrameScanner::new();
            whole.read(&bytes);
            let (mut pieces, mut rest) = (FrameScanner::new(), &bytes[..]);
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.read(piece);
                rest = after;
            }
            pieces.read(rest);
            prop_assert_eq!(whole.open_header_block(), pieces.open_header_block());
            prop_assert_eq!(whole.has_begun(), pieces.has_begun());
            prop_assert_eq!(whole.filled, 0);
        }
    }
}
