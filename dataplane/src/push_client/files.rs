//! The node's certificate, its key and the CA of control planes, read again when they change, and
//! the TLS configuration made of them.

use std::sync::Arc;

use mtls::{ConfiguredFile, CredentialFiles, Credentials, FileError, Reloader, WebPkiCredentials};
use pki::{PrivateKey, TrustAnchors};
use rustls::ClientConfig;

use super::PushClientError;

/// The files of mutual TLS towards control planes.
pub(super) struct TlsFiles {
    pub files: Reloader<NodeTls>,
    /// The node's key at the start, which last-good files of format version 1 are sealed with.
    pub key: PrivateKey,
}

/// The TLS configuration that the files give.
pub(super) struct NodeTls {
    pub config: Arc<ClientConfig>,
    /// The CAs of control planes.
    pub anchors: TrustAnchors,
}

pub(super) fn load(settings: &conf::NodeSettings) -> Result<TlsFiles, PushClientError> {
    let cert = ConfiguredFile::new("countersign.node.cert", &settings.cert);
    let key = ConfiguredFile::new("countersign.node.key", &settings.key);
    let ca = ConfiguredFile::new("countersign.node.ca", &settings.ca);
    let key_file = key.by_ref();
    let private_key = PrivateKey::from_pem(&key_file.read_text()?).map_err(|error| key_file.error(error))?;
    let files = CredentialFiles {
        pair: Some((cert.clone(), key)),
        ca: Some(ca.clone()),
        // Control planes reject a node whose certificate does not have it.
        required_dns_name: Some(settings.name.clone()),
    };
    let files = Reloader::new("node", files, move |contents| node_tls(&cert, &ca, contents));
    let loaded = files.load()?;
    if let Some(leaf) = loaded.credentials.leaf() {
        warn_if_name_missing(leaf, settings);
    }
    Ok(TlsFiles { files, key: private_key })
}

fn node_tls(
    cert: &ConfiguredFile,
    ca: &ConfiguredFile,
    contents: &Credentials,
) -> Result<NodeTls, FileError> {
    let (cert, ca) = (cert.by_ref(), ca.by_ref());
    let WebPkiCredentials { roots, chain, key } = contents.to_webpki(cert, ca)?;
    let anchors = TrustAnchors::new(contents.ca.clone()).map_err(|error| ca.error(error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map(|config| config.with_root_certificates(roots))
        .and_then(|config| config.with_client_auth_cert(chain, key))
        .map_err(|error| cert.error(error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check of the certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(NodeTls { config: Arc::new(config), anchors })
}

/// The control plane will reject the node; this log has the mistake where it was made. It is no
/// error, since the last good snapshot can be served without any certificate.
fn warn_if_name_missing(leaf: &pki::Certificate, settings: &conf::NodeSettings) {
    let (path, names) = (settings.cert.display(), leaf.dns_names());
    if !names.iter().any(|name| name.eq_ignore_ascii_case(&settings.name)) {
        tracing::warn!(
            "countersign.node.name is {:?}, but {path} carries {}: control planes will reject this node; set the name, or issue \
             a certificate with it",
            settings.name,
            if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") },
        );
    }
}
