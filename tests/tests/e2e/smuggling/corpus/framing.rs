//! `Content-Length` and `Transfer-Encoding` in every spelling, alone and beside each other.

use super::{End, Table};

/// A POST with these fields, chunks of `abc`, and a smuggled request behind them.
fn chunked(fields: &str) -> String {
    format!("POST {{T}} HTTP/1.1\r\n{{H}}{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{{S}}")
}

/// A POST with these fields and a body of five bytes.
fn sized(fields: &str) -> String {
    format!("POST {{T}} HTTP/1.1\r\n{{H}}{fields}\r\n\r\nabcde")
}

pub(super) fn add(table: &mut Table) {
    both(table);
    codings(table);
    lengths(table);
    methods(table);
}

fn both(table: &mut Table) {
    for (name, fields) in [
        ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 6"),
        ("CL.TE of length 0", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
        ("CL.TE in lower case", "content-length: 6\r\ntransfer-encoding: chunked"),
        ("CL.TE in upper case", "CONTENT-LENGTH: 6\r\nTRANSFER-ENCODING: CHUNKED"),
        ("CL.TE with fields between", "Content-Length: 6\r\nX: y\r\nTransfer-Encoding: chunked\r\nZ: z"),
        ("CL.TE with LF", "Content-Length: 6\nTransfer-Encoding: chunked"),
        (
            "two lengths around chunked",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\nContent-Length: 6",
        ),
        ("an empty length beside chunked", "Content-Length:\r\nTransfer-Encoding: chunked"),
        ("a length beside an empty coding", "Content-Length: 6\r\nTransfer-Encoding:"),
        ("a length beside gzip", "Content-Length: 6\r\nTransfer-Encoding: gzip"),
        ("a length beside identity", "Content-Length: 6\r\nTransfer-Encoding: identity"),
        ("a length beside a list", "Content-Length: 6\r\nTransfer-Encoding: gzip, chunked"),
        ("a length beside xchunked", "Content-Length: 6\r\nTransfer-Encoding: xchunked"),
        ("a length beside a tab", "Content-Length: 6\r\nTransfer-Encoding:\tchunked"),
        ("a length beside a quoted coding", "Content-Length: 6\r\nTransfer-Encoding: \"chunked\""),
        ("a length beside a parameter", "Content-Length: 6\r\nTransfer-Encoding: chunked;q=1"),
        ("a length beside a folded coding", "Content-Length: 6\r\nTransfer-Encoding:\r\n chunked"),
        ("a length beside a folded name", "Content-Length: 6\r\nTransfer-Encoding\r\n : chunked"),
        ("a length beside a blank before the colon", "Content-Length: 6\r\nTransfer-Encoding : chunked"),
        ("a length beside a tab before the colon", "Content-Length: 6\r\nTransfer-Encoding\t: chunked"),
        ("a length beside a leading blank", "Content-Length: 6\r\n Transfer-Encoding: chunked"),
        (
            "a length beside two codings",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x",
        ),
        (
            "a length of a connection's field",
            "Connection: Content-Length\r\nContent-Length: 6\r\nTransfer-Encoding: chunked",
        ),
        (
            "a coding of a connection's field",
            "Connection: Transfer-Encoding\r\nContent-Length: 6\r\nTransfer-Encoding: chunked",
        ),
    ] {
        table.rejected("400", &[(name, &chunked(fields))]);
    }
    // Another name is another field, and is not forwarded in that spelling.
    for (name, fields) in [
        ("an underscore in the coding's name", "Content-Length: 5\r\nTransfer_Encoding: chunked"),
        ("a dot in the coding's name", "Content-Length: 5\r\nTransfer.Encoding: chunked"),
        ("a prefix of the coding's name", "Content-Length: 5\r\nX-Transfer-Encoding: chunked"),
        ("a suffix of the coding's name", "Content-Length: 5\r\nTransfer-Encoding-X: chunked"),
        ("a plural of the coding's name", "Content-Length: 5\r\nTransfer-Encodings: chunked"),
        ("Content-Encoding: chunked", "Content-Length: 5\r\nContent-Encoding: chunked"),
        ("TE: chunked", "Content-Length: 5\r\nTE: chunked"),
        ("Trailer of framing fields", "Content-Length: 5\r\nTrailer: Transfer-Encoding, Content-Length"),
        ("an underscore in the length's name", "Content-Length: 5\r\nContent_Length: 50"),
        ("a prefix of the length's name", "Content-Length: 5\r\nX-Content-Length: 50"),
        ("a plural of the length's name", "Content-Length: 5\r\nContent-Lengths: 50"),
    ] {
        table.forwarded("POST", "abcde", &[(name, &sized(fields))]);
    }
}

fn codings(table: &mut Table) {
    for (status, name, fields) in [
        ("501", "gzip, chunked", "Transfer-Encoding: gzip, chunked"),
        ("501", "chunked, chunked", "Transfer-Encoding: chunked, chunked"),
        ("501", "identity, chunked", "Transfer-Encoding: identity, chunked"),
        ("501", "a comma first", "Transfer-Encoding: , chunked"),
        ("501", "an unknown coding first", "Transfer-Encoding: cow, chunked"),
        ("501", "no blank behind the comma", "Transfer-Encoding: gzip,chunked"),
        ("400", "chunked, gzip", "Transfer-Encoding: chunked, gzip"),
        ("400", "chunked, identity", "Transfer-Encoding: chunked, identity"),
        ("400", "a comma last", "Transfer-Encoding: chunked,"),
        ("400", "identity", "Transfer-Encoding: identity"),
        ("400", "gzip", "Transfer-Encoding: gzip"),
        ("400", "an empty coding", "Transfer-Encoding:"),
        ("400", "a blank coding", "Transfer-Encoding:  "),
        ("400", "xchunked", "Transfer-Encoding: xchunked"),
        ("400", "chunkedx", "Transfer-Encoding: chunkedx"),
        ("400", "chunked with a parameter", "Transfer-Encoding: chunked;a=b"),
        ("400", "chunked in quotes", "Transfer-Encoding: \"chunked\""),
        ("400", "chunked in single quotes", "Transfer-Encoding: 'chunked'"),
        ("400", "chunk ed", "Transfer-Encoding: chunk ed"),
        ("400", "a vertical tab", "Transfer-Encoding: \x0bchunked"),
        ("400", "a form feed", "Transfer-Encoding: chunked\x0c"),
        ("400", "a NUL", "Transfer-Encoding: chunked\0"),
        ("400", "a backspace", "Transfer-Encoding: \x08chunked"),
        ("400", "a DEL", "Transfer-Encoding: chunked\x7f"),
        ("400", "a no-break blank", "Transfer-Encoding: \u{a0}chunked"),
        ("400", "a next line of Latin-1", "Transfer-Encoding: chunked\u{85}"),
        ("400", "a bare CR before", "Transfer-Encoding: \rchunked"),
        ("400", "a bare CR behind", "Transfer-Encoding: chunked\rX: y"),
        ("400", "two fields chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ("400", "chunked, then identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        ("400", "identity, then chunked", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        ("400", "chunked, then an empty field", "Transfer-Encoding: chunked\r\nTransfer-Encoding:"),
        ("400", "a blank before the colon", "Transfer-Encoding : chunked"),
        ("400", "a tab before the colon", "Transfer-Encoding\t: chunked"),
        ("400", "a NUL in the name", "Transfer\0-Encoding: chunked"),
        ("400", "a folded value", "Transfer-Encoding:\r\n\tchunked"),
        ("400", "folded below another field", "X: y\r\n Transfer-Encoding: chunked"),
        ("400", "a CR before the name", "X: y\r\n\rTransfer-Encoding: chunked"),
        ("400", "a byte order mark", "\u{ef}\u{bb}\u{bf}Transfer-Encoding: chunked"),
        ("400", "a colon before the name", ":Transfer-Encoding: chunked"),
        ("400", "a second colon", "Transfer-Encoding:: chunked"),
        ("400", "an equals sign", "Transfer-Encoding= chunked"),
    ] {
        table.rejected(status, &[(name, &chunked(fields))]);
    }
    let old = "POST {T} HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{S}";
    let kept =
        "POST {T} HTTP/1.0\r\n{H}Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}";
    table.rejected("400", &[("chunked in HTTP/1.0", old), ("chunked in kept HTTP/1.0", kept)]);
    for (name, fields) in [
        ("chunked", "Transfer-Encoding: chunked"),
        ("Chunked", "Transfer-Encoding: Chunked"),
        ("chunked in upper case", "TRANSFER-ENCODING: CHUNKED"),
        ("no blank behind the colon", "Transfer-Encoding:chunked"),
        ("blanks around chunked", "Transfer-Encoding:   chunked  "),
        ("tabs around chunked", "Transfer-Encoding:\tchunked\t"),
        ("chunked with LF", "X: y\nTransfer-Encoding: chunked"),
        ("chunked named by Connection", "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked"),
        ("chunked and TE: trailers", "TE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked"),
    ] {
        let request = format!("POST {{T}} HTTP/1.1\r\n{{H}}{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        table.forwarded("POST", "abc", &[(name, &request)]);
    }
}

fn lengths(table: &mut Table) {
    for (name, value) in [
        ("a list of lengths", "5, 5"),
        ("a list of different lengths", "5, 6"),
        ("a list with an empty member", "5,"),
        ("a plus sign", "+5"),
        ("a minus sign", "-5"),
        ("minus one", "-1"),
        ("hexadecimal", "0x5"),
        ("an exponent", "5e0"),
        ("a point", "5.0"),
        ("two numbers", "5 5"),
        ("an underscore", "0_5"),
        ("an empty length", ""),
        ("a blank length", "  "),
        ("a word", "five"),
        ("a number in quotes", "\"5\""),
        ("a superscript digit", "\u{b2}"),
        ("a NUL behind", "5\0"),
        ("a vertical tab before", "\x0b5"),
        ("a bare CR behind the length", "5\r"),
        ("2^64", "18446744073709551616"),
        ("2^64 and five", "18446744073709551621"),
        ("2^63", "9223372036854775808"),
        ("many digits", "00000000000000000000000000000000000000000000000000000000000000000000000005x"),
        ("two lengths", "5\r\nContent-Length: 6"),
        ("two equal lengths", "5\r\nContent-Length: 5"),
        ("a length and an empty one", "5\r\nContent-Length:"),
        ("a folded length", "\r\n 5"),
        ("a length that is folded", "5\r\n 0"),
    ] {
        table.rejected("400", &[(name, &sized(&format!("Content-Length: {value}")))]);
    }
    // hyper rejects it as too large itself.
    table.rejected("431", &[("2^64-1", &sized("Content-Length: 18446744073709551615"))]);
    for (name, field) in [
        ("a blank before the length's colon", "Content-Length : 5"),
        ("a tab before the length's colon", "Content-Length\t: 5"),
        ("a blank before the length's name", " Content-Length: 5"),
        ("a NUL in the length's name", "Content-Length\0: 5"),
        ("a blank in the length's name", "Content Length: 5"),
    ] {
        table.rejected("400", &[(name, &sized(field))]);
    }
    for (name, field) in [
        ("a length", "Content-Length: 5"),
        ("no blank", "Content-Length:5"),
        ("blanks around a length", "Content-Length:   5  "),
        ("tabs around a length", "Content-Length:\t5\t"),
        ("leading zeros", "Content-Length: 0005"),
        ("a length in upper case", "CONTENT-LENGTH: 5"),
        ("a length named by Connection", "Connection: Content-Length\r\nContent-Length: 5"),
    ] {
        table.forwarded("POST", "abcde", &[(name, &sized(field))]);
    }
}

/// A body where none is expected, and none where one is.
fn methods(table: &mut Table) {
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "PUT", "QUERY", "get", "PROPFIND"] {
        let sized = format!("{method} {{T}} HTTP/1.1\r\n{{H}}Content-Length: 5\r\n\r\nabcde");
        table.forwarded(method, "abcde", &[("a body of a length with any method", &sized)]);
        let chunked = format!(
            "{method} {{T}} HTTP/1.1\r\n{{H}}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
        );
        table.forwarded(method, "abcde", &[("chunks with any method", &chunked)]);
        match method {
            "QUERY" => table.refused_by(&["envoy"], 2),
            "get" => table.refused_by(&["envoy", "nginx"], 2),
            _ => {}
        }
    }
    // It begins as the preface of HTTP/2 does (RFC 9113 section 3.4), which it is not.
    let preface = "PRI {T} HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nabcde";
    table.add("the method of HTTP/2's preface", preface, &[], End::Closed);
    let none = "POST {T} HTTP/1.1\r\n{H}\r\n";
    let zero = "POST {T} HTTP/1.1\r\n{H}Content-Length: 0\r\n\r\n";
    table.forwarded("POST", "", &[("POST without a body", none), ("POST of length 0", zero)]);
    // Without a length there is no body: what follows is the next request.
    let next = "POST {T} HTTP/1.1\r\n{H}\r\nGET {T} HTTP/1.1\r\n{H}\r\n";
    table.add("a request where a body was meant", next, &[("POST", ""), ("GET", "")], End::Canary);
    let garbage = "GET {T} HTTP/1.1\r\n{H}\r\nabcde\r\n\r\n";
    table.add("bytes behind a request", garbage, &[("GET", "")], End::Rejected("400"));
    let old = "POST {T} HTTP/1.0\r\n{H}Content-Length: 5\r\n\r\nabcde";
    table.add("a body of HTTP/1.0", old, &[("POST", "abcde")], End::Closed);
    let kept = "POST {T} HTTP/1.0\r\n{H}Connection: keep-alive\r\nContent-Length: 5\r\n\r\nabcde";
    table.forwarded("POST", "abcde", &[("a body of kept HTTP/1.0", kept)]);
}
