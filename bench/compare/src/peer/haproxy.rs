//! Debian's HAProxy: one process with one thread, TLS 1.3, client certificates required, upstream
//! connections reused.
//!
//! Its runtime API (`set ssl cert`, `commit ssl cert`) changes one certificate among many.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::credentials::Credential;

use super::child::version_line;
use super::credentials::{together, write_secret};
use super::program::{Configured, debian_package, free_port, on_path, output_of};
use super::{
    CALL, HOST, Installed, Kind, ManySites, PROXIED, PROXIED_MTLS, Peer, PeerError, SOCKET, StartContext,
    Upstreams,
};

/// Limit of one command of the runtime API.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pairs that every peer gets and HAProxy reads as one PEM file, chain before key.
const TOGETHER: [&str; 3] = ["site", "rsa", "gateway"];
/// The folder of the names beside [`HOST`]: HAProxy reads all certificates in it.
const MANY: &str = "many";

pub struct HaproxyProgram {
    program: PathBuf,
}

impl HaproxyProgram {
    /// # Errors
    /// [`PeerError::Missing`], with a hint how to install it.
    pub fn find() -> Result<Self, PeerError> {
        let hint = "run scripts/setup.sh compare, or on Debian or Ubuntu: sudo apt-get install haproxy";
        let program = on_path("haproxy")
            .ok_or_else(|| PeerError::Missing { peer: Kind::Haproxy, hint: hint.to_owned() })?;
        Ok(Self { program })
    }

    fn launch(&self, context: &StartContext<'_>) -> Result<Haproxy, PeerError> {
        let folder = context.folder.to_owned();
        for name in TOGETHER {
            join_pair(&folder, name, &folder.join(name))?;
        }
        if !context.more.is_empty() {
            let many = folder.join(MANY);
            std::fs::create_dir_all(&many)
                .map_err(PeerError::system(format!("making {}", many.display())))?;
            for name in context.more {
                join_pair(&folder, name, &many.join(name))?;
            }
        }
        let port = free_port();
        let text = configuration(&folder, port, context.upstreams, !context.more.is_empty());
        let file = folder.join("haproxy.cfg");
        let (program, settings) = (self.program.clone(), file.clone());
        let launch = move || {
            let mut command = Command::new(&program);
            command.arg("-db").arg("-f").arg(&settings);
            command
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let running = Configured::start(Kind::Haproxy, context, address, (file, &text), Box::new(launch))?;
        Ok(Haproxy { folder, running })
    }
}

/// Writes `name.crt` and `name.key` of a folder into one file, `to` with `.pem` appended.
fn join_pair(folder: &Path, name: &str, to: &Path) -> Result<(), PeerError> {
    let read = |ending: &str| {
        let path = folder.join(format!("{name}.{ending}"));
        std::fs::read_to_string(&path).map_err(PeerError::system(format!("reading {}", path.display())))
    };
    let text = read("crt")? + &read("key")?;
    write_secret(&with_ending(to), &text)
}

/// Not `with_extension`: names have dots.
fn with_ending(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.pem", path.display()))
}

impl Installed for HaproxyProgram {
    fn kind(&self) -> Kind {
        Kind::Haproxy
    }

    /// Its first line, and the OpenSSL it runs on.
    fn version(&self) -> String {
        let all = output_of(&self.program, &["-vv"]).unwrap_or_default();
        let openssl = all.lines().find(|line| line.starts_with("Running on OpenSSL version"));
        let first = version_line(&self.program, "-v").unwrap_or_else(|| "unknown".to_owned());
        let openssl = openssl.map(|line| format!(", {line}")).unwrap_or_default();
        format!("{first}{openssl}{}", debian_package("haproxy"))
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        Ok(Box::new(self.launch(context)?.running))
    }

    fn start_many(&self, context: &StartContext<'_>) -> Option<Result<Box<dyn ManySites>, PeerError>> {
        Some(self.launch(context).map(|running| Box::new(running) as Box<dyn ManySites>))
    }
}

struct Haproxy {
    folder: PathBuf,
    running: Configured,
}

impl Haproxy {
    /// Sends one command of the runtime API on a connection of its own; gives the response.
    fn ask(&self, command: &str) -> Result<String, PeerError> {
        let asking = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.folder.join("admin.sock"))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(command.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        asking().map_err(PeerError::system("asking HAProxy's runtime API"))
    }
}

impl ManySites for Haproxy {
    fn peer(&mut self) -> &mut dyn Peer {
        &mut self.running
    }

    /// Uses the runtime API, and writes the file for the next start, as an operator must.
    fn change(&mut self, name: &str, certificate: &Credential) -> Result<Instant, PeerError> {
        let file = with_ending(&self.folder.join(MANY).join(name));
        let text = together(certificate);
        write_secret(&file, &text)?;
        let asked = Instant::now();
        let set = self.ask(&format!("set ssl cert {} <<\n{text}\n", file.display()))?;
        let committed = self.ask(&format!("commit ssl cert {}\n", file.display()))?;
        if committed.contains("Success") {
            return Ok(asked);
        }
        let answer = format!("{} {}", set.trim(), committed.trim());
        Err(PeerError::Unchanged { peer: Kind::Haproxy, answer })
    }
}

fn configuration(folder: &Path, port: u16, upstreams: Upstreams, many: bool) -> String {
    let folder = folder.display();
    let Upstreams { plain, mtls, echo } = upstreams;
    let verified = format!(
        "pool-max-conn 320 ssl verify required ca-file {folder}/upstream-ca.crt verifyhost {HOST} sni str({HOST}) \
         crt {folder}/gateway.pem"
    );
    let mut certificates = String::new();
    for file in ["site.pem", "rsa.pem"].into_iter().chain(many.then_some(MANY)) {
        let _ = write!(certificates, " crt {folder}/{file}");
    }
    format!(
        "# Written by compare.
global
    nbthread 1
    maxconn 20000
    no strict-limits
    ssl-default-bind-options ssl-min-ver TLSv1.2
    stats socket {folder}/admin.sock mode 600 level admin
    stats timeout 60s

defaults
    mode http
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout http-request 60s
    timeout http-keep-alive 600s
    http-reuse always

frontend https
    bind 127.0.0.1:{port} ssl{certificates} alpn h2,http/1.1 verify required ca-file {folder}/client-ca.crt
    http-request return status 404 unless {{ path {PROXIED} {PROXIED_MTLS} {CALL} {SOCKET} }}
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    option forwardfor
    use_backend mtls if {{ path {PROXIED_MTLS} }}
    use_backend calls if {{ path {CALL} }}
    use_backend sockets if {{ path {SOCKET} }}
    default_backend plain

backend plain
    server one {plain} pool-max-conn 320

backend mtls
    server one {mtls} {verified}

backend calls
    server one {echo} {verified} alpn h2

backend sockets
    server one {echo} {verified} alpn http/1.1
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::credentials::tests::upstreams;

    #[test]
    fn clients_and_upstreams_are_verified() {
        let text = configuration(Path::new("/x"), 443, upstreams(), false);
        assert!(text.contains("verify required ca-file /x/client-ca.crt"));
        let verified = "ssl verify required ca-file /x/upstream-ca.crt verifyhost bench.test";
        assert_eq!(text.matches(verified).count(), 3);
        assert!(!text.contains("/x/many"));
        assert!(configuration(Path::new("/x"), 443, upstreams(), true).contains("crt /x/many alpn"));
    }

    #[test]
    fn the_ending_is_appended_to_names_with_dots() {
        assert_eq!(with_ending(Path::new("/x/s1.many.test")), Path::new("/x/s1.many.test.pem"));
    }
}
