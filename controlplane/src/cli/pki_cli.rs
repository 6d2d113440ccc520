//! `controlplane pki init | issue | show`: makes and shows certificates.
//!
//! Works on files only, without a running control plane. Invariants: a file is replaced only with
//! `--force`, and atomically; private keys have mode 0600 from their creation; no private key is
//! printed.

mod files;
mod init;
mod issue;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use rustls_pki_types::UnixTime;
pub(crate) use show::subject_alt_names;

/// Allows for clock skew: a certificate is valid from this many seconds before its creation.
const BACKDATED_SECONDS: u64 = 300;

/// Make and look at certificates.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane pki init                                                 what conf/config.yaml names
  controlplane pki issue client alice --ca conf/pki/client-ca --out alice
  controlplane pki show alice.crt alice.key conf/pki/client-ca.crt      do they fit together?")]
pub(crate) struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Make everything conf/config.yaml refers to: the CAs and certificates of the Admin API and of
    /// the push, and the keyring.
    Init(InitArgs),
    /// Make one more certificate: for a server, a client, a data plane (node), or another CA.
    Issue(IssueArgs),
    /// Show what is in certificate and key files, and whether they fit together.
    Show(ShowArgs),
}

/// Make everything conf/config.yaml refers to.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane pki init
  controlplane pki init -c /etc/countersign/config.yaml
  controlplane pki init --dir /etc/countersign/pki --admin-name admin.example.com --node-name edge-1 --node-name edge-2")]
pub(crate) struct InitArgs {
    /// Folder for the files. Default: conf/pki, or with -c FILE the folder of its
    /// countersign.push.cert
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Name or IP address under which the Admin API is called; may be given several times.
    /// localhost, 127.0.0.1 and ::1 are always among them
    #[arg(long, default_value = "admin.example")]
    admin_name: Vec<String>,
    /// Name that data planes check (countersign.node.server_name)
    #[arg(long, default_value = "controlplane")]
    server_name: String,
    /// Name of a data plane (countersign.node.name) that uses node.crt; may be given several times.
    /// Default: dataplane and this machine's host name
    #[arg(long)]
    node_name: Vec<String>,
    /// Days the certificates are valid; their CAs are for ten times as long
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace existing files, but never the keyring
    #[arg(long)]
    force: bool,
}

/// Make one more certificate.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane pki issue node edge-2 --ca conf/pki/push-ca --out conf/pki/edge-2
  controlplane pki issue server www.example.com 192.0.2.7 --ca conf/pki/site-ca --out www
  controlplane pki issue client alice spiffe://example.com/alice --ca conf/pki/client-ca --out alice --days 30
  controlplane pki issue ca 'Example Client CA' --out conf/pki/client-ca")]
pub(crate) struct IssueArgs {
    /// The purpose of the certificate
    kind: IssueKind,
    /// Names: DNS names, IP addresses or URIs. The first is also the common name
    #[arg(required = true)]
    names: Vec<String>,
    /// The CA that signs: its files without ending (PATH.crt and PATH.key). A new CA without it
    /// signs itself
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Files to write, without ending (PATH.crt and PATH.key). Default: the first name
    #[arg(long)]
    out: Option<PathBuf>,
    /// Days it is valid. Default: 365, for a CA 3650. Never longer than the CA that signs
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: Option<u32>,
    /// Kind of key
    #[arg(long, value_enum, default_value_t = Algorithm::P256)]
    algorithm: Algorithm,
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

/// Show what is in certificate and key files.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane pki show conf/pki/node.crt
  controlplane pki show conf/pki/node.crt conf/pki/node.key conf/pki/push-ca.crt

Each key is compared with each certificate, and each chain is verified against the CA files given with it.")]
pub(crate) struct ShowArgs {
    /// PEM files
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum IssueKind {
    /// A TLS server: a site or an upstream
    Server,
    /// A TLS client: of a site, of the Admin API, or the gateway towards an upstream
    Client,
    /// A data plane, towards the control plane
    Node,
    /// A certificate authority
    Ca,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Algorithm {
    P256,
    P384,
    Ed25519,
    Rsa2048,
}

/// A failed `pki` command. Nothing was written, unless the message names files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiCliError {
    #[error(
        "these files are there already, nothing was written: {files}. Give another place, or --force to replace them"
    )]
    Exists {
        /// Paths, separated by commas.
        files: String,
    },
    #[error("{0}")]
    Configuration(#[from] conf::ConfError),
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}", path = path.display())]
    Unwritable { path: PathBuf, source: std::io::Error },
    #[error("{path}: {problem}", path = path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error("cannot make the certificate: {0}")]
    Issue(#[from] pki::ca::IssueError),
    #[error(
        "--ca is missing: the files, without ending, of the CA that signs (`controlplane pki issue ca NAME` makes one)"
    )]
    NoCa,
    #[error("the CA {path} has expired; what it signs would be rejected", path = path.display())]
    CaExpired {
        /// The CA's certificate.
        path: PathBuf,
    },
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
    /// `show` found a mismatch.
    #[error("not everything fits together, see above")]
    Mismatch,
}

/// Runs one `pki` command and prints its result to `out`. `init` makes the files that the settings
/// in `config` name.
///
/// # Errors
/// [`PkiCliError`], whose message says what to do.
pub(crate) fn run(
    config: &Path,
    args: &PkiArgs,
    now: UnixTime,
    out: &mut dyn Write,
) -> Result<(), PkiCliError> {
    match &args.command {
        PkiCommand::Init(args) => init::run(config, args, now, out),
        PkiCommand::Issue(args) => issue::run(args, now, out),
        PkiCommand::Show(args) => show::run(args, now, out),
    }
}

fn valid_from(now: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        now.as_secs().saturating_sub(BACKDATED_SECONDS),
    ))
}

#[cfg(test)]
mod tests;
