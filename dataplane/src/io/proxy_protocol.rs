//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): the header with which a
//! proxy in front of a TCP connection names the client.
//!
//! It owns both directions: [`read`] takes a header from the beginning of a connection, and
//! [`write()`] makes one for an upstream. Invariants: not one byte behind the header is consumed,
//! the result does not depend on how the bytes arrive, and a header is bounded ([`V1_BYTES_MAX`],
//! [`V2_BYTES_MAX`]). Whether the peer may name a client is not decided here.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::ready;

use conf::ProxyProtocolVersion;

use super::buffered::BufferedSocket;
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::runtime::{Reader, Writer};

/// The longest line of version 1, with its CRLF. Section 2.1.
pub const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2, as in nginx: fixed part, addresses and TLVs.
pub const V2_BYTES_MAX: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length. Section 2.2.
const V2_FIXED: usize = 16;

/// No header was read.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    #[error("the connection does not begin with a PROXY protocol header")]
    NoHeader,
    #[error("the PROXY protocol header is malformed: {0}")]
    Malformed(&'static str),
    #[error("the PROXY protocol header is longer than {0} bytes")]
    TooLong(usize),
    /// The peer closed in the middle of a header.
    #[error("the peer ended the connection within its PROXY protocol header")]
    UnexpectedEof,
    /// The peer closed, or reset the connection, without a byte, as a load balancer's health checks
    /// do.
    #[error("the peer ended the connection before its PROXY protocol header")]
    Empty,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl HasReason for ProxyProtocolError {
    fn reason(&self) -> Reason {
        Reason::BadProxyProtocol
    }
}

/// A header that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client, an IPv4 one never as a mapped address. `None`: the proxy names none (LOCAL,
    /// UNKNOWN), or not one of TCP over IP.
    pub source: Option<SocketAddr>,
}

/// Reads the header at the beginning of a connection, and consumes exactly that.
///
/// # Errors
/// [`ProxyProtocolError`].
pub async fn read<R: Reader, W: Writer>(
    socket: &mut BufferedSocket<R, W>,
) -> Result<ProxyHeader, ProxyProtocolError> {
    let mut partial = PartialHeader::default();
    poll_fn(|cx| {
        loop {
            let data = match ready!(socket.poll_fill_buf(cx)) {
                Ok([]) => return Err(partial.eof()).into(),
                Err(_) if partial.bytes.is_empty() => return Err(partial.eof()).into(),
                data => data?,
            };
            let (taken, header) = partial.push(data)?;
            socket.consume(taken);
            if let Some(header) = header {
                return Ok(header).into();
            }
        }
    })
    .await
}

/// The bytes of a header as far as they have arrived.
#[derive(Debug, Default)]
pub struct PartialHeader {
    bytes: Vec<u8>,
}

impl PartialHeader {
    /// Takes bytes up to the end of the header, and says how many of `data` these are. The header,
    /// once it is complete.
    ///
    /// # Errors
    /// It is malformed or too long, which is noticed as early as the bytes allow.
    pub fn push(&mut self, data: &[u8]) -> Result<(usize, Option<ProxyHeader>), ProxyProtocolError> {
        let mut taken = 0;
        loop {
            let rest = data.get(taken..).unwrap_or_default();
            let missing = match self.next_part()? {
                Part::Bytes(missing) => missing.min(rest.len()),
                Part::Line(missing) => match rest.iter().position(|byte| *byte == b'\n') {
                    Some(end) => missing.min(end.saturating_add(1)),
                    None => missing.min(rest.len()),
                },
                Part::End(header) => return Ok((taken, Some(header))),
            };
            if missing == 0 {
                return Ok((taken, None));
            }
            self.bytes.extend_from_slice(rest.get(..missing).unwrap_or_default());
            taken = taken.saturating_add(missing);
        }
    }

