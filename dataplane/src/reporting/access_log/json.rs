//! Lines of JSON, for a log without a format: an object with every field that has a value.
//!
//! Invariant: a line is valid JSON, whatever a client sends; a text that would make a part of it
//! longer than [`PART_MAX`] is left out.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use http::header;
use http::request::Parts;
use model::admission::ClientVerification;
use pki::Certificate;

use super::clock::{write_micros, write_number};
use super::escape;
use super::head::{CapturedHead, raw_target};
use super::line::{Ended, LineFacts, write_id, write_span_id};
use crate::filters::variables::protocol;
use crate::reporting::record::ConnectionFacts;

/// Texts behind this many bytes of a part are left out.
const PART_MAX: usize = 8 << 10;

/// Keeps what lines need of a request's head.
pub(super) fn capture_head(captured: &mut CapturedHead, parts: &Parts) {
    let line = &mut captured.bytes;
    line.extend_from_slice(b",\"request\":{\"method\":\"");
    escape::escape(line, parts.method.as_str().as_bytes(), conf::LogEscape::Json);
    line.extend_from_slice(b"\",\"uri\":\"");
    escape::escape(line, raw_target(parts).as_bytes(), conf::LogEscape::Json);
    line.extend_from_slice(b"\",\"protocol\":\"");
    line.extend_from_slice(protocol(parts.version).as_bytes());
    line.push(b'"');
    let host = parts.headers.get(header::HOST).map(|host| host.as_bytes());
    let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str().as_bytes()));
    let field = |name: header::HeaderName| parts.headers.get(name).map(|value| value.as_bytes());
    write_text(line, b",\"host\":\"", host);
    write_text(line, b",\"user_agent\":\"", field(header::USER_AGENT));
    write_text(line, b",\"referer\":\"", field(header::REFERER));
    line.push(b'}');
}

/// Appends a line.
pub(super) fn write_line(line: &mut Vec<u8>, captured: Option<&CapturedHead>, facts: &LineFacts<'_>) {
    line.extend_from_slice(b"{\"time\":\"");
    facts.time.write_rfc3339(line);
    match facts.ended {
        Ended::Request(record, id) => {
            line.extend_from_slice(match record.method {
                Some(_) => b"\",\"kind\":\"request\",\"request_id\":\"",
                None => b"\",\"kind\":\"rejected_request\",\"request_id\":\"",
            });
            write_id(line, id);
            if let Some(trace) = &record.trace {
                line.extend_from_slice(b"\",\"trace_id\":\"");
                write_id(line, trace.trace_id.0.get());
                line.extend_from_slice(b"\",\"span_id\":\"");
                write_span_id(line, trace.span_id.0.get());
            }
        }
        Ended::Tcp(_) => line.extend_from_slice(b"\",\"kind\":\"tcp"),
        Ended::Handshake(_) => line.extend_from_slice(b"\",\"kind\":\"handshake"),
    }
    line.push(b'"');
    write_plain(line, b",\"route\":\"", facts.route().map(|id| id.as_str().as_bytes()));
    write_plain(line, b",\"service\":\"", facts.service().map(|id| id.as_str().as_bytes()));
    write_plain(line, b",\"site\":\"", facts.site().map(|id| id.as_str().as_bytes()));
    write_connection(line, facts);
    line.extend_from_slice(captured.map(|captured| &*captured.bytes).unwrap_or_default());
    if let status @ 1.. = facts.status()
        && matches!(facts.ended, Ended::Request(..))
    {
        line.extend_from_slice(b",\"status\":");
        write_number(line, status);
    }
    write_plain(line, b",\"reason\":\"", facts.reason().map(|reason| reason.label().as_bytes()));
    if let Ended::Handshake(record) = facts.ended {
        let verify_reason = record.verify_reason.map(|reason| reason.as_str().as_bytes());
        write_text(line, b",\"verify_reason\":\"", verify_reason);
        write_text(line, b",\"detail\":\"", Some(record.detail.as_bytes()));
    }
    write_size(line, b",\"bytes_received\":", facts.received());
    write_size(line, b",\"bytes_sent\":", facts.sent());
    if let Ended::Request(record, _) = facts.ended
        && let Some(first_byte) = record.first_byte
    {
        line.extend_from_slice(b",\"first_byte_time\":");
        write_micros(line, first_byte);
    }
    line.extend_from_slice(b",\"total_time\":");
    write_micros(line, facts.total());
    write_upstream(line, facts);
    let is_complete = match facts.ended {
        Ended::Request(record, _) => record.is_complete,
        Ended::Tcp(record) => record.is_complete,
        Ended::Handshake(_) => return line.push(b'}'),
    };
    line.extend_from_slice(if is_complete { b",\"completed\":true}" } else { b",\"completed\":false}" });
}

