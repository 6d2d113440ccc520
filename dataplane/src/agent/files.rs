//! The node's certificate, its key and the CA of control planes: read once at start, checked against each other.

use std::path::Path;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::AgentError;

/// Everything mutual TLS needs, as PEM for tonic, and the key for the last-good file.
pub(super) struct Material {
    pub chain_pem: String,
    pub key_pem: Zeroizing<String>,
    pub ca_pem: String,
    pub key: pki::PrivateKey,
}

pub(super) fn load(settings: &conf::Node) -> Result<Material, AgentError> {
    let chain_pem = read("countersign.node.cert", &settings.cert)?;
    let key_pem = Zeroizing::new(read("countersign.node.key", &settings.key)?);
    let ca_pem = read("countersign.node.ca", &settings.ca)?;

    let unusable =
        |field, path: &Path, problem: String| AgentError::Unusable { field, path: path.to_owned(), problem };
    let chain = pki::certificates_from_pem(&chain_pem)
        .map_err(|error| unusable("countersign.node.cert", &settings.cert, error.to_string()))?;
    let anchors = pki::certificates_from_pem(&ca_pem)
        .map_err(|error| unusable("countersign.node.ca", &settings.ca, error.to_string()))?;
    // tonic reads blocks with the label CERTIFICATE alone, and skips the others.
    let pem = |certificates: &[pki::Certificate]| certificates.iter().map(pki::Certificate::to_pem).collect();
    let (ca_pem, chain_pem) = (pem(&anchors), pem(&chain));
    let key_unusable = |problem| unusable("countersign.node.key", &settings.key, problem);
    let key = pki::PrivateKey::from_pem(&key_pem).map_err(|error| key_unusable(error.to_string()))?;
    if let Some(leaf) = chain.first() {
        key.matches(leaf).map_err(|error| {
            key_unusable(format!(
                "{error}; it must belong to countersign.node.cert ({})",
                settings.cert.display()
            ))
        })?;
        warn_about(leaf, settings);
    }
    Ok(Material { chain_pem, key_pem, ca_pem, key })
}

fn read(field: &'static str, path: &Path) -> Result<String, AgentError> {
    std::fs::read_to_string(path).map_err(|source| AgentError::Unreadable {
        field,
        path: path.to_owned(),
        source,
    })
}

/// What the control plane will refuse is told here, too, where the mistake is. Not an error: the last good snapshot can be
/// served without any certificate.
fn warn_about(leaf: &pki::Certificate, settings: &conf::Node) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = settings.cert.display();
    if leaf.not_after().as_secs() < now {
        tracing::warn!(
            "countersign.node.cert: {path} has expired: control planes will refuse it; issue a new one"
        );
    } else if leaf.not_before().as_secs() > now {
        tracing::warn!("countersign.node.cert: {path} is not valid yet: is this machine's clock right?");
    }
    let names = leaf.dns_names();
    if !names.iter().any(|name| name.eq_ignore_ascii_case(&settings.name)) {
        tracing::warn!(
            "countersign.node.name is {:?}, but {path} carries {}: control planes will refuse this node; set the name, or issue \
             a certificate with it",
            settings.name,
            if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") },
        );
    }
}
