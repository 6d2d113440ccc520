//! The SNI of TLS that is passed on: one outcome however the bytes arrive, and rustls' name.

use dataplane::testing::tls::sni_reader::{BYTES_MAX, PartialHello};
use rustls::server::Acceptor;

/// The size of the pieces, then the bytes of a connection.
pub fn check(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let whole = outcome(bytes, usize::MAX);
    assert_eq!(outcome(bytes, usize::from(piece).max(1)), whole);
    if bytes.len() > 2 * BYTES_MAX {
        assert_ne!(whole, Ok(None), "a ClientHello without a bound");
    }
    // Where rustls reads a ClientHello too, both find the same name: it is what a site goes by.
    let (Ok(Some(name)), Some(of_rustls)) = (whole, rustls_name(bytes)) else { return };
    let of_rustls = of_rustls.map(|name| model::HostName::from_sni(&name).map(|name| name.to_string()));
    match of_rustls {
        Some(of_rustls) => assert_eq!(name, of_rustls),
        None => assert_eq!(name, None),
    }
}

/// The name, once the ClientHello is complete.
fn outcome(bytes: &[u8], piece: usize) -> Result<Option<Option<String>>, String> {
    let mut partial = PartialHello::default();
    for piece in bytes.chunks(piece) {
        if let Some(name) = partial.push(piece).map_err(|error| error.to_string())? {
            return Ok(Some(name.map(|name| name.to_string())));
        }
    }
    Ok(None)
}

/// The name that rustls reads; `None`: it reads no ClientHello.
fn rustls_name(bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    None
}
