//! The memory of an ssl object in a data plane: resident bytes an object, with the data plane's own
//! allocator.
//!
//! The DER of certificates and key counts apart, since it must be held once. The rest is parsed
//! certificates, policy, names, entries of the snapshot's maps, and for an object in use the crypto
//! library's key and rustls' configuration. Each object goes over the wire, as if a control plane
//! pushed it, so objects share only what the code itself shares.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use dataplane::testing::tls::Subsystem;
use model::wire::{DeltaAssembler, chunks};
use model::{Delta, Id, Kind, Snapshot, TlsVersion, Versioned};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};

use crate::gateway;
use e2e::resources::resident_bytes;

/// Objects of a shape, so many that the pages of everything else do not show.
const OBJECTS: usize = 20_000;
/// Objects before the measured ones.
const FIRST: usize = 100;
/// The target, besides certificates and key.
const TARGET: usize = 3 * 1024;

/// One kind of ssl object.
struct Shape {
    name: &'static str,
    document: Value,
    /// DER bytes of its certificates and key.
    material: usize,
    /// Each object accepts the clients of another authority.
    authorities: bool,
    /// Its TLS configuration exists, as after its first handshake.
    used: bool,
}

/// The state of a data plane: the snapshot, and the assembler of pushed deltas.
struct Node {
    snapshot: Snapshot,
    assembler: DeltaAssembler,
}

/// The memory of one object of a shape.
pub struct Measured {
    pub name: &'static str,
    /// Bytes besides certificates and key.
    pub besides: usize,
    /// Bytes in all, and of certificates and key.
    all: (usize, usize),
}

/// One line a shape.
pub fn lines() -> Vec<String> {
    let line = |Measured { name, besides, all: (each, material) }| {
        let word = if besides <= TARGET { "ok" } else { "short" };
        format!(
            "memory/ssl object {name:<31} {each:>6} bytes, {material:>5} of them certificates and key, {besides:>6} besides (target {TARGET}: {word})"
        )
    };
    of(|_| true).into_iter().map(line).collect()
}

/// The shapes in use.
pub fn in_use() -> Vec<Measured> {
    of(|shape| shape.used)
}

/// Objects stay until the end: freed memory of one shape would serve the next one.
fn of(wanted: impl Fn(&Shape) -> bool) -> Vec<Measured> {
    shapes().iter().filter(|shape| wanted(shape)).map(measure).unzip::<_, _, Vec<_>, Vec<_>>().0
}

fn shapes() -> Vec<Shape> {
    let root = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
    let issuer = root.intermediate(&AuthoritySpec::new("Bench Intermediate")).expect("an intermediate");
    let issued = issuer.issue(&LeafSpec::server("bench.test")).expect("a leaf");
    let clients = Authority::root(&AuthoritySpec::new("Bench Client Root")).expect("a root");
    let key = issued.key().expect("a key").der().secret_der().len();
    let own = issued.chain.iter().map(|certificate| certificate.der().len()).sum::<usize>() + key;
    let anchor = clients.certificate().der().len();
    let one_sided = json!({"cert": issued.chain_pem, "key": issued.key_pem.as_str()});
    let mut mutual = one_sided.clone();
    if let Some(fields) = mutual.as_object_mut() {
        fields.insert("client".into(), json!({"ca": clients.certificate_pem(), "depth": 1}));
    }
    let shape = |name, document: &Value, material, authorities, used| Shape {
        name,
        document: document.clone(),
        material,
        authorities,
        used,
    };
    vec![
        shape("without client.ca", &one_sided, own, false, false),
        shape("with the same client.ca", &mutual, own, false, false),
        shape("with a client.ca of its own", &mutual, own + anchor, true, false),
        shape("without client.ca, in use", &one_sided, own, false, true),
        shape("with the same client.ca, in use", &mutual, own, false, true),
        shape("with its own client.ca, in use", &mutual, own + anchor, true, true),
    ]
}

impl Shape {
    fn document(&self, number: usize) -> Value {
        let mut document = self.document.clone();
        if let Some(fields) = document.as_object_mut() {
            fields.insert("snis".into(), json!([format!("host-{number}.bench.test")]));
            if self.authorities {
                let clients = Authority::root(&AuthoritySpec::new("Bench Client Root")).expect("a root");
                fields.insert("client".into(), json!({"ca": clients.certificate_pem(), "depth": 1}));
            }
        }
        document
    }
}

impl Node {
    /// Adds an object.
    fn take(&mut self, id: &Id, document: &Value) {
        let checked = model::compile(Kind::Ssl, id, document, &pki::Keyring::empty());
        let versioned = Versioned { version: 1, resource: checked.expect("a good document") };
        let from = self.snapshot.revision();
        let delta = Delta { from, to: from + 1, upserts: vec![versioned], removals: Vec::new() };
        for chunk in chunks(&delta, usize::MAX) {
            if let Some(arrived) = self.assembler.push(chunk).expect("a good delta") {
                self.snapshot = self.snapshot.apply(&arrived);
                self.assembler.set_revision(arrived.to);
            }
        }
    }
}

fn measure(shape: &Shape) -> (Measured, Snapshot) {
    let shared = gateway::shared(Snapshot::empty(), &[TlsVersion::V12, TlsVersion::V13], None);
    let mut node = Node { snapshot: Snapshot::empty(), assembler: DeltaAssembler::new(0) };
    let mut take = |number: usize| {
        let id = Id::parse(&format!("site-{number}")).expect("an id");
        node.take(&id, &shape.document(number));
        if let (Some(ssl), true) = (node.snapshot.ssl(&id), shape.used) {
            shared.sites.config(ssl, Subsystem::Http).expect("a configuration");
        }
    };
    // Allocates what all objects share, and the allocator's first pages.
    (0..FIRST).for_each(&mut take);
    let own = [std::process::id()];
    let resident = || resident_bytes(&own).expect("our own memory") as usize;
    let before = resident();
    (FIRST..FIRST + OBJECTS).for_each(&mut take);
    let each = resident().saturating_sub(before) / OBJECTS;
    assert_eq!(node.snapshot.len(Kind::Ssl), FIRST + OBJECTS);
    let besides = each.saturating_sub(shape.material);
    (Measured { name: shape.name, besides, all: (each, shape.material) }, node.snapshot)
}
