//! The certificates of one run, minted when it starts and gone with its folder.
//!
//! Both sides of the measured handshake show a P-256 leaf and one P-256 intermediate, each from an authority of its
//! own; the Admin API and the push have theirs.

use std::path::Path;
use std::sync::Arc;

use pki::Certificate;
use pki::mint::{Authority, AuthoritySpec, CrlSpec, LeafSpec, MintError, Minted};

use super::{HOST, PeerError};
use crate::identity::ClientIdentity;

/// Everything that is minted for a run.
pub struct Credentials {
    server_root: Authority,
    server_issuer: Authority,
    client_root: Authority,
    client_issuer: Authority,
    client: Minted,
    operator_root: Authority,
    operator: Minted,
}

impl Credentials {
    /// Mints them.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn mint() -> Result<Self, MintError> {
        let server_root = Authority::root(&AuthoritySpec::new("Bench Server Root"))?;
        let server_issuer = server_root.intermediate(&AuthoritySpec::new("Bench Server Intermediate"))?;
        let client_root = Authority::root(&AuthoritySpec::new("Bench Client Root"))?;
        let client_issuer = client_root.intermediate(&AuthoritySpec::new("Bench Client Intermediate"))?;
        let client = client_issuer.issue(&LeafSpec::client("bench client"))?;
        let operator_root = Authority::root(&AuthoritySpec::new("Bench Operator Root"))?;
        let operator = operator_root.issue(&LeafSpec::client("bench operator"))?;
        Ok(Self { server_root, server_issuer, client_root, client_issuer, client, operator_root, operator })
    }

    /// A server certificate (leaf and intermediate) for a name.
    ///
    /// # Errors
    /// When the name cannot be expressed.
    pub fn site(&self, name: &str) -> Result<Minted, MintError> {
        self.server_issuer.issue(&LeafSpec::server(name))
    }

    /// The anchor that servers must demand client certificates from.
    pub fn client_ca_pem(&self) -> String {
        self.client_root.certificate_pem()
    }

    /// The client that loads the servers.
    ///
    /// # Errors
    /// Never in practice: what was minted is readable.
    pub fn loader(&self) -> Result<Arc<ClientIdentity>, PeerError> {
        identity(&self.server_root, &self.client)
    }

    /// Another client, and its certificate.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn another_client(&self, name: &str) -> Result<(Arc<ClientIdentity>, Certificate), PeerError> {
        let minted = self.client_issuer.issue(&LeafSpec::client(name))?;
        Ok((identity(&self.server_root, &minted)?, minted.certificate))
    }

    /// Both authorities above the clients, for a site that is given revocation lists of both.
    pub fn client_authorities_pem(&self) -> String {
        self.client_issuer.certificate_pem() + &self.client_root.certificate_pem()
    }

    /// Current revocation lists of both, with these clients in the issuer's.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn client_crls_pem(&self, revoked: &[Certificate]) -> Result<[String; 2], MintError> {
        let spec = revoked.iter().fold(CrlSpec::new(), CrlSpec::revoke);
        Ok([self.client_issuer.crl_pem(&spec)?, self.client_root.crl_pem(&CrlSpec::new())?])
    }

    /// The client of the Admin API.
    ///
    /// # Errors
    /// Never in practice: what was minted is readable.
    pub fn operator(&self) -> Result<Arc<ClientIdentity>, PeerError> {
        identity(&self.operator_root, &self.operator)
    }

    /// Writes `site.{crt,key}` and `client-ca.crt`, which any server needs.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_site(&self, folder: &Path) -> Result<(), PeerError> {
        write_pair(folder, "site", &self.site(HOST)?)?;
        write(folder, "client-ca.crt", &self.client_ca_pem())
    }

    /// Writes what the two Countersign programs need for the Admin API and the push between them.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_planes(&self, folder: &Path) -> Result<(), PeerError> {
        let loopback = std::net::Ipv4Addr::LOCALHOST.into();
        let admin = LeafSpec::server("admin.test").ip(loopback);
        write_pair(folder, "admin", &self.operator_root.issue(&admin)?)?;
        write_pair(folder, "push-server", &self.operator_root.issue(&LeafSpec::server("controlplane"))?)?;
        let node = LeafSpec::client("bench-node").dns("bench-node");
        write_pair(folder, "node", &self.operator_root.issue(&node)?)?;
        write(folder, "operator-ca.crt", &self.operator_root.certificate_pem())
    }
}

fn identity(trusted: &Authority, own: &Minted) -> Result<Arc<ClientIdentity>, PeerError> {
    let pair = (own.chain_pem.as_bytes(), own.key_pem.as_bytes());
    Ok(Arc::new(ClientIdentity::from_pem(trusted.certificate_pem().as_bytes(), Some(pair))?))
}

/// Writes `name.crt` (leaf first, then intermediates) and `name.key` (readable by us only).
///
/// # Errors
/// When the folder cannot be written.
pub fn write_pair(folder: &Path, name: &str, minted: &Minted) -> Result<(), PeerError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    write(folder, &format!("{name}.crt"), &minted.chain_pem)?;
    let path = folder.join(format!("{name}.key"));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(minted.key_pem.as_bytes()));
    written.map_err(PeerError::system(format!("writing {}", path.display())))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), PeerError> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(PeerError::system(format!("writing {}", path.display())))
}