    /// The error of a connection that ends here.
    fn eof(&self) -> ProxyProtocolError {
        if self.bytes.is_empty() { ProxyProtocolError::Empty } else { ProxyProtocolError::UnexpectedEof }
    }

    /// What to read next, by what there is.
    fn next_part(&self) -> Result<Part, ProxyProtocolError> {
        let bytes = self.bytes.as_slice();
        let begins = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, wanted)| byte == wanted);
        if bytes.is_empty() {
            return Ok(Part::Bytes(1));
        }
        if begins(V1_SIGNATURE) {
            return match bytes.strip_suffix(b"\n") {
                _ if bytes.len() < V1_SIGNATURE.len() => {
                    Ok(Part::Bytes(V1_SIGNATURE.len().saturating_sub(bytes.len())))
                }
                Some(line) => parse_v1(line).map(Part::End),
                None if bytes.len() >= V1_BYTES_MAX => Err(ProxyProtocolError::TooLong(V1_BYTES_MAX)),
                None => Ok(Part::Line(V1_BYTES_MAX.saturating_sub(bytes.len()))),
            };
        }
        if !begins(V2_SIGNATURE) {
            return Err(ProxyProtocolError::NoHeader);
        }
        let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else {
            return Ok(Part::Bytes(V2_FIXED.saturating_sub(bytes.len())));
        };
        let [.., command, family, high, low] = *fixed;
        let length = usize::from(u16::from_be_bytes([high, low])).saturating_add(V2_FIXED);
        if length > V2_BYTES_MAX {
            return Err(ProxyProtocolError::TooLong(V2_BYTES_MAX));
        }
        match length.saturating_sub(bytes.len()) {
            0 => parse_v2(command, family, bytes.get(V2_FIXED..).unwrap_or_default()).map(Part::End),
            missing => Ok(Part::Bytes(missing)),
        }
    }
}

/// The next part of a header.
enum Part {
    /// So many bytes.
    Bytes(usize),
    /// The rest of a line, of so many bytes at most.
    Line(usize),
    /// None: the header is complete.
    End(ProxyHeader),
}

/// A line without its LF.
fn parse_v1(line: &[u8]) -> Result<ProxyHeader, ProxyProtocolError> {
    let malformed = ProxyProtocolError::Malformed;
    let line = line.strip_suffix(b"\r").ok_or(malformed("the line does not end with CRLF"))?;
    let line = line.strip_prefix(V1_SIGNATURE).ok_or(ProxyProtocolError::NoHeader)?;
    // Whatever follows it is to be ignored.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(ProxyHeader { source: None });
    }
    let line = str::from_utf8(line).map_err(|_| malformed("the line is not ASCII"))?;
    let mut fields = line.split(' ');
    let mut field = || fields.next().unwrap_or_default();
    let (family, source, destination) = (field(), field(), field());
    let ports = (port(field()), port(field()));
    let is_v4 = match family {
        "TCP4" => true,
        "TCP6" => false,
        _ => return Err(malformed("its family is not TCP4, TCP6 or UNKNOWN")),
    };
    let address = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == is_v4);
    let (Some(ip), Some(_)) = (address(source), address(destination)) else {
        return Err(malformed("an address is not one of its family"));
    };
    let (Some(port), Some(_)) = ports else { return Err(malformed("a port is not a number to 65535")) };
    if fields.next().is_some() {
        return Err(malformed("something follows the ports"));
    }
    Ok(ProxyHeader { source: Some(SocketAddr::new(ip.to_canonical(), port)) })
}

/// Decimal, without a sign and without leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| is_plain)
}

