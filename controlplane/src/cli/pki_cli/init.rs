//! `pki init`: two separate small PKIs, one for the Admin API and one for the push, and the keyring
//! of the store.
//!
//! They are separate so that an administrator of the gateway cannot pose as a data plane and fetch
//! private keys, nor the other way round.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use pki::ca::{Authority, AuthoritySpec, LeafSpec, Usages};
use rustls_pki_types::UnixTime;
use zeroize::Zeroizing;

use super::files::FileBatch;
use super::issue::with_names;
use super::{InitArgs, PkiCliError, valid_from};

pub(super) fn run(
    config: &Path,
    args: &InitArgs,
    now: UnixTime,
    out: &mut dyn Write,
) -> Result<(), PkiCliError> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => default_dir(config)?,
    };
    if !args.force && only_keyring_missing(&dir) {
        return create_keyring(&dir, out);
    }
    let from = valid_from(now);
    let ca = |name: &str| {
        Authority::root(&AuthoritySpec::new(name).organization("Countersign").valid(from, ca_days(args)))
    };

    let admin_ca = ca("Countersign Admin CA")?;
    let mut admin_names = args.admin_name.clone();
    for local_name in ["localhost", "127.0.0.1", "::1"] {
        if !admin_names.iter().any(|name| name == local_name) {
            admin_names.push(local_name.to_owned());
        }
    }
    let first_name = admin_names.first().map_or("localhost", String::as_str);
    let server =
        with_names(LeafSpec::client(first_name).usages(Usages::SERVER), &admin_names).valid(from, args.days);
    let admin_server = admin_ca.issue(&server)?;
    let admin_client = admin_ca.issue(&LeafSpec::client("admin").valid(from, args.days))?;

    let push_ca = ca("Countersign Push CA")?;
    let push_server = push_ca.issue(&LeafSpec::server(args.server_name.as_str()).valid(from, args.days))?;
    let node_names = if args.node_name.is_empty() { default_node_names() } else { args.node_name.clone() };
    let first_name = node_names.first().map_or("dataplane", String::as_str);
    let node =
        push_ca.issue(&with_names(LeafSpec::client(first_name), &node_names).valid(from, args.days))?;

    let (admin_ca_pem, admin_ca_key) = (admin_ca.certificate_pem(), admin_ca.key_pem());
    let (push_ca_pem, push_ca_key) = (push_ca.certificate_pem(), push_ca.key_pem());
    let mut batch = FileBatch::default();
    batch.pair(&dir.join("admin-ca"), &admin_ca_pem, &admin_ca_key);
    batch.pair(&dir.join("admin-server"), &admin_server.chain_pem, &admin_server.key_pem);
    batch.pair(&dir.join("admin-client"), &admin_client.chain_pem, &admin_client.key_pem);
    batch.pair(&dir.join("push-ca"), &push_ca_pem, &push_ca_key);
    batch.pair(&dir.join("push-server"), &push_server.chain_pem, &push_server.key_pem);
    batch.pair(&dir.join("node"), &node.chain_pem, &node.key_pem);
    let keyring = random_keyring()?;
    let keyring_is_new = batch.secret_if_missing(&dir.join(KEYRING), &keyring);
    batch.write(args.force)?;

    let names = [admin_names.join(", "), node_names.join(", ")];
    print_next_steps(config, args, &dir, &names, keyring_is_new, out)
}

/// Lists the files, and the commands that use them.
fn print_next_steps(
    config: &Path,
    args: &InitArgs,
    dir: &Path,
    [admin_names, node_names]: &[String; 2],
    keyring_is_new: bool,
    out: &mut dyn Write,
) -> Result<(), PkiCliError> {
    let dir = dir.display();
    writeln!(out, "Made in {dir} (each .crt has its .key, mode 0600):")?;
    writeln!(out, "  admin-ca      signs for the Admin API; keep its key safe, or away from this machine")?;
    writeln!(out, "  admin-server  the Admin API: {admin_names}")?;
    writeln!(out, "  admin-client  for who calls the Admin API (controlplane admin, curl --cert --key)")?;
    writeln!(out, "  push-ca       signs for the push; keep its key safe, too")?;
    writeln!(out, "  push-server   the control plane, towards data planes: {}", args.server_name)?;
    writeln!(out, "  node          a data plane, towards the control plane: {node_names}")?;
    writeln!(
        out,
        "  keyring       seals private keys in the store{}; keep a copy, without it they cannot be opened",
        if keyring_is_new { "" } else { " (was there, and stays)" }
    )?;
    writeln!(out, "Valid for {} days, the CAs for {}. Next:", args.days, ca_days(args))?;
    writeln!(out, "  controlplane -c {}", config.display())?;
    writeln!(out, "  dataplane -c {}", config.display())?;
    writeln!(out, "More data planes: controlplane pki issue node NAME --ca {dir}/push-ca --out {dir}/NAME")?;
    Ok(())
}

fn ca_days(args: &InitArgs) -> u32 {
    args.days.saturating_mul(10).min(36_500)
}

/// The directory of the push certificate in the settings; for the default settings the default
/// directory.
fn default_dir(config: &Path) -> Result<PathBuf, PkiCliError> {
    if config == Path::new(CONFIG) {
        return Ok(PathBuf::from("conf/pki"));
    }
    let settings = conf::load(config)?;
    Ok(settings.countersign.push.cert.parent().unwrap_or(Path::new(".")).to_owned())
}

/// Whether everything else that the programs read exists. The keys of the CAs may be on another
/// machine.
fn only_keyring_missing(dir: &Path) -> bool {
    let exists = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let pairs = ["admin-server", "admin-client", "push-server", "node"];
    let pairs = pairs.iter().all(|name| exists(&format!("{name}.crt")) && exists(&format!("{name}.key")));
    pairs && exists("admin-ca.crt") && exists("push-ca.crt") && !exists(KEYRING)
}

fn create_keyring(dir: &Path, out: &mut dyn Write) -> Result<(), PkiCliError> {
    let (keyring, path) = (random_keyring()?, dir.join(KEYRING));
    let mut batch = FileBatch::default();
    batch.secret_if_missing(&path, &keyring);
    batch.write(false)?;
    writeln!(out, "Made {} (mode 0600); the certificates were there, and stay.", path.display())?;
    writeln!(
        out,
        "It seals private keys in the store; keep a copy, and give it to the other control planes."
    )?;
    writeln!(
        out,
        "If there was a keyring before and it was lost, put its copy there instead: this one does not open what that one sealed."
    )?;
    Ok(())
}

/// The file name of the keyring.
const KEYRING: &str = "keyring";

/// The settings that the programs read by default.
const CONFIG: &str = "conf/config.yaml";

/// Random bytes of a key; 32 characters of text.
const KEY_BYTES: usize = 24;

/// A new key with its line end.
fn random_keyring() -> Result<Zeroizing<String>, PkiCliError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    aws_lc_rs::rand::fill(&mut *bytes)
        .map_err(|_| std::io::Error::other("the system gives no random bytes"))?;
    Ok(Zeroizing::new(format!("{}\n", URL_SAFE.encode(*bytes))))
}

/// The name in conf/config.yaml, and the default name of a data plane on this machine.
fn default_node_names() -> Vec<String> {
    let mut names = vec!["dataplane".to_owned()];
    let is_valid = |host: &String| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    names.extend(conf::host_name().filter(is_valid).filter(|host| host != "dataplane"));
    names
}
