//! The PROXY protocol: a header ends at one place, however its bytes arrive.

use dataplane::testing::io::proxy_protocol::{PartialHeader, ProxyHeader, V1_BYTES_MAX, V2_BYTES_MAX};

/// The size of the pieces, then the bytes of a connection.
pub fn check(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let whole = outcome(bytes, usize::MAX);
    assert_eq!(outcome(bytes, usize::from(piece).max(1)), whole);
    let Ok((taken, header)) = whole else { return };
    assert!(taken <= bytes.len() && taken <= V1_BYTES_MAX.max(V2_BYTES_MAX));
    if let Some(header) = header {
        // Nothing behind the header was read, and no part of it is a header.
        assert_eq!(outcome(&bytes[..taken], usize::MAX), Ok((taken, Some(header))));
        assert_eq!(outcome(&bytes[..taken - 1], usize::MAX), Ok((taken - 1, None)));
    }
}

/// How many bytes were taken, and the header once it is complete.
fn outcome(bytes: &[u8], piece: usize) -> Result<(usize, Option<ProxyHeader>), String> {
    let (mut partial, mut taken) = (PartialHeader::default(), 0);
    for piece in bytes.chunks(piece) {
        let (n, header) = partial.push(piece).map_err(|error| error.to_string())?;
        taken += n;
        if header.is_some() {
            return Ok((taken, header));
        }
        assert_eq!(n, piece.len(), "bytes of an incomplete header are left");
    }
    Ok((taken, None))
}
