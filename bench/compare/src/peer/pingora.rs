//! A minimal proxy on Pingora with rustls, `bench/pingora-peer`: one thread, told everything on its command line.
//!
//! A crate of its own, outside the workspace: its dependencies are not ours. It is not measured with thousands of names,
//! for what changes a certificate there would be code written for the comparison.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::version_line;
use super::program::{Configured, free_port};
use super::{Installed, Kind, Peer, PeerError, Stage};

/// The program on this machine.
pub struct Installation {
    program: PathBuf,
}

impl Installation {
    /// Looks for it beside our own programs.
    ///
    /// # Errors
    /// Missing: says how to build it.
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

impl Installed for Installation {
    fn kind(&self) -> Kind {
        Kind::Pingora
    }

    fn version(&self) -> String {
        version_line(&self.program, "--version").unwrap_or_else(|| "unknown".to_owned())
    }

    fn start(&self, stage: &Stage<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let folder = stage.folder;
        // Pingora reads the upstream's CA, the pool and the threads from here. Asked to end it would else linger for minutes.
        let text = format!(
            "# Written by compare.\nversion: 1\nthreads: 1\nca_file: {}\nupstream_keepalive_pool_size: 320\n\
             grace_period_seconds: 0\ngraceful_shutdown_timeout_seconds: 0\n",
            folder.join("upstream-ca.crt").display()
        );
        let file = folder.join("pingora.yaml");
        let (program, settings, folder) = (self.program.clone(), file.clone(), folder.to_owned());
        let upstreams = stage.upstreams;
        let launch = move || {
            let mut command = Command::new(&program);
            command.arg(&settings).arg(&folder).arg(address.to_string());
            command.arg(upstreams.plain.to_string()).arg(upstreams.mtls.to_string());
            command
        };
        Ok(Box::new(Configured::start(Kind::Pingora, stage, address, (file, &text), Box::new(launch))?))
    }
}
