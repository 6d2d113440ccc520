//! `pki issue`: makes one certificate, or one CA.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec, Usages};
use rustls_pki_types::UnixTime;

use super::files::{FileBatch, read, with_suffix};
use super::{Algorithm, IssueArgs, IssueKind, PkiCliError, valid_from};

const LEAF_DAYS: u32 = 365;
const CA_DAYS: u32 = 3650;
const SECONDS_A_DAY: u64 = 86_400;

pub(super) fn run(args: &IssueArgs, now: UnixTime, out: &mut dyn Write) -> Result<(), PkiCliError> {
    let name = args.names.first().map_or("", String::as_str);
    let ca_prefix = args.ca.as_deref().map(without_suffix);
    let signer = ca_prefix.as_deref().map(|prefix| authority(prefix, now)).transpose()?;
    let days = args.days.unwrap_or(if args.kind == IssueKind::Ca { CA_DAYS } else { LEAF_DAYS });
    let (from, to) = validity_period(now, days, signer.as_ref());
    let algorithm = KeyAlgorithm::from(args.algorithm);

    let (certificate, key) = match (args.kind, &signer) {
        (IssueKind::Ca, signer) => {
            let spec = AuthoritySpec::new(name).between(from, to).algorithm(algorithm);
            let ca = match signer {
                None => Authority::root(&spec)?,
                Some(signer) => signer.intermediate(&spec)?,
            };
            // The file of an intermediate CA contains the CAs above it, so that certificates it
            // signs come with their chain.
            let issuers = ca_prefix.as_deref().map(|prefix| read(&with_suffix(prefix, "crt"))).transpose()?;
            let own_pem = ca.certificate_pem();
            (
                issuers.map_or_else(|| own_pem.clone(), |issuers| format!("{own_pem}{}", issuers.as_str())),
                ca.key_pem(),
            )
        }
        (_, None) => return Err(PkiCliError::NoCa),
        (kind, Some(signer)) => {
            let usages = if kind == IssueKind::Server { Usages::SERVER } else { Usages::CLIENT };
            let spec = with_names(LeafSpec::client(name).usages(usages), &args.names);
            let issued = signer.issue(&spec.between(from, to).algorithm(algorithm))?;
            (issued.chain_pem, issued.key_pem)
        }
    };
    let prefix = args.out.clone().unwrap_or_else(|| PathBuf::from(safe_file_name(name)));
    let mut batch = FileBatch::default();
    batch.pair(&prefix, &certificate, &key);
    batch.write(args.force)?;

    let files: Vec<String> = batch.paths().map(|path| path.display().to_string()).collect();
    let days = to.as_secs().saturating_sub(now.as_secs()) / SECONDS_A_DAY;
    writeln!(out, "Made {} (mode 0600 for the key), valid for {days} days.", files.join(" and "))?;
    let next_step = match args.kind {
        IssueKind::Node => {
            format!(
                "Give both to the data plane (countersign.node.cert, .key) that is called {name} (countersign.node.name)."
            )
        }
        IssueKind::Ca => {
            format!("Sign with it: controlplane pki issue client NAME --ca {} --out NAME", prefix.display())
        }
        IssueKind::Server | IssueKind::Client => {
            format!("Look at it: controlplane pki show {}", with_suffix(&prefix, "crt").display())
        }
    };
    writeln!(out, "{next_step}")?;
    Ok(())
}

/// Adds each name by its form: an IP address, a URI, or else a DNS name. Any other name of a
/// client, for instance with blanks, is the common name only.
pub(super) fn with_names(spec: LeafSpec, names: &[String]) -> LeafSpec {
    names.iter().fold(spec, |spec, name| {
        if let Ok(address) = name.parse::<IpAddr>() {
            spec.ip(address)
        } else if name.contains("://") {
            spec.uri(name.as_str())
        } else if name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '*')) {
            spec.dns(name.as_str())
        } else {
            spec
        }
    })
}

fn authority(prefix: &Path, now: UnixTime) -> Result<Authority, PkiCliError> {
    let path = with_suffix(prefix, "crt");
    let certificate = read(&path)?;
    let key = read(&with_suffix(prefix, "key"))?;
    let authority = Authority::from_pem(&certificate, &key)
        .map_err(|error| PkiCliError::Unusable { path: path.clone(), problem: error.to_string() })?;
    if authority.certificate().not_after().as_secs() < now.as_secs() {
        return Err(PkiCliError::CaExpired { path });
    }
    Ok(authority)
}

/// Shell completion gives `push-ca.crt` for `push-ca`.
fn without_suffix(path: &Path) -> PathBuf {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("crt" | "key") => path.with_extension(""),
        _ => path.to_owned(),
    }
}

/// Bounded by the signer: a certificate that outlives its CA fails unexpectedly.
fn validity_period(now: UnixTime, days: u32, signer: Option<&Authority>) -> (UnixTime, UnixTime) {
    let not_after = now.as_secs().saturating_add(u64::from(days) * SECONDS_A_DAY);
    let not_after =
        signer.map_or(not_after, |signer| not_after.min(signer.certificate().not_after().as_secs()));
    (valid_from(now), UnixTime::since_unix_epoch(std::time::Duration::from_secs(not_after)))
}

/// A name as a file name; separators and characters that need quotes become dashes.
fn safe_file_name(name: &str) -> String {
    let to_safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    name.chars().map(to_safe).collect::<String>().trim_start_matches('.').to_owned()
}

impl From<Algorithm> for KeyAlgorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::P256 => Self::P256,
            Algorithm::P384 => Self::P384,
            Algorithm::Ed25519 => Self::Ed25519,
            Algorithm::Rsa2048 => Self::Rsa2048,
        }
    }
}
