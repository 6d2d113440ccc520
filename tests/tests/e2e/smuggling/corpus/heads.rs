//! Request lines, field lines, hosts, and fields of one connection.

use super::{End, Table};

/// A GET with these fields beside its host.
fn with(fields: &str) -> String {
    format!("GET {{T}} HTTP/1.1\r\n{{H}}{fields}\r\n\r\n")
}

/// A GET whose only fields are these.
fn only(fields: &str) -> String {
    format!("GET {{T}} HTTP/1.1\r\n{fields}\r\n\r\n")
}

pub(super) fn add(table: &mut Table) {
    lines(table);
    fields(table);
    hosts(table);
    connections(table);
}

fn lines(table: &mut Table) {
    for (name, line) in [
        ("two blanks before the target", "GET  {T} HTTP/1.1"),
        ("two blanks behind the target", "GET {T}  HTTP/1.1"),
        ("a blank in the target", "GET {T} /x HTTP/1.1"),
        ("a tab before the target", "GET\t{T} HTTP/1.1"),
        ("a tab behind the target", "GET {T}\tHTTP/1.1"),
        ("a blank before the method", " GET {T} HTTP/1.1"),
        ("a blank behind the version", "GET {T} HTTP/1.1 "),
        ("a NUL in the target", "GET {T}\0 HTTP/1.1"),
        ("a control character in the target", "GET {T}\x01 HTTP/1.1"),
        ("a bare CR in the target", "GET {T}\r HTTP/1.1"),
        ("a DEL in the target", "GET {T}\x7f HTTP/1.1"),
        ("a NUL in the method", "G\0ET {T} HTTP/1.1"),
        ("a colon in the method", "GET: {T} HTTP/1.1"),
        ("no method", "{T} HTTP/1.1"),
        ("no target", "GET HTTP/1.1"),
        ("no version", "GET {T}"),
        ("HTTP/0.9", "GET {T} HTTP/0.9"),
        ("HTTP/1.2", "GET {T} HTTP/1.2"),
        ("HTTP/1.10", "GET {T} HTTP/1.10"),
        ("HTTP/2.0", "GET {T} HTTP/2.0"),
        ("http/1.1", "GET {T} http/1.1"),
        ("HTTP/1,1", "GET {T} HTTP/1,1"),
        ("HTTPS/1.1", "GET {T} HTTPS/1.1"),
        ("a target without a slash", "GET case HTTP/1.1"),
        ("a fragment", "GET {T}#fragment HTTP/1.1"),
        ("an asterisk", "GET * HTTP/1.1"),
        ("an encoded NUL", "GET {T}%00 HTTP/1.1"),
        ("a bad escape", "GET {T}%zz HTTP/1.1"),
    ] {
        table.rejected("400", &[(name, &format!("{line}\r\n{{H}}\r\n"))]);
    }
    for (name, line) in [("CONNECT", "CONNECT {h}:443"), ("TRACE", "TRACE {T}")] {
        table.rejected("405", &[(name, &format!("{line} HTTP/1.1\r\n{{H}}\r\n{{S}}"))]);
    }
    for (name, request) in [
        ("an absolute target", "GET http://{h}{T} HTTP/1.1\r\n{H}\r\n"),
        ("an absolute target in upper case", "GET HTTP://{h}{T} HTTP/1.1\r\n{H}\r\n"),
        ("an empty line before", "\r\nGET {T} HTTP/1.1\r\n{H}\r\n"),
        ("empty lines before", "\r\n\r\n\n\r\nGET {T} HTTP/1.1\r\n{H}\r\n"),
        ("LF for CR LF", "GET {T} HTTP/1.1\nHost: {h}\n\n"),
        ("LF and CR LF mixed", "GET {T} HTTP/1.1\r\nHost: {h}\n\r\n"),
        ("a request in the query", "GET {T}?GET%20/x%20HTTP/1.1%0d%0a HTTP/1.1\r\n{H}\r\n"),
        ("a colon in the path", "GET {T}:443 HTTP/1.1\r\n{H}\r\n"),
        ("two slashes first", "GET /{T} HTTP/1.1\r\n{H}\r\n"),
    ] {
        table.forwarded("GET", "", &[(name, request)]);
    }
    let other = "GET http://{h}{T} HTTP/1.1\r\nHost: other.test\r\n\r\n";
    table.rejected("400", &[("an absolute target with another host", other)]);
    let old = "GET {T} HTTP/1.0\r\n{H}\r\n";
    table.add("HTTP/1.0", old, &[("GET", "")], End::Closed);
    let kept = "GET {T} HTTP/1.0\r\n{H}Connection: keep-alive\r\n\r\n";
    table.forwarded("GET", "", &[("kept HTTP/1.0", kept)]);
}