/// The addresses and TLVs of version 2. TLVs are skipped unread.
fn parse_v2(command: u8, family: u8, addresses: &[u8]) -> Result<ProxyHeader, ProxyProtocolError> {
    let malformed = ProxyProtocolError::Malformed;
    let none = ProxyHeader { source: None };
    match command {
        // LOCAL: a connection of the proxy itself. The rest must be ignored.
        0x20 => return Ok(none),
        0x21 => {}
        _ => return Err(malformed("its version is not 2, or its command neither LOCAL nor PROXY")),
    }
    let (family, transport) = (family >> 4, family & 0xf);
    let short = malformed("it is too short for its addresses");
    let source = match family {
        0 => None,
        1 => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses.first_chunk::<12>().ok_or(short)?;
            let ip = Ipv4Addr::new(a, b, c, d);
            Some(SocketAddr::new(ip.into(), u16::from_be_bytes([high, low])))
        }
        2 => {
            let block = addresses.first_chunk::<36>().ok_or(short)?;
            let (source, rest) = block.split_first_chunk::<16>().ok_or(malformed("no address"))?;
            let [.., high, low, _, _] = *rest else { return Err(malformed("no port")) };
            let ip = IpAddr::from(*source).to_canonical();
            Some(SocketAddr::new(ip, u16::from_be_bytes([high, low])))
        }
        3 if addresses.len() >= 216 => None,
        3 => return Err(short),
        _ => return Err(malformed("its address family is none of the protocol's")),
    };
    match transport {
        // Of a stream. An address of another transport is not that of a TCP client.
        1 => Ok(ProxyHeader { source }),
        0 | 2 => Ok(none),
        _ => Err(malformed("its transport is none of the protocol's")),
    }
}

/// The header for an upstream: the connection came from `source` to `destination`.
pub fn write(version: ProxyProtocolVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    // IPv4 clients of a socket of both families have mapped addresses.
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let ports = (source.port(), destination.port());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => match version {
            ProxyProtocolVersion::V1 => v1_line("TCP4", &from, &to, ports),
            ProxyProtocolVersion::V2 => v2_header(0x11, &from.octets(), &to.octets(), ports),
        },
        // One header has addresses of one family only: an IPv4 address is mapped then.
        (from, to) => {
            let (from, to) = (to_v6(from), to_v6(to));
            match version {
                ProxyProtocolVersion::V1 => v1_line("TCP6", &from, &to, ports),
                ProxyProtocolVersion::V2 => v2_header(0x21, &from.octets(), &to.octets(), ports),
            }
        }
    }
}

fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn v1_line<A: std::fmt::Display>(
    family: &str,
    from: &A,
    to: &A,
    (source, destination): (u16, u16),
) -> Vec<u8> {
    format!("PROXY {family} {from} {to} {source} {destination}\r\n").into_bytes()
}

