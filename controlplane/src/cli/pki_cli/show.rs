//! `pki show`: prints certificates and keys, and whether keys match certificates and chains lead to
//! CAs.
//!
//! Verifies chains with the functions that verify peers.

use std::io::Write;
use std::path::{Path, PathBuf};

use data_encoding::HEXUPPER;
use pki::{Certificate, PrivateKey, format_utc};
use rustls_pki_types::{ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::files::read;
use super::{PkiCliError, ShowArgs};

const SECONDS_A_DAY: u64 = 86_400;
/// The maximum number of intermediates.
const DEPTH_MAX: u32 = 10;

struct Bundle {
    path: PathBuf,
    certificates: Vec<Certificate>,
}

pub(super) fn run(args: &ShowArgs, now: UnixTime, out: &mut dyn Write) -> Result<(), PkiCliError> {
    let mut bundles = Vec::new();
    let mut keys = Vec::new();
    for path in &args.files {
        let text = read(path)?;
        let unusable = |problem: String| PkiCliError::Unusable { path: path.clone(), problem };
        let certificates = pki::certificates_from_pem(&text);
        let key = PrivateKey::from_pem(&text);
        match (certificates, key) {
            (Err(_), Err(_)) if !text.contains("-----BEGIN") => {
                return Err(unusable("not a PEM file: no -----BEGIN line is in it".into()));
            }
            (Err(certificate), Err(key)) => {
                return Err(unusable(format!("no certificate ({certificate}) and no private key ({key})")));
            }
            (certificates, key) => {
                bundles.extend(
                    certificates.ok().map(|certificates| Bundle { path: path.clone(), certificates }),
                );
                keys.extend(key.ok().map(|key| (path.clone(), key)));
            }
        }
    }
    for bundle in &bundles {
        for (index, certificate) in bundle.certificates.iter().enumerate() {
            print_certificate(&bundle.path, index, bundle.certificates.len(), certificate, now, out)?;
        }
    }
    let keys_fit = print_keys(&bundles, &keys, out)?;
    let chains_fit = print_chains(&bundles, now, out)?;
    if keys_fit && chains_fit { Ok(()) } else { Err(PkiCliError::Mismatch) }
}

fn print_certificate(
    path: &Path,
    index: usize,
    of: usize,
    certificate: &Certificate,
    now: UnixTime,
    out: &mut dyn Write,
) -> Result<(), PkiCliError> {
    let position = if of > 1 { format!(" (certificate {} of {of})", index + 1) } else { String::new() };
    writeln!(out, "{}{position}", path.display())?;
    let kind = match (certificate.is_ca(), certificate.is_self_issued()) {
        (true, true) => " (a root CA)",
        (true, false) => " (an intermediate CA)",
        (false, _) => "",
    };
    writeln!(out, "  subject      {}{kind}", certificate.subject())?;
    writeln!(out, "  issuer       {}", certificate.issuer())?;
    let details = names_and_usages(certificate);
    let names = if details.names.is_empty() { "none".to_owned() } else { details.names.join(", ") };
    writeln!(out, "  names        {names}")?;
    writeln!(out, "  usages       {}", details.usages)?;
    writeln!(
        out,
        "  valid        {} to {}",
        format_utc(certificate.not_before()),
        format_utc(certificate.not_after())
    )?;
    writeln!(out, "               {}", validity(certificate, now))?;
    writeln!(out, "  serial       {}", certificate.serial_hex())?;
    let fingerprint: Vec<String> =
        certificate.fingerprint_sha256().iter().map(|byte| HEXUPPER.encode(&[*byte])).collect();
    writeln!(out, "  SHA-256      {}", fingerprint.join(":"))?;
    if certificate.is_v1() {
        writeln!(out, "  note         X.509 version 1: it can carry neither names nor usages")?;
    }
    Ok(())
}

/// One line per key; false if a key matches none of the given certificates.
fn print_keys(
    bundles: &[Bundle],
    keys: &[(PathBuf, PrivateKey)],
    out: &mut dyn Write,
) -> Result<bool, PkiCliError> {
    let mut matches = true;
    for (path, key) in keys {
        writeln!(out, "{}", path.display())?;
        let owner = bundles
            .iter()
            .find(|bundle| bundle.certificates.first().is_some_and(|leaf| key.matches(leaf).is_ok()));
        match owner {
            Some(bundle) => writeln!(out, "  private key  belongs to {}", bundle.path.display())?,
            None if bundles.is_empty() => {
                writeln!(out, "  private key  (give certificates, too, to see where it belongs)")?
            }
            None => {
                matches = false;
                writeln!(out, "  private key  BELONGS TO NONE of the certificates given")?;
            }
        }
    }
    Ok(matches)
}

/// One line per leaf, if CA certificates are given; false if a chain does not verify.
fn print_chains(bundles: &[Bundle], now: UnixTime, out: &mut dyn Write) -> Result<bool, PkiCliError> {
    let all = bundles.iter().flat_map(|bundle| &bundle.certificates);
    let roots: Vec<Certificate> = all.filter(|one| one.is_ca() && one.is_self_issued()).cloned().collect();
    let mut matches = true;
    for bundle in bundles {
        let Some((leaf, intermediates)) = bundle.certificates.split_first() else { continue };
        if leaf.is_ca() || roots.is_empty() {
            continue;
        }
        let path = bundle.path.display();
        match verify(&roots, leaf, intermediates, now) {
            Ok(()) => writeln!(out, "{path}: the chain is good, up to a CA among the files given")?,
            Err(problem) => {
                matches = false;
                writeln!(out, "{path}: THE CHAIN IS NOT GOOD: {problem}")?;
            }
        }
    }
    Ok(matches)
}

/// As a client's certificate or, if its usage is another one, as a server's with its own first
/// name.
fn verify(
    roots: &[Certificate],
    leaf: &Certificate,
    intermediates: &[Certificate],
    now: UnixTime,
) -> Result<(), String> {
    let intermediates: Vec<_> = intermediates.iter().map(|one| one.der().clone()).collect();
    let input = pki::ClientAuthInput { anchors: roots.to_vec(), depth: DEPTH_MAX, ..Default::default() };
    let policy = pki::ClientAuth::new(input).map_err(|error| error.to_string())?;
    match pki::verify_client(&policy, leaf.der(), &intermediates, now) {
        Ok(_) => Ok(()),
        Err(pki::VerifyError::InvalidPurpose { .. }) => {
            let name =
                names_and_usages(leaf).names.into_iter().find_map(|name| ServerName::try_from(name).ok());
            let name = name.ok_or("a server's certificate needs a DNS name or an IP address")?;
            pki::verify_server(policy.anchors(), &name, leaf.der(), &intermediates, now)
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

struct NamesAndUsages {
    names: Vec<String>,
    usages: String,
}

/// The names of the subject alternative name extension.
pub(crate) fn subject_alt_names(certificate: &Certificate) -> Vec<String> {
    names_and_usages(certificate).names
}

/// Names and usages, as the extensions list them.
fn names_and_usages(certificate: &Certificate) -> NamesAndUsages {
    let mut names = Vec::new();
    let mut usages = Vec::new();
    let Ok((_, parsed)) = X509Certificate::from_der(certificate.der()) else {
        return NamesAndUsages { names, usages: "unreadable".into() };
    };
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(list) => {
                names.extend(list.general_names.iter().map(general_name))
            }
            ParsedExtension::KeyUsage(usage) => usages.push(usage.to_string()),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let flags = [
                    (usage.server_auth, "TLS server"),
                    (usage.client_auth, "TLS client"),
                    (usage.any, "any"),
                ];
                usages.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()));
            }
            _ => {}
        }
    }
    NamesAndUsages { names, usages: if usages.is_empty() { "any".into() } else { usages.join(", ") } }
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::URI(name) => (*name).to_owned(),
        GeneralName::RFC822Name(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or(v6).map_or_else(|_| "an unreadable IP address".into(), |address| address.to_string())
        }
        other => format!("{other:?}"),
    }
}

fn validity(certificate: &Certificate, now: UnixTime) -> String {
    let (from, to, now) =
        (certificate.not_before().as_secs(), certificate.not_after().as_secs(), now.as_secs());
    if now < from {
        "NOT VALID YET".into()
    } else if now > to {
        format!("EXPIRED {} days ago", (now - to) / SECONDS_A_DAY)
    } else {
        format!("{} days left", (to - now) / SECONDS_A_DAY)
    }
}
