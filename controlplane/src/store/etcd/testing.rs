//! The certificates of one test, in files.

use std::fs;
use std::path::PathBuf;

use e2e::credentials::Credential;
use e2e::etcd::Authorities;
use tempfile::TempDir;

/// Fresh CAs, and a directory with the CA certificate of the servers.
pub(crate) struct Pki {
    folder: TempDir,
    pub(crate) authorities: Authorities,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let (folder, authorities) = (tempfile::tempdir().expect("a folder"), Authorities::mint());
        let pki = Self { folder, authorities };
        pki.write("ca.crt", pki.authorities.servers.certificate_pem());
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).expect("a file can be written");
        self.path(name)
    }

    /// The CA certificate of the servers.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Writes `name.crt` and `name.key`.
    pub(crate) fn pair(&self, name: &str, credential: &Credential) -> (PathBuf, PathBuf) {
        let cert = self.write(&format!("{name}.crt"), &credential.certificate_pem);
        (cert, self.write(&format!("{name}.key"), &credential.key_pem))
    }

    /// A client certificate that an etcd with these CAs accepts.
    pub(crate) fn client(&self) -> (PathBuf, PathBuf) {
        self.pair("client", &self.authorities.clients.client("controlplane"))
    }

    /// A client certificate that expired yesterday.
    pub(crate) fn expired_client(&self) -> (PathBuf, PathBuf) {
        self.pair("expired", &self.authorities.clients.expired_client("controlplane"))
    }
}
