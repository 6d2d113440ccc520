//! A minimal proxy on Pingora with rustls, `bench/pingora-peer`: one thread, configured by its
//! command line.
//!
//! It is a crate outside the workspace, with dependencies of its own. It does not take part with
//! many names: it has no way to change a certificate.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::version_line;
use super::program::{Configured, free_port};
use super::{Installed, Kind, Peer, PeerError, StartContext};

pub struct PingoraProgram {
    program: PathBuf,
}

impl PingoraProgram {
    /// # Errors
    /// [`PeerError::Missing`], with the command that builds it.
    pub fn find(beside: &Path) -> Result<Self, PeerError> {
        let program = beside.join("pingora-peer");
        if program.is_file() {
            return Ok(Self { program });
        }
        let hint = format!(
            "{} is not built; run `make compare`, or `cargo build --release --locked --manifest-path \
             bench/pingora-peer/Cargo.toml --target-dir target`",
            program.display()
        );
        Err(PeerError::Missing { peer: Kind::Pingora, hint })
    }
}

impl Installed for PingoraProgram {
    fn kind(&self) -> Kind {
        Kind::Pingora
    }

    fn version(&self) -> String {
        version_line(&self.program, "--version").unwrap_or_else(|| "unknown".to_owned())
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let folder = context.folder;
        // Pingora reads the upstream's CA, the pool size and the threads from this file. Without
        // the last two lines it lingers for minutes after SIGTERM.
        let text = format!(
            "# Written by compare.\nversion: 1\nthreads: 1\nca_file: {}\nupstream_keepalive_pool_size: 320\n\
             grace_period_seconds: 0\ngraceful_shutdown_timeout_seconds: 0\n",
            folder.join("upstream-ca.crt").display()
        );
        let file = folder.join("pingora.yaml");
        let (program, settings, folder) = (self.program.clone(), file.clone(), folder.to_owned());
        let upstreams = context.upstreams;
        let launch = move || {
            let mut command = Command::new(&program);
            command.arg(&settings).arg(&folder).arg(address.to_string());
            command.arg(upstreams.plain.to_string()).arg(upstreams.mtls.to_string());
            command
        };
        Ok(Box::new(Configured::start(Kind::Pingora, context, address, (file, &text), Box::new(launch))?))
    }
}
