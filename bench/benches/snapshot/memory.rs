//! What an ssl object takes in a data plane's memory: resident bytes an object, by the data plane's own allocator.
//!
//! Counted beside its certificates and key, whose bytes somebody has to hold. Each object is made from a document of its own, as one
//! that arrives over the push is: nothing is shared but what the code itself shares.

use bench::gateway;
use bench::process::resident_bytes;
use dataplane::tls::site::Purpose;
use model::{Id, Kind, Resource, Snapshot, TlsVersion, Versioned};
use pki::mint::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};

/// Objects of a shape: enough that the pages of everything else do not show.
const OBJECTS: usize = 20_000;
/// Where it should end, besides certificates and key.
const TARGET: usize = 3 * 1024;

/// One kind of ssl object.
struct Shape {
    name: &'static str,
    document: Value,
    /// DER of what it holds of certificates and keys.
    material: usize,
    /// Its TLS configuration has been made, as at its first handshake.
    used: bool,
}

/// A line a shape. All objects stay until the end: what one shape gave back the next would take without growing.
pub fn lines() -> Vec<String> {
    shapes().iter().map(measure).unzip::<_, _, Vec<_>, Vec<_>>().0
}

fn shapes() -> Vec<Shape> {
    let root = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
    let issuer = root.intermediate(&AuthoritySpec::new("Bench Intermediate")).expect("an intermediate");
    let minted = issuer.issue(&LeafSpec::server("bench.test")).expect("a leaf");
    let clients = Authority::root(&AuthoritySpec::new("Bench Client Root")).expect("a root");
    let key = minted.key().expect("a key").der().secret_der().len();
    let own = minted.chain.iter().map(|certificate| certificate.der().len()).sum::<usize>() + key;
    let anchor = clients.certificate().der().len();
    let one_sided = json!({"cert": minted.chain_pem, "key": minted.key_pem.as_str()});
    let mut mutual = one_sided.clone();
    if let Some(fields) = mutual.as_object_mut() {
        fields.insert("client".into(), json!({"ca": clients.certificate_pem(), "depth": 1}));
    }
    let shape =
        |name, document: &Value, material, used| Shape { name, document: document.clone(), material, used };
    vec![
        shape("without client.ca", &one_sided, own, false),
        shape("with client.ca", &mutual, own + anchor, false),
        shape("without client.ca, in use", &one_sided, own, true),
        shape("with client.ca, in use", &mutual, own + anchor, true),
    ]
}

fn measure(shape: &Shape) -> (String, Snapshot) {
    let shared = gateway::shared(Snapshot::empty(), &[TlsVersion::V12, TlsVersion::V13], None);
    let make = |number: usize| {
        let mut document = shape.document.clone();
        if let Some(fields) = document.as_object_mut() {
            fields.insert("snis".into(), json!([format!("host-{number}.bench.test")]));
        }
        let id = Id::parse(&format!("site-{number}")).expect("an id");
        let checked = model::check(Kind::Ssl, &id, &document, &pki::Keyring::none());
        let resource = checked.expect("a good document");
        if let (Resource::Ssl(ssl), true) = (&resource, shape.used) {
            shared.sites.config(ssl, Purpose::Http).expect("a configuration");
        }
        Versioned { revision: 1, resource }
    };
    // What is made once for all of them, and the allocator's first pages, are no object's.
    let first = Snapshot::from_resources(1, (0..100).map(make));
    let own = [std::process::id()];
    let resident = || resident_bytes(&own).expect("our own memory") as usize;
    let before = resident();
    let snapshot = Snapshot::from_resources(1, (0..OBJECTS).map(make));
    let each = resident().saturating_sub(before) / OBJECTS;
    assert_eq!(snapshot.len(Kind::Ssl), OBJECTS);
    let besides = each.saturating_sub(shape.material);
    drop(first);
    let word = if besides <= TARGET { "ok" } else { "short" };
    let line = format!(
        "memory/ssl object {:<28} {each:>6} bytes, {:>5} of them certificates and key, {besides:>6} besides (target {TARGET}: {word})",
        shape.name, shape.material
    );
    (line, snapshot)
}
