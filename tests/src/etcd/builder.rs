//! Describes an etcd before it starts.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use super::{Access, Etcd};
use crate::credentials::{Authority, Credential};
use crate::ports::Reservation;
use crate::process::Log;

const MEMORY: &str = "/dev/shm";
/// A server preallocates about 130 MB for its log; several run side by side.
const ROOM: u64 = 4 << 30;

/// The authorities of an etcd with TLS.
pub struct Authorities {
    pub servers: Authority,
    pub clients: Authority,
}

impl Authorities {
    pub fn generate() -> Self {
        Self { servers: Authority::root("Test etcd CA"), clients: Authority::root("Test etcd Client CA") }
    }

    /// A server's certificate for `etcd.test`, `localhost` and 127.0.0.1.
    pub fn server(&self) -> Credential {
        self.servers.server(&["etcd.test", "localhost"])
    }

    pub fn client(&self) -> Credential {
        self.clients.client("countersign")
    }
}

#[derive(Default)]
pub struct EtcdBuilder {
    certificate: Option<Credential>,
    clients_pem: Option<String>,
    arguments: Vec<String>,
    access: Access,
}

impl EtcdBuilder {
    /// TLS without client certificates.
    pub fn tls(mut self, authorities: &Authorities) -> Self {
        self.access.authority_pem = Some(authorities.servers.certificate_pem().to_owned());
        self.certificate(&authorities.server())
    }

    /// TLS, requiring a client certificate.
    pub fn mutual(self, authorities: &Authorities) -> Self {
        let mut builder = self.tls(authorities);
        builder.access.client = Some(authorities.client());
        builder.clients(authorities.clients.certificate_pem())
    }

    pub fn certificate(mut self, credential: &Credential) -> Self {
        self.certificate = Some(credential.clone());
        self
    }

    /// Requires a client certificate of one of these authorities.
    pub fn clients(mut self, authorities_pem: &str) -> Self {
        self.clients_pem = Some(authorities_pem.to_owned());
        self
    }

    /// Appends an argument of the program, `--name=value`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts it, and waits until it serves.
    pub async fn start(self) -> Etcd {
        let ports = MemberPorts::any();
        let members = ports.member("alone");
        let mut etcd = self.make("alone", ports, members);
        etcd.start().await;
        etcd
    }

    /// A member that does not run yet.
    pub(super) fn make(&self, name: &str, ports: MemberPorts, members: String) -> Etcd {
        let folder = data_folder();
        let mut arguments = self.arguments.clone();
        if let Some(credential) = &self.certificate {
            write_credential(folder.path(), credential);
            arguments.extend(["--cert-file=server.crt", "--key-file=server.key"].map(str::to_owned));
        }
        if let Some(authority) = &self.clients_pem {
            write_clients(folder.path(), authority);
            arguments.extend(["--client-cert-auth", "--trusted-ca-file=clients.crt"].map(str::to_owned));
        }
        let mut etcd = Etcd {
            name: name.to_owned(),
            folder,
            client: ports.client,
            peer: ports.peer,
            test_port: ports.test_port,
            members,
            tls: self.certificate.is_some(),
            password: None,
            arguments,
            token: "countersign-test".to_owned(),
            access: self.access.clone(),
            process: None,
            log: Log::default(),
            life: None,
            saves: 0,
        };
        etcd.access.hosts = vec![etcd.url()];
        etcd
    }
}

pub(super) struct MemberPorts {
    client: Reservation,
    peer: Reservation,
    test_port: Reservation,
}

impl MemberPorts {
    pub(super) fn any() -> Self {
        Self { client: Reservation::any(), peer: Reservation::any(), test_port: Reservation::any() }
    }

    /// As in `--initial-cluster`.
    pub(super) fn member(&self, name: &str) -> String {
        format!("{name}=http://{}", self.peer.address())
    }
}

/// A handshake reads the old file or the new one, never half of it.
fn replace(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, text).expect("a file can be written");
    fs::rename(new, folder.join(name)).expect("a file can be replaced");
}

pub(super) fn write_credential(folder: &Path, credential: &Credential) {
    replace(folder, "server.crt", &credential.certificate_pem);
    replace(folder, "server.key", &credential.key_pem);
}

pub(super) fn write_clients(folder: &Path, authority_pem: &str) {
    replace(folder, "clients.crt", authority_pem);
}

/// In memory where there is room, because etcd syncs every write.
fn data_folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("countersign-etcd-");
    let folder = if free_space(MEMORY) >= ROOM { builder.tempdir_in(MEMORY) } else { builder.tempdir() };
    folder.expect("a temporary folder")
}

fn free_space(path: &str) -> u64 {
    statvfs(path).map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}