/// The client, and the TLS of its connection.
fn write_connection(line: &mut Vec<u8>, facts: &LineFacts<'_>) {
    let connection = facts.connection;
    let (client_addr, client) = match facts.ended {
        Ended::Request(record, _) => (record.client_addr, &record.client),
        Ended::Tcp(_) | Ended::Handshake(_) => {
            return write_connection_part(line, connection.info.peer, facts);
        }
    };
    let mut cached = connection.access_log.0.borrow_mut();
    match &*cached {
        Some((addr, of_client, part)) if *addr == client_addr && is_same(of_client, client) => {
            line.extend_from_slice(part);
        }
        _ => {
            let mut part = Vec::new();
            write_connection_part(&mut part, client_addr, facts);
            line.extend_from_slice(&part);
            *cached = Some((client_addr, client.clone(), part));
        }
    }
}

fn is_same(one: &ClientVerification, other: &ClientVerification) -> bool {
    use ClientVerification::{NoCertificate, NotRequested, Rejected, Verified};
    match (one, other) {
        (Verified(one), Verified(other)) => Arc::ptr_eq(one, other),
        (Rejected(one), Rejected(other)) => one == other,
        (NotRequested, NotRequested) | (NoCertificate, NoCertificate) => true,
        (NotRequested | NoCertificate | Verified(_) | Rejected(_), _) => false,
    }
}

fn write_connection_part(line: &mut Vec<u8>, client_addr: SocketAddr, facts: &LineFacts<'_>) {
    let start = line.len();
    let _never_fails = write!(line, ",\"client\":{{\"address\":\"{}\"", client_addr.ip().to_canonical());
    // A proxy may name a client without its port.
    if client_addr.port() != 0 {
        write_size(line, b",\"port\":", Some(client_addr.port().into()));
    }
    let direct = facts.connection.info.direct_peer;
    if direct.ip() != client_addr.ip() {
        let _never_fails = write!(line, ",\"proxy\":\"{}\"", direct.ip().to_canonical());
    }
    match facts.client() {
        ClientVerification::Verified(verified) => {
            line.extend_from_slice(b",\"verified\":true");
            let identity = verified.identity();
            write_certificate(line, start, identity.certificate());
            write_list(line, start, b",\"san_uris\":[", identity.san_uris());
            write_list(line, start, b",\"san_dns\":[", identity.san_dns());
        }
        ClientVerification::Rejected(reason) => {
            line.extend_from_slice(b",\"verified\":false");
            write_text(line, b",\"verify_reason\":\"", Some(reason.as_str().as_bytes()));
        }
        ClientVerification::NotRequested | ClientVerification::NoCertificate => {
            if let Ended::Handshake(record) = facts.ended
                && let Some(leaf) = record.leaf
            {
                line.extend_from_slice(b",\"verified\":false");
                if let Ok(certificate) = Certificate::from_der(leaf) {
                    write_certificate(line, start, &certificate);
                }
            }
        }
    }
    line.push(b'}');
    write_tls(line, facts.connection, facts);
}

fn write_certificate(line: &mut Vec<u8>, start: usize, certificate: &Certificate) {
    let serial = certificate.serial_hex();
    let sha256 = HEXLOWER.encode(certificate.fingerprint_sha256());
    for (name, text) in [
        (&b",\"sha256\":\""[..], sha256.as_str()),
        (b",\"serial\":\"", &serial),
        (b",\"subject\":\"", certificate.subject()),
        (b",\"issuer\":\"", certificate.issuer()),
    ] {
        if line.len() - start <= PART_MAX {
            write_text(line, name, Some(text.as_bytes()));
        }
    }
}

