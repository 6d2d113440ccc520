//! Debian's nginx: one worker on one core, TLS 1.3, client certificates required, a keep-alive pool to the upstream.
//!
//! It sends the same headers to the upstream as Countersign does, keeps no access log, and closes no connection that
//! the other peers would keep. Session tickets are on, as in its default.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::child::{Server, free_port, version_line};
use super::{HOST, PROXIED, Peer, PeerError};

/// One more name that nginx shall serve: the files `<name>.crt` and `<name>.key` must be in its folder.
pub type SiteName = String;

/// A running nginx.
pub struct Nginx {
    program: PathBuf,
    folder: PathBuf,
    cpu: usize,
    address: SocketAddr,
    server: Server,
}

/// Finds nginx; when it is missing and we are root on Debian or Ubuntu, installs it without leaving its service on.
///
/// # Errors
/// Missing: says how to install it.
pub fn find() -> Result<PathBuf, PeerError> {
    if let Some(found) = look() {
        return Ok(found);
    }
    let missing = |hint: String| PeerError::Missing { peer: "nginx", hint };
    if !running_as_root() {
        return Err(missing(
            "install it, on Debian or Ubuntu with: sudo apt-get install nginx-light".to_owned(),
        ));
    }
    install().map_err(|error| missing(format!("`apt-get install nginx-light` failed: {error}")))?;
    look().ok_or_else(|| missing("`apt-get install nginx-light` left no /usr/sbin/nginx".to_owned()))
}

fn look() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join("nginx")).find(|candidate| candidate.is_file())
}

fn running_as_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn install() -> std::io::Result<()> {
    eprintln!("compare: nginx is missing; running apt-get install nginx-light");
    let done = Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends", "nginx-light"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    // The package starts a service on port 80, which nobody asked for.
    for (program, arguments) in
        [("systemctl", &["disable", "--now", "nginx"][..]), ("service", &["nginx", "stop"])]
    {
        let _ = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    }
    if done.success() { Ok(()) } else { Err(std::io::Error::other(done.to_string())) }
}

/// `nginx/1.22.1`, with the OpenSSL it runs on.
pub fn version(program: &Path) -> String {
    let output = Command::new(program).arg("-V").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.contains("nginx version") || line.contains("OpenSSL")).collect();
    let package = version_line(Path::new("dpkg-query"), "-f=${Version}").map(|_| debian_version());
    let mut told = lines.join(", ").replace("nginx version: ", "");
    if let Some(Some(package)) = package {
        let _ = write!(told, ", Debian package {package}");
    }
    told
}

fn debian_version() -> Option<String> {
    let output = Command::new("dpkg-query").args(["-W", "-f=${Version}", "nginx-common"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

impl Nginx {
    /// Starts it in a folder that holds `site.crt`, `site.key` and `client-ca.crt`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(
        program: &Path,
        folder: &Path,
        cpu: usize,
        upstream: SocketAddr,
        more: &[SiteName],
    ) -> Result<Self, PeerError> {
        let port = free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let path = folder.join("nginx.conf");
        std::fs::write(&path, configuration(folder, cpu, port, upstream, more))
            .map_err(PeerError::system(format!("writing {}", path.display())))?;
        let server = Self::spawn(program, folder, cpu, address)?;
        Ok(Self { program: program.to_owned(), folder: folder.to_owned(), cpu, address, server })
    }

    /// Reads the configuration and the certificates again, as an operator would make it do.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn reload(&self) -> Result<(), PeerError> {
        let pid = i32::try_from(self.server.pid()).map_err(std::io::Error::other);
        let pid = pid.map_err(PeerError::system("reloading nginx"))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)
            .map_err(|error| PeerError::system("reloading nginx")(error.into()))
    }

    /// When the process was started.
    pub fn started(&self) -> std::time::Instant {
        self.server.started
    }

    fn spawn(program: &Path, folder: &Path, cpu: usize, address: SocketAddr) -> Result<Server, PeerError> {
        let mut command = Command::new(program);
        command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
        command.stdout(Stdio::null());
        let mut server = Server::spawn(command, cpu, &folder.join("nginx.log"))?;
        server.wait_listening(address)?;
        Ok(server)
    }
}

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pid(&self) -> u32 {
        self.server.pid()
    }

    fn restart(&mut self) -> Result<(), PeerError> {
        self.server.stop();
        self.server = Self::spawn(&self.program, &self.folder, self.cpu, self.address)?;
        Ok(())
    }
}

fn configuration(folder: &Path, cpu: usize, port: u16, upstream: SocketAddr, more: &[SiteName]) -> String {
    let folder = folder.display();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).max(cpu + 1);
    let mask: String = (0..cores).rev().map(|core| if core == cpu { '1' } else { '0' }).collect();
    let mut sites = String::new();
    for name in more {
        let _ = write!(
            sites,
            "
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate {folder}/{name}.crt;
        ssl_certificate_key {folder}/{name}.key;
        location / {{ return 404; }}
    }}"
        );
    }
    format!(
        "# Written by bench/compare.
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
    upstream shared {{
        server {upstream};
        keepalive 320;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} ssl default_server;
        server_name {HOST};
        ssl_certificate {folder}/site.crt;
        ssl_certificate_key {folder}/site.key;
        location / {{ return 404; }}
        location = {PROXIED} {{
            proxy_pass http://shared;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
        }}
    }}{sites}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_pinned_by_a_mask_that_reads_from_the_right() {
        let text =
            configuration(Path::new("/x"), 1, 443, ([127, 0, 0, 1], 80).into(), &["a.test".to_owned()]);
        let mask = text.lines().find_map(|line| line.strip_prefix("worker_cpu_affinity ")).unwrap();
        assert!(mask.trim_end_matches(';').ends_with("10"), "{mask}");
        assert_eq!(text.matches("ssl_certificate_key").count(), 2);
    }
}