fn v2_header(family: u8, from: &[u8], to: &[u8], (source, destination): (u16, u16)) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    let length = from.len().saturating_add(to.len()).saturating_add(4);
    header.extend_from_slice(&[0x21, family]);
    // 12 or 36.
    header.extend_from_slice(&u16::try_from(length).unwrap_or_default().to_be_bytes());
    header.extend_from_slice(from);
    header.extend_from_slice(to);
    header.extend_from_slice(&source.to_be_bytes());
    header.extend_from_slice(&destination.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The header of `bytes`, which arrive in pieces of `piece`, with the number of bytes taken.
    fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<(usize, Option<ProxyHeader>), String> {
        let (mut partial, mut taken) = (PartialHeader::default(), 0);
        for piece in bytes.chunks(piece) {
            let (n, header) = partial.push(piece).map_err(|error| error.to_string())?;
            taken += n;
            assert!(n == piece.len() || header.is_some(), "bytes of an incomplete header are left");
            if header.is_some() {
                return Ok((taken, header));
            }
        }
        Ok((taken, None))
    }

    /// The outcome, which must be the same however the bytes arrive.
    fn read_all(bytes: &[u8]) -> Result<(usize, Option<ProxyHeader>), String> {
        let whole = read_in_pieces(bytes, usize::MAX);
        for piece in [1, 2, 5, 16] {
            assert_eq!(read_in_pieces(bytes, piece), whole, "{piece} bytes at a time");
        }
        whole
    }

    fn source(bytes: &[u8]) -> Option<String> {
        let (taken, header) = read_all(bytes).unwrap();
        assert_eq!(taken, bytes.len());
        header.unwrap().source.map(|source| source.to_string())
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, body].concat()
    }

    const V4_BODY: [u8; 12] = [198, 51, 100, 7, 192, 0, 2, 1, 0xdc, 4, 0x1b, 0xb];

    #[test]
    fn every_form_of_version_1_is_read() {
        for (line, expected) in [
            ("TCP4 198.51.100.7 192.0.2.1 56324 443", Some("198.51.100.7:56324")),
            ("TCP4 255.255.255.255 255.255.255.255 65535 0", Some("255.255.255.255:65535")),
            ("TCP6 2001:db8::7 2001:DB8::1 1 443", Some("[2001:db8::7]:1")),
            ("TCP6 ::ffff:198.51.100.7 ::1 1 443", Some("198.51.100.7:1")),
            ("UNKNOWN", None),
            ("UNKNOWN 198.51.100.7 192.0.2.1 56324 443", None),
            ("UNKNOWN \0\u{1} whatever", None),
        ] {
            assert_eq!(source(format!("PROXY {line}\r\n").as_bytes()).as_deref(), expected, "{line}");
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_BYTES_MAX - 16));
        assert_eq!((longest.len(), source(longest.as_bytes())), (V1_BYTES_MAX, None));
    }

    #[test]
    fn a_malformed_version_1_is_an_error() {
        for line in [
            "PROXY TCP4 198.51.100.7 192.0.2.1 56324 443\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 56324\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 56324 443 \r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 56324 443 1\r\n",
            "PROXY TCP4  198.51.100.7 192.0.2.1 56324 443\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 56324 65536\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 +1 443\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 01 443\r\n",
            "PROXY TCP4 198.51.100.07 192.0.2.1 1 443\r\n",
            "PROXY TCP4 198.51.100.7\0 192.0.2.1 1 443\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
            "PROXY TCP6 198.51.100.7 192.0.2.1 1 443\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 443\r\n",
            "PROXY UDP4 198.51.100.7 192.0.2.1 1 443\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "PROXY TCP4 \u{e9} 192.0.2.1 1 443\r\n",
        ] {
            let error = read_all(line.as_bytes()).unwrap_err();
            assert!(error.contains("malformed"), "{line:?}: {error}");
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'f'; 1000], b"\r\n"].concat();
        assert!(read_all(&endless).unwrap_err().contains("longer than 107"));
    }

    /// At the first byte that no header has, before a second packet is waited for.
    #[test]
    fn other_protocols_are_noticed_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PRI * HTTP/2.0\r\n",
            b"PROXy ",
            b"PROXY\t",
            b"\r\nGET",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\0",
        ] {
            let error = read_all(bytes).unwrap_err();
            assert!(error.contains("does not begin"), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn every_form_of_version_2_is_read() {
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        v6[32..34].copy_from_slice(&443_u16.to_be_bytes());
        // An SSL TLV, and one that claims more than there is: both are skipped.
        let tlvs = [&V4_BODY[..], &[0x20, 0, 5, 1, 0, 0, 0, 0], &[0xee, 0xff, 0xff, 1]].concat();
        let full = [&V4_BODY[..], &[0; V2_BYTES_MAX - V2_FIXED - 12]].concat();
        for (header, expected) in [
            (v2(0x21, 0x11, &V4_BODY), Some("198.51.100.7:56324")),
            (v2(0x21, 0x11, &tlvs), Some("198.51.100.7:56324")),
            (v2(0x21, 0x11, &full), Some("198.51.100.7:56324")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::7]:443")),
            (v2(0x20, 0x11, &V4_BODY), None),
            (v2(0x20, 0, &[]), None),
            (v2(0x20, 0xff, &[1]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x10, &V4_BODY), None),
            (v2(0x21, 0x12, &V4_BODY), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            assert_eq!(source(&header).as_deref(), expected, "{header:?}");
        }
    }

    #[test]
    fn a_malformed_version_2_is_an_error() {
        for header in [
            v2(0x22, 0x11, &V4_BODY),
            v2(0x11, 0x11, &V4_BODY),
            v2(0x21, 0x13, &V4_BODY),
            v2(0x21, 0x41, &V4_BODY),
            v2(0x21, 0x11, &V4_BODY[..11]),
            v2(0x21, 0x21, &V4_BODY),
            v2(0x21, 0x31, &[0; 215]),
        ] {
            let error = read_all(&header).unwrap_err();
            assert!(error.contains("malformed"), "{header:?}: {error}");
        }
        // Noticed before the bytes come.
        let huge = [V2_SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(read_all(&huge).unwrap_err().contains("longer than 4096"));
        let above = u16::try_from(V2_BYTES_MAX - V2_FIXED + 1).unwrap().to_be_bytes();
        let above = [V2_SIGNATURE, &[0x21, 0x11], &above].concat();
        assert!(read_all(&above).unwrap_err().contains("longer than 4096"));
    }

    /// Both versions: no prefix is a header, and none is an error but the end of the connection.
    #[test]
    fn each_truncation_is_incomplete() {
        let client = "198.51.100.7:56324".parse().unwrap();
        let local = "[2001:db8::1]:443".parse().unwrap();
        for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
            let header = write(version, client, local);
            for length in 0..header.len() {
                assert_eq!(read_all(&header[..length]), Ok((length, None)));
            }
        }
    }

    #[test]
    fn mixed_families_are_written_as_mapped_addresses() {
        let v1 = |source: &str, destination: &str| {
            let header =
                write(ProxyProtocolVersion::V1, source.parse().unwrap(), destination.parse().unwrap());
            String::from_utf8(header).unwrap()
        };
        assert_eq!(v1("198.51.100.7:1", "192.0.2.1:2"), "PROXY TCP4 198.51.100.7 192.0.2.1 1 2\r\n");
        let mapped = v1("[::ffff:198.51.100.7]:1", "[::ffff:192.0.2.1]:2");
        assert_eq!(mapped, "PROXY TCP4 198.51.100.7 192.0.2.1 1 2\r\n");
        assert_eq!(v1("[2001:db8::7]:1", "[2001:db8::1]:2"), "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n");
        let mixed = v1("198.51.100.7:1", "[2001:db8::1]:2");
        assert_eq!(mixed, "PROXY TCP6 ::ffff:198.51.100.7 2001:db8::1 1 2\r\n");
    }

    proptest! {
        /// What is written is read, and the bytes behind it stay.
        #[test]
        fn a_written_header_is_read_again(
            source: SocketAddr, destination: SocketAddr, is_v1: bool, piece in 1_usize..200, rest: Vec<u8>
        ) {
            let version = if is_v1 { ProxyProtocolVersion::V1 } else { ProxyProtocolVersion::V2 };
            let header = write(version, source, destination);
            let (taken, read) = read_in_pieces(&[header.clone(), rest].concat(), piece).unwrap();
            prop_assert_eq!(taken, header.len());
            let read = read.unwrap().source.unwrap();
            prop_assert_eq!((read.ip().to_canonical(), read.port()), (source.ip().to_canonical(), source.port()));
        }

        /// The outcome does not depend on how the bytes arrive.
        #[test]
        fn pieces_do_not_matter(
            signature in prop::sample::select(vec![V1_SIGNATURE, V2_SIGNATURE, b"PROXY TCP4 ", b""]),
            rest in prop::collection::vec(prop::sample::select(b"\r\n 1:.\x20\x21\x11\x00\x0cU".to_vec()), 0..160),
        ) {
            let _outcome = read_all(&[signature, &rest].concat());
        }
    }
}
