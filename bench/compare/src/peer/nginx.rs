//! Debian's nginx: one worker on one core, TLS 1.3, client certificates required, a keep-alive pool
//! for each upstream.
//!
//! It sends the same headers to the upstream as Countersign, writes no access log, and closes no
//! connection that the other peers keep. Session tickets are on, its default.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use e2e::credentials::Credential;

use super::credentials::write_pair;
use super::program::{Configured, debian_package, free_port, on_path};
use super::{
    CALL, HOST, Installed, Kind, ManySites, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, SOCKET,
    StartContext, Upstreams,
};

pub struct NginxProgram {
    program: PathBuf,
}

impl NginxProgram {
    /// # Errors
    /// [`PeerError::Missing`], with a hint how to install it.
    pub fn find() -> Result<Self, PeerError> {
        let hint = "run scripts/setup.sh compare, or on Debian or Ubuntu: sudo apt-get install nginx";
        let program = on_path("nginx")
            .ok_or_else(|| PeerError::Missing { peer: Kind::Nginx, hint: hint.to_owned() })?;
        Ok(Self { program })
    }

    fn launch(&self, context: &StartContext<'_>) -> Result<Nginx, PeerError> {
        let folder = context.folder.to_owned();
        let port = free_port();
        let text = configuration(&folder, context.cores.server, port, context.upstreams, context.more);
        let file = folder.join("nginx.conf");
        let (program, settings) = (self.program.clone(), file.clone());
        let prefix = folder.clone();
        let launch = move || {
            let mut command = Command::new(&program);
            command.arg("-p").arg(&prefix).arg("-c").arg(&settings);
            command
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let running = Configured::start(Kind::Nginx, context, address, (file, &text), Box::new(launch))?;
        Ok(Nginx { folder, running })
    }
}

impl Installed for NginxProgram {
    fn kind(&self) -> Kind {
        Kind::Nginx
    }

    /// `nginx/1.22.1`, and the OpenSSL it runs on.
    fn version(&self) -> String {
        let output = Command::new(&self.program).arg("-V").stdin(Stdio::null()).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
        let lines: Vec<&str> =
            text.lines().filter(|line| line.contains("nginx version") || line.contains("OpenSSL")).collect();
        lines.join(", ").replace("nginx version: ", "") + &debian_package("nginx-common")
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        Ok(Box::new(self.launch(context)?.running))
    }

    fn start_many(&self, context: &StartContext<'_>) -> Option<Result<Box<dyn ManySites>, PeerError>> {
        Some(self.launch(context).map(|running| Box::new(running) as Box<dyn ManySites>))
    }
}

struct Nginx {
    folder: PathBuf,
    running: Configured,
}

impl ManySites for Nginx {
    fn peer(&mut self) -> &mut dyn Peer {
        &mut self.running
    }

    /// A new file and SIGHUP: nginx reads the configuration and all certificates again.
    fn change(&mut self, name: &str, certificate: &Credential) -> Result<Instant, PeerError> {
        write_pair(&self.folder, name, certificate)?;
        let asked = Instant::now();
        let pid = i32::try_from(self.running.pid()).map_err(std::io::Error::other);
        let pid = pid.map_err(PeerError::system("reloading nginx"))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)
            .map_err(|error| PeerError::system("reloading nginx")(error.into()))?;
        Ok(asked)
    }
}

fn configuration(folder: &Path, cpu: usize, port: u16, upstreams: Upstreams, more: &[String]) -> String {
    let sites = sites(folder, port, more);
    let folder = folder.display();
    let Upstreams { plain, mtls, echo } = upstreams;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).max(cpu + 1);
    let mask: String = (0..cores).rev().map(|core| if core == cpu { '1' } else { '0' }).collect();
    format!(
        "# Written by compare.
daemon off;
worker_processes 1;
worker_cpu_affinity {mask};
worker_rlimit_nofile 60000;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log error;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server_names_hash_max_size 65536;
    server_names_hash_bucket_size 1024;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_client_certificate {folder}/client-ca.crt;
    ssl_verify_client on;
    ssl_verify_depth 2;
    upstream plain {{
        server {plain};
        keepalive 320;
        keepalive_requests 1000000000;
    }}
    upstream mtls {{
        server {mtls};
        keepalive 320;
        keepalive_requests 1000000000;
    }}
    # Apart, because kept connections of one block serve HTTP/2 and HTTP/1 alike.
    upstream calls {{
        server {echo};
        keepalive 320;
        keepalive_requests 1000000000;
    }}
    upstream sockets {{ server {echo}; }}{sites}
}}
"
    )
}

/// The two names of every peer, and `more` that respond with 404.
fn sites(folder: &Path, port: u16, more: &[String]) -> String {
    let folder = folder.display();
    let (proxied, calls, sockets) = (proxied(), verified(&folder, "grpc"), verified(&folder, "proxy"));
    let mut sites = String::new();
    for (name, file, default) in [(HOST, "site", " default_server"), (RSA_HOST, "rsa", "")] {
        let _ = write!(
            sites,
            "
    server {{
        listen 127.0.0.1:{port} ssl http2{default};
        server_name {name};
        ssl_certificate {folder}/{file}.crt;
        ssl_certificate_key {folder}/{file}.key;
        location / {{ return 404; }}
        location = {PROXIED} {{
            proxy_pass http://plain;{proxied}
        }}
        location = {PROXIED_MTLS} {{
            proxy_pass https://mtls;{proxied}{sockets}
        }}
        location = {CALL} {{
            grpc_pass grpcs://calls;{calls}
        }}
        location = {SOCKET} {{
            proxy_pass https://sockets;{sockets}
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header Host $http_host;
        }}
    }}"
        );
    }
    for name in more {
        let _ = write!(
            sites,
            "
    server {{
        listen 127.0.0.1:{port} ssl http2;
        server_name {name};
        ssl_certificate {folder}/{name}.crt;
        ssl_certificate_key {folder}/{name}.key;
        location / {{ return 404; }}
    }}"
        );
    }
    sites
}

/// The directives of a module (`proxy`, `grpc`) about an upstream with mutual TLS.
fn verified(folder: &impl std::fmt::Display, module: &str) -> String {
    format!(
        "
            {module}_ssl_verify on;
            {module}_ssl_trusted_certificate {folder}/upstream-ca.crt;
            {module}_ssl_name {HOST};
            {module}_ssl_server_name on;
            {module}_ssl_protocols TLSv1.2 TLSv1.3;
            {module}_ssl_certificate {folder}/gateway.crt;
            {module}_ssl_certificate_key {folder}/gateway.key;"
    )
}

fn proxied() -> &'static str {
    "
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::credentials::tests::upstreams;

    #[test]
    fn the_affinity_mask_is_little_endian() {
        let text = configuration(Path::new("/x"), 1, 443, upstreams(), &["a.test".to_owned()]);
        let mask = text.lines().find_map(|line| line.strip_prefix("worker_cpu_affinity ")).unwrap();
        assert!(mask.trim_end_matches(';').ends_with("10"), "{mask}");
        assert_eq!(text.matches(" ssl_certificate_key").count(), 3);
    }

    #[test]
    fn clients_and_upstreams_are_verified() {
        let text = configuration(Path::new("/x"), 1, 443, upstreams(), &[]);
        assert!(text.contains("ssl_verify_client on;") && text.contains("/x/client-ca.crt"));
        assert_eq!(text.matches("proxy_ssl_verify on;").count(), 4, "for both names");
        assert_eq!(text.matches("grpc_ssl_verify on;").count(), 2, "for both names");
    }
}