fn fields(table: &mut Table) {
    for (name, line) in [
        ("a blank before a colon", "X-Field : y"),
        ("a tab before a colon", "X-Field\t: y"),
        ("a blank in a name", "X Field: y"),
        ("a field without a colon", "X-Field"),
        ("an empty name", ": y"),
        ("a NUL in a name", "X\0: y"),
        ("a NUL in a value", "X: \0"),
        ("a control character in a value", "X: \x01"),
        ("a DEL in a value", "X: \x7f"),
        ("a bare CR in a value", "X: y\rSmuggled: z"),
        ("a bare CR at the end of a value", "X: y\r"),
        ("a folded line", "X: y\r\n z"),
        ("a folded line with a tab", "X: y\r\n\tz"),
        ("a folded first field", " X: y"),
        ("a byte above 127 in a name", "X\u{e9}: y"),
        ("a parenthesis in a name", "X(: y"),
        ("a bracket in a name", "X[0]: y"),
        ("a slash in a name", "X/Y: z"),
        ("an at sign in a name", "X@Y: z"),
        ("a comma in a name", "X,Y: z"),
        ("a quote in a name", "\"X\": z"),
        ("a request line as a field", "GET {T}/smuggled HTTP/1.1"),
    ] {
        table.rejected("400", &[(name, &with(line))]);
    }
    for (name, line) in [
        ("a byte above 127 in a value", "X: \u{e9}"),
        ("a colon in a value", "X: a: b"),
        ("an empty value", "X:"),
        ("a tab in a value", "X: a\tb"),
        ("every token character in a name", "!#$%&'*+-.^_`|~09Az: y"),
        ("a request in a value", "X: GET /smuggled HTTP/1.1"),
        ("encoded line ends in a value", "X: %0d%0aSmuggled: y"),
        ("an identity", "Client-Cert: :AAAA:\r\nX-SSL-Client-Verify: SUCCESS"),
        ("an identity with an underscore", "Client_Cert: x\r\nX_SSL_Client_Verify: SUCCESS"),
        ("a proxy's field", "Proxy: http://evil.test/"),
        ("another method", "X-HTTP-Method-Override: DELETE"),
        ("another target", "X-Original-URL: /smuggled\r\nX-Rewrite-URL: /smuggled"),
    ] {
        table.forwarded("GET", "", &[(name, &with(line))]);
    }
}

fn hosts(table: &mut Table) {
    for (name, fields) in [
        ("no host", "X: y"),
        ("two hosts", "Host: {h}\r\nHost: {h}"),
        ("two different hosts", "Host: {h}\r\nHost: other.test"),
        ("an empty host", "Host:"),
        ("two hosts in one field", "Host: {h}, other.test"),
        ("a blank in the host", "Host: {h} other.test"),
        ("a slash in the host", "Host: {h}/x"),
        ("user information in the host", "Host: user@{h}"),
        ("a backslash in the host", "Host: {h}\\x"),
        ("a query in the host", "Host: {h}?x"),
        ("a fragment in the host", "Host: {h}#x"),
        ("a NUL in the host", "Host: {h}\0"),
        ("a port that is no number", "Host: {h}:x"),
        ("two ports", "Host: {h}:80:80"),
        ("a blank before the host's colon", "Host : {h}"),
        ("a folded host", "Host:\r\n {h}"),
    ] {
        table.rejected("400", &[(name, &only(fields))]);
    }
    for (name, fields) in [
        ("a host in upper case", "HOST: {h}"),
        ("a host with a port", "Host: {h}:80"),
        ("a host with a dot behind", "Host: {h}."),
        ("blanks around a host", "Host:   {h}  "),
        ("a forwarded host", "Host: {h}\r\nX-Forwarded-Host: other.test"),
    ] {
        table.forwarded("GET", "", &[(name, &only(fields))]);
    }
}

/// Fields that hold for one connection, and must not reach the next one.
fn connections(table: &mut Table) {
    for (name, fields) in [
        ("Connection names Host", "Connection: Host"),
        ("Connection names a forwarded field", "Connection: X-Forwarded-For"),
        ("Connection names itself", "Connection: Connection"),
        ("Connection names Content-Length", "Connection: Content-Length"),
        ("Connection: keep-alive", "Connection: keep-alive\r\nKeep-Alive: timeout=1000"),
        ("two Connection fields", "Connection: X-One\r\nConnection: X-Two\r\nX-One: 1\r\nX-Two: 2"),
        ("Proxy-Connection", "Proxy-Connection: close"),
        ("TE", "TE: trailers, deflate;q=0.5"),
        (
            "h2c",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
        ("an upgrade to TLS", "Upgrade: TLS/1.3\r\nConnection: Upgrade"),
        ("Range", "Range: bytes=0-0"),
        ("Max-Forwards", "Max-Forwards: 0"),
    ] {
        table.forwarded("GET", "", &[(name, &with(fields))]);
    }
    let close = with("Connection: close");
    table.add("Connection: close", &close, &[("GET", "")], End::Closed);
    let among = with("Connection: keep-alive, CLOSE");
    table.add("close among others", &among, &[("GET", "")], End::Closed);
    for (name, fields) in [
        ("an upgrade to WebSocket", "Upgrade: websocket\r\nConnection: Upgrade"),
        (
            "an upgrade to WebSocket with a key",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUpgrade: websocket\r\nConnection: Upgrade",
        ),
        ("an unknown upgrade", "Upgrade: other\r\nConnection: Upgrade"),
        ("two upgrades", "Upgrade: h2c, websocket\r\nConnection: Upgrade"),
    ] {
        table.add(name, &with(fields), &[], End::Answered("426"));
        let closing = format!("{fields}, close");
        table.rejected("426", &[(name, &with(&closing))]);
    }
    let body = "POST {T} HTTP/1.1\r\nHost: nowhere.test\r\nContent-Length: 3\r\n\r\nabc";
    let chunks =
        "POST {T} HTTP/1.1\r\nHost: nowhere.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    table.add("a body that no route takes", body, &[], End::Answered("404"));
    table.add("chunks that no route takes", chunks, &[], End::Answered("404"));
}
