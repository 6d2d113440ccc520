//! Cases of the Admin API by message, this gateway's own limits by field, and the schema evaluator
//! against an independent one.

mod checks;
mod client;
mod plugins;
mod schemas;
mod streams;
mod upstream_tls;

use serde_json::{Value, json};

use super::*;
use crate::samples::{PAIRS, id};

/// Certificate and key of the n-th pair, as PEM.
fn pem(index: usize) -> (String, String) {
    let pair = &PAIRS[index];
    let certificate: String = pair.chain.iter().map(pki::Certificate::to_pem).collect();
    (certificate, key_pem(&pair.key))
}

fn key_pem(key: &pki::PrivateKey) -> String {
    assert_eq!(key.format(), pki::KeyFormat::Pkcs8);
    let lines = base64_lines(key.der().secret_der());
    format!("-----BEGIN PRIVATE KEY-----\n{lines}-----END PRIVATE KEY-----\n")
}

fn base64_lines(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * position)) as usize & 63] as char;
            text.push(if position <= chunk.len() { letter } else { '=' });
        }
        if text.rsplit('\n').next().is_some_and(|line| line.len() >= 64) {
            text.push('\n');
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// A valid document with replaced members; `null` removes one.
fn with(mut document: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        let members = document.as_object_mut().unwrap();
        match value {
            Value::Null => members.remove(name),
            value => members.insert(name.clone(), value.clone()),
        };
    }
    document
}

fn ssl(changes: Value) -> Value {
    let (cert, key) = pem(0);
    with(json!({"cert": cert, "key": key, "sni": "test.com"}), changes)
}

fn upstream(changes: Value) -> Value {
    with(json!({"nodes": {"127.0.0.1:1980": 1}}), changes)
}

fn route(changes: Value) -> Value {
    with(json!({"uri": "/hello", "upstream": upstream(json!({}))}), changes)
}

fn stream_route(changes: Value) -> Value {
    with(json!({"upstream": upstream(json!({}))}), changes)
}

/// Each document that these tests compile is also sent over the wire and must decode to the same
/// resource.
fn checked(kind: Kind, document: &Value) -> Result<Resource, Problem> {
    let resource = compile(kind, &id("1"), document, &Keyring::empty())?;
    let arrived = crate::wire::resource_from_wire(proto::push::Resource::from(&resource));
    assert!(arrived.unwrap() == resource, "{document}");
    Ok(resource)
}

#[track_caller]
fn problem_of(kind: Kind, document: &Value) -> Problem {
    let problem = checked(kind, document).expect_err("should be refused");
    let debug = format!("{problem:?}");
    for key in [pem(0).1, pem(1).1] {
        assert!(!key.lines().any(|line| !line.starts_with('-') && debug.contains(line)), "{debug}");
    }
    problem
}

#[track_caller]
fn refused_ssl(changes: Value) -> String {
    problem_of(Kind::Ssl, &ssl(changes)).message
}

#[track_caller]
fn refused_upstream(changes: Value) -> String {
    problem_of(Kind::Upstream, &upstream(changes)).message
}

#[track_caller]
fn refused_route(changes: Value) -> String {
    problem_of(Kind::Route, &route(changes)).message
}
