//! The server side of TLS as the scripted upstreams use it.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::credentials::{Credential, certificates};

/// A server that offers these versions, requesting client certificates only with a verifier.
pub fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    credential: &Credential,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> ServerConfig {
    let builder =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("the versions are supported");
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(credential.chain(), credential.key()).expect("the key is its certificate's")
}

/// Requires a client certificate below the authorities in this PEM text.
pub fn client_verifier(authorities_pem: &str) -> Arc<dyn ClientCertVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(authorities_pem));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("an authority is a root")
}