/// A list of texts; those that are too much are left out.
fn write_list(line: &mut Vec<u8>, start: usize, name: &[u8], texts: &[String]) {
    if texts.is_empty() || line.len() - start > PART_MAX {
        return;
    }
    line.extend_from_slice(name);
    for (nth, text) in texts.iter().enumerate() {
        if line.len() - start > PART_MAX {
            break;
        }
        line.extend_from_slice(if nth == 0 { b"\"" } else { b",\"" });
        escape::escape(line, text.as_bytes(), conf::LogEscape::Json);
        line.push(b'"');
    }
    line.push(b']');
}

fn write_tls(line: &mut Vec<u8>, connection: &ConnectionFacts, facts: &LineFacts<'_>) {
    let sni = facts.sni().map(|sni| sni.as_str().as_bytes());
    let Some(tls) = connection.tls.get() else {
        if let Some(sni) = sni {
            line.extend_from_slice(b",\"tls\":{\"sni\":\"");
            escape::escape(line, sni, conf::LogEscape::Json);
            line.extend_from_slice(b"\"}");
        }
        return;
    };
    line.extend_from_slice(b",\"tls\":{\"version\":\"");
    line.extend_from_slice(tls.params.protocol.as_bytes());
    write_text(line, b"\",\"cipher\":\"", Some(tls.params.cipher.as_bytes()));
    write_text(line, b",\"group\":\"", tls.params.curve.map(str::as_bytes));
    write_text(line, b",\"alpn\":\"", tls.params.alpn.map(str::as_bytes));
    write_text(line, b",\"sni\":\"", sni);
    line.extend_from_slice(if tls.params.resumed { b",\"resumed\":true" } else { b",\"resumed\":false" });
    line.extend_from_slice(b",\"handshake_time\":");
    write_micros(line, tls.handshake);
    line.push(b'}');
}

/// The last attempt, and those before it that failed.
fn write_upstream(line: &mut Vec<u8>, facts: &LineFacts<'_>) {
    let attempts = facts.attempts();
    let Some((last, failed)) = attempts.split_last() else { return };
    write_size(line, b",\"tries\":", Some(attempts.len() as u64));
    line.extend_from_slice(b",\"upstream\":{\"total_time\":");
    write_micros(line, facts.attempt_time(last));
    if let Some(addr) = last.addr {
        let _never_fails = write!(line, ",\"node\":\"{addr}\"");
    }
    if let Some(status) = last.status {
        line.extend_from_slice(b",\"status\":");
        line.extend_from_slice(status.as_str().as_bytes());
    }
    for (name, time) in [(&b",\"connect_time\":"[..], last.connect), (b",\"first_byte_time\":", last.header)]
    {
        if let Some(time) = time {
            line.extend_from_slice(name);
            write_micros(line, time);
        }
    }
    if let Ended::Request(record, _) = facts.ended
        && let Some(upstream) = &record.upstream
    {
        write_plain(line, b",\"scheme\":\"", Some(upstream.scheme.as_str().as_bytes()));
        write_text(line, b",\"host\":\"", record.attempts.host().map(str::as_bytes));
        write_text(line, b",\"uri\":\"", Some(upstream.uri.as_str().as_bytes()));
    }
    for (nth, attempt) in failed.iter().enumerate() {
        line.extend_from_slice(if nth == 0 {
            b",\"failed\":[{\"total_time\":"
        } else {
            b",{\"total_time\":"
        });
        write_micros(line, facts.attempt_time(attempt));
        if let Some(addr) = attempt.addr {
            let _never_fails = write!(line, ",\"node\":\"{addr}\"");
        }
        write_size(line, b",\"status\":", attempt.status.map(|status| status.as_u16().into()));
        line.push(b'}');
    }
    line.extend_from_slice(if failed.is_empty() { b"}" } else { b"]}" });
}

/// A text with its name, which ends in `:"`.
fn write_text(line: &mut Vec<u8>, name: &[u8], text: Option<&[u8]>) {
    if let Some(text) = text {
        line.extend_from_slice(name);
        escape::escape(line, text, conf::LogEscape::Json);
        line.push(b'"');
    }
}

/// As [`write_text`], for a text of ours that needs no escaping.
fn write_plain(line: &mut Vec<u8>, name: &[u8], text: Option<&[u8]>) {
    if let Some(text) = text {
        line.extend_from_slice(name);
        line.extend_from_slice(text);
        line.push(b'"');
    }
}

fn write_size(line: &mut Vec<u8>, name: &[u8], size: Option<u64>) {
    if let Some(size) = size {
        line.extend_from_slice(name);
        write_number(line, size);
    }
}
