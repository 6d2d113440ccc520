//! The certificates of one run, issued when it starts.
//!
//! Client and server of the measured handshake each present a P-256 leaf and one P-256
//! intermediate, from authorities of their own.

use std::path::Path;
use std::sync::Arc;

use e2e::credentials::{Authority, Credential};
use e2e::tls::{client_verifier, server_config};
use pki::ca::{KeyAlgorithm, LeafSpec};
use rustls::ServerConfig;

use super::{HOST, PeerError, RSA_HOST};
use crate::identity::{ClientIdentity, IdentityError};

pub struct Credentials {
    server_root: Authority,
    server_issuer: Authority,
    client_root: Authority,
    client_issuer: Authority,
    client: Credential,
    upstream_root: Authority,
    gateway_root: Authority,
    gateway: Credential,
}

impl Credentials {
    pub fn generate() -> Self {
        let server_root = Authority::root("Bench Server Root");
        let client_root = Authority::root("Bench Client Root");
        let client_issuer = client_root.intermediate("Bench Client Intermediate");
        let gateway_root = Authority::root("Bench Gateway Root");
        Self {
            server_issuer: server_root.intermediate("Bench Server Intermediate"),
            client: client_issuer.client("bench client"),
            upstream_root: Authority::root("Bench Upstream Root"),
            gateway: gateway_root.client("bench gateway"),
            server_root,
            client_root,
            client_issuer,
            gateway_root,
        }
    }

    /// A server certificate (leaf and intermediate) for a name.
    pub fn site(&self, name: &str) -> Credential {
        self.server_issuer.server(&[name])
    }

    /// A server certificate with an RSA-2048 key for [`RSA_HOST`].
    pub fn rsa_site(&self) -> Credential {
        self.server_issuer.issue(&LeafSpec::server(RSA_HOST).algorithm(KeyAlgorithm::Rsa2048))
    }

    /// The client certificate that every peer presents to the mTLS upstream.
    pub fn gateway(&self) -> &Credential {
        &self.gateway
    }

    /// The TLS configuration of the mTLS upstream: it serves [`HOST`] and requires the gateway's
    /// certificate.
    pub fn upstream_tls(&self) -> ServerConfig {
        let verifier = client_verifier(self.gateway_root.certificate_pem());
        server_config(rustls::DEFAULT_VERSIONS, &self.upstream_root.server(&[HOST]), Some(verifier))
    }

    /// The authority of the mTLS upstream.
    pub fn upstream_ca_pem(&self) -> &str {
        self.upstream_root.certificate_pem()
    }

    /// The authority that servers require client certificates of.
    pub fn client_ca_pem(&self) -> &str {
        self.client_root.certificate_pem()
    }

    /// The load generator's client.
    ///
    /// # Errors
    /// When rustls rejects a certificate that was just issued.
    pub fn loader(&self) -> Result<Arc<ClientIdentity>, IdentityError> {
        self.identity(&self.client)
    }

    /// Another client.
    pub fn another_client(&self, name: &str) -> Credential {
        self.client_issuer.client(name)
    }

    /// A client with this certificate.
    ///
    /// # Errors
    /// As [`Self::loader`].
    pub fn identity(&self, client: &Credential) -> Result<Arc<ClientIdentity>, IdentityError> {
        let pair = (client.certificate_pem.as_bytes(), client.key_pem.as_bytes());
        let roots = self.server_root.certificate_pem().as_bytes();
        Ok(Arc::new(ClientIdentity::from_pem(roots, Some(pair))?))
    }

    /// Both authorities above the clients, for a site with revocation lists of both.
    pub fn client_authorities_pem(&self) -> String {
        self.client_issuer.certificate_pem().to_owned() + self.client_root.certificate_pem()
    }

    /// Current revocation lists of both, with these clients in the issuer's.
    pub fn client_crls_pem(&self, revoked: &[&Credential]) -> [String; 2] {
        [self.client_issuer.crl(revoked), self.client_root.crl(&[])]
    }

    /// Writes the files of every peer: `site.{crt,key}`, `rsa.{crt,key}`, `client-ca.crt`, and for
    /// the mTLS upstream `gateway.{crt,key}` and `upstream-ca.crt`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_site(&self, folder: &Path) -> Result<(), PeerError> {
        write_pair(folder, "site", &self.site(HOST))?;
        write_pair(folder, "rsa", &self.rsa_site())?;
        write_pair(folder, "gateway", &self.gateway)?;
        write(folder, "upstream-ca.crt", self.upstream_ca_pem())?;
        write(folder, "client-ca.crt", self.client_ca_pem())
    }
}

/// Writes `name.crt` (leaf first, then intermediates) and `name.key` (mode 0600).
///
/// # Errors
/// When the folder cannot be written.
pub fn write_pair(folder: &Path, name: &str, credential: &Credential) -> Result<(), PeerError> {
    write(folder, &format!("{name}.crt"), &credential.certificate_pem)?;
    write_secret(&folder.join(format!("{name}.key")), &credential.key_pem)
}

/// Chain and key as one PEM text without an empty line.
pub fn together(credential: &Credential) -> String {
    let text = credential.certificate_pem.clone() + &credential.key_pem;
    text.lines().filter(|line| !line.trim().is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Writes a file of mode 0600.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PeerError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(PeerError::system(format!("writing {}", path.display())))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), PeerError> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(PeerError::system(format!("writing {}", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Upstreams;
    use super::*;

    /// Addresses for tests of configuration files.
    pub(crate) fn upstreams() -> Upstreams {
        let [plain, mtls, echo] = [8001, 8002, 8003].map(|port| ([127, 0, 0, 1], port).into());
        Upstreams { plain, mtls, echo }
    }

    #[test]
    fn chain_and_key_together_have_no_empty_line() {
        let text = together(&Credentials::generate().site(HOST));
        assert!(text.lines().all(|line| !line.is_empty()) && text.ends_with("-----\n"));
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(text.matches("PRIVATE KEY-----").count(), 2);
    }
}
