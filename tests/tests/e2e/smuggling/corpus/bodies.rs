//! Chunks, trailers, and bodies that look like requests.

use super::{End, Table};

/// A POST in chunks, which follow.
fn chunks(chunks: &str) -> String {
    format!("POST {{T}} HTTP/1.1\r\n{{H}}Transfer-Encoding: chunked\r\n\r\n{chunks}")
}

pub(super) fn add(table: &mut Table) {
    sizes(table);
    trailers(table);
    looks_like_requests(table);
    expectations(table);
}

fn sizes(table: &mut Table) {
    for (name, body) in [
        ("one chunk", "3\r\nabc\r\n0\r\n\r\n"),
        ("two chunks", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        ("more digits than 64 bits have", "00000000000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("zeros before the size", "003\r\nabc\r\n000\r\n\r\n"),
        ("an extension", "3;name=value\r\nabc\r\n0\r\n\r\n"),
        ("an extension of the last chunk", "3\r\nabc\r\n0;name=value\r\n\r\n"),
        ("an extension in quotes", "3;name=\"va;lue\"\r\nabc\r\n0\r\n\r\n"),
        ("an extension without a value", "3;name\r\nabc\r\n0\r\n\r\n"),
        ("an empty extension", "3;\r\nabc\r\n0\r\n\r\n"),
    ] {
        table.forwarded("POST", "abc", &[(name, &chunks(body))]);
    }
    let upper = chunks("A\r\nabcdefghij\r\n0\r\n\r\n");
    let lower = chunks("a\r\nabcdefghij\r\n0\r\n\r\n");
    let digits = [("an upper-case digit", upper.as_str()), ("a lower-case digit", lower.as_str())];
    table.forwarded("POST", "abcdefghij", &digits);
    // The head has gone out when the body turns out to be malformed: nothing of it is complete.
    for (name, body) in [
        ("a size of no digits", "\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size that is no number", "x\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size with 0x", "0x3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size with a plus sign", "+3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size with a minus sign", "-3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size with an underscore", "0_3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a blank before the size", " 3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size above 64 bits", "10000000000000003\r\nabc\r\n0\r\n\r\n{S}"),
        ("a size ended by LF", "3\nabc\r\n0\r\n\r\n{S}"),
        ("a size ended by CR", "3\rabc\r\n0\r\n\r\n{S}"),
        ("a NUL behind the size", "3\0\r\nabc\r\n0\r\n\r\n{S}"),
        ("an extension with LF", "3;a\nabc\r\n0\r\n\r\n{S}"),
        ("an extension with a bare CR", "3;a\rb\r\nabc\r\n0\r\n\r\n{S}"),
        ("an extension that hides a line", "3;\n\r\nabc\r\n0\r\n\r\n{S}"),
        ("a comma behind the size", "3,3\r\nabc\r\n0\r\n\r\n{S}"),
        ("a chunk that is longer than its size", "3\r\nabcd\r\n0\r\n\r\n{S}"),
        ("a chunk without its end", "3\r\nabc0\r\n\r\n{S}"),
        ("a chunk ended by LF", "3\r\nabc\n0\r\n\r\n{S}"),
        ("a chunk ended by two blanks", "3\r\nabc  0\r\n\r\n{S}"),
        ("a chunk ended by CR CR", "3\r\nabc\r\r0\r\n\r\n{S}"),
        ("a last chunk ended by LF", "3\r\nabc\r\n0\n\n{S}"),
        ("a last chunk ended by CR", "3\r\nabc\r\n0\r\r{S}"),
    ] {
        table.rejected("400", &[(name, &chunks(body))]);
    }
    // The canary is read as data of a chunk that is never ended, which the time-out ends.
    table.rejected("408", &[("a chunk that is shorter than its size", &chunks("ffff\r\nabc"))]);
}

fn trailers(table: &mut Table) {
    for (name, fields) in [
        ("a trailer", "X-Trailer: y\r\n"),
        ("trailers", "X-Trailer: y\r\nX-Other: z\r\n"),
        ("a length in the trailers", "Content-Length: 50\r\n"),
        ("a coding in the trailers", "Transfer-Encoding: chunked\r\n"),
        ("a host in the trailers", "Host: other.test\r\n"),
        ("an identity in the trailers", "Client-Cert: :AAAA:\r\nX-SSL-Client-Verify: SUCCESS\r\n"),
        ("credentials in the trailers", "Authorization: Basic YTpi\r\n"),
        ("an expectation in the trailers", "Expect: 100-continue\r\n"),
    ] {
        let request = chunks(&format!("3\r\nabc\r\n0\r\n{fields}\r\n"));
        table.forwarded("POST", "abc", &[(name, &request)]);
    }
    for (name, fields) in [
        ("a trailer without a colon", "GET {T}/smuggled HTTP/1.1\r\n"),
        ("a request as a trailer", "GET {T}/smuggled HTTP/1.1\r\nHost: {h}\r\n"),
        ("a folded trailer", "X: y\r\n z\r\n"),
        ("a NUL in a trailer", "X: \0\r\n"),
        ("a bare CR in a trailer", "X: y\rz\r\n"),
        ("a blank before a trailer's colon", "X : y\r\n"),
    ] {
        table.rejected("400", &[(name, &chunks(&format!("3\r\nabc\r\n0\r\n{fields}\r\n")))]);
    }
}

fn looks_like_requests(table: &mut Table) {
    let inner = "GET / HTTP/1.1\r\nHost: inner.test\r\n\r\n";
    let sized = format!("POST {{T}} HTTP/1.1\r\n{{H}}Content-Length: {}\r\n\r\n{inner}", inner.len());
    let chunked = chunks(&format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()));
    table.forwarded("POST", inner, &[("a request as a body", &sized), ("a request in a chunk", &chunked)]);
    let end = "0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    let sized = format!("POST {{T}} HTTP/1.1\r\n{{H}}Content-Length: {}\r\n\r\n{end}", end.len());
    let chunked = chunks(&format!("{:X}\r\n{end}\r\n0\r\n\r\n", end.len()));
    table.forwarded(
        "POST",
        end,
        &[("a last chunk in a body", &sized), ("a last chunk in a chunk", &chunked)],
    );
    let get = format!("GET {{T}} HTTP/1.1\r\n{{H}}Content-Length: {}\r\n\r\n{inner}", inner.len());
    table.forwarded("GET", inner, &[("a request as the body of a GET", &get)]);
    let two = "GET {T} HTTP/1.1\r\n{H}\r\nPOST {T} HTTP/1.1\r\n{H}Content-Length: 3\r\n\r\nabc";
    table.add("two requests", two, &[("GET", ""), ("POST", "abc")], End::Canary);
    let bad_second = "GET {T} HTTP/1.1\r\n{H}\r\nPOST {T} HTTP/1.1\r\n{H}Content-Length: 3\r\n\
                      Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}";
    table.add("both lengths in the second", bad_second, &[("GET", "")], End::Rejected("400"));
}

/// What a server does with a body that it was asked about.
fn expectations(table: &mut Table) {
    let sized = "POST {T} HTTP/1.1\r\n{H}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde";
    let chunked = "POST {T} HTTP/1.1\r\n{H}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    table.forwarded("POST", "abcde", &[("an expectation", sized), ("an expectation of chunks", chunked)]);
    let none = "GET {T} HTTP/1.1\r\n{H}Expect: 100-continue\r\n\r\n";
    table.forwarded("GET", "", &[("an expectation without a body", none)]);
}
