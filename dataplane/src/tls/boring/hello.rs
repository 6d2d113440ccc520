//! The name in a ClientHello that rustls cannot read: TLS 1.1 knows no signature_algorithms, which
//! rustls demands.
//!
//! BoringSSL parses it, in a connection that is thrown away: the site, and with it the
//! configuration, is chosen by the name first. The real handshake gets the same bytes again.

use boring::error::ErrorStack;
use boring::ssl::{ErrorCode, NameType, SelectCertError, Ssl, SslContext, SslMethod, SslStream, SslVersion};

use super::Duplex;

thread_local! {
    static READER: Option<SslContext> = reader().ok();
}

/// Stops at the ClientHello: no key, no certificate, no answer.
fn reader() -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_1))?;
    context.set_select_certificate_callback(|_hello| Err(SelectCertError::RETRY));
    Ok(context.build())
}

/// The name asked for by the ClientHello in `received`, `Some(None)` when it asks for none. `None`:
/// not a ClientHello that BoringSSL could answer.
pub fn server_name(received: &[u8]) -> Option<Option<String>> {
    READER.with(|context| {
        let duplex = Duplex { input: received.to_vec(), ..Duplex::default() };
        let mut tls = SslStream::new(Ssl::new(context.as_ref()?).ok()?, duplex).ok()?;
        let stopped = tls.accept().err()?;
        let read = stopped.code() == ErrorCode::PENDING_CERTIFICATE;
        read.then(|| tls.ssl().servername(NameType::HOST_NAME).map(str::to_owned))
    })
}
