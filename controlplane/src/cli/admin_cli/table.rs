//! Tables for people, and the columns of each kind.
//!
//! Invariant: a cell is one line without control characters, so a document cannot draw on the
//! terminal. Times are UTC.

use std::io::{self, Write};
use std::time::Duration;

use model::{Kind, truncated};
use pki::{certificates_from_pem, format_utc};
use rustls_pki_types::UnixTime;
use serde_json::Value;

/// Bytes of a cell.
const CELL_MAX: usize = 60;

/// A header and rows of as many cells.
pub(super) struct Table {
    pub header: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Prints with columns aligned; nothing else than the header for no rows.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let header = self.header.iter().map(|name| (*name).to_owned()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(header)
            .chain(self.rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()))
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// One line of limited length; `-` for an empty text.
fn cell(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let visible: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    truncated(&visible, CELL_MAX).into_owned()
}

/// The cells of a document between its id and its time.
type RowCells = fn(&Value) -> Vec<String>;

/// A table of documents of one kind; `None` for a name that is no kind.
pub(super) fn documents(kind: Option<Kind>, documents: &[(String, Value)]) -> Table {
    let (header, row): (Vec<&'static str>, RowCells) = match kind {
        Some(Kind::Ssl) => (vec!["ID", "NAMES", "STATUS", "EXPIRES", "CLIENT", "UPDATED"], |value| {
            vec![names(value), status(value), expiry(value), client_policy(value)]
        }),
        Some(Kind::Upstream) => (vec!["ID", "NAME", "TYPE", "NODES", "UPDATED"], |value| {
            vec![text(value, "name"), text(value, "type"), nodes(value)]
        }),
        Some(Kind::PluginConfig | Kind::GlobalRule) => {
            (vec!["ID", "PLUGINS", "UPDATED"], |value| vec![plugins(value)])
        }
        Some(Kind::StreamRoute) => (vec!["ID", "SNI", "SERVER", "TARGET", "UPDATED"], |value| {
            let server = [text(value, "server_addr"), text(value, "server_port")].join(":");
            vec![names(value), server.trim_matches(':').to_owned(), target(value)]
        }),
        _ => (vec!["ID", "NAME", "HOSTS", "URIS", "STATUS", "TARGET", "UPDATED"], |value| {
            let uris = many(value, "uri", "uris");
            vec![text(value, "name"), many(value, "host", "hosts"), uris, status(value), target(value)]
        }),
    };
    let rows = documents.iter().map(|(id, value)| {
        let mut cells = vec![id.clone()];
        cells.extend(row(value));
        cells.push(value.get("update_time").and_then(Value::as_u64).map_or_else(String::new, utc));
        cells
    });
    Table { header, rows: rows.collect() }
}

/// The data planes of `GET dataplanes`.
pub(super) fn data_planes(view: &Value) -> Table {
    let nodes = view.get("list").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let row = |node: &Value| {
        let is = |name: &str| node.get(name).and_then(Value::as_bool).unwrap_or_default();
        let has = |name: &str| node.get(name).is_some_and(|value| !value.is_null());
        let state = match () {
            () if has("held") => "held",
            () if has("last_nack") => "rejected a change",
            () if is("draining") => "draining",
            () if is("connected") => "connected",
            () => "away",
        };
        let columns = ["name", "address", "acknowledged", "lag"];
        columns.iter().map(|name| text(node, name)).chain([state.to_owned()]).collect()
    };
    Table {
        header: vec!["NAME", "ADDRESS", "REVISION", "LAG", "STATE"],
        rows: nodes.iter().map(row).collect(),
    }
}

/// What a person recognises a document by: names, hosts and uris, or its upstream's nodes.
pub(super) fn summary(value: &Value) -> String {
    let parts = [
        text(value, "name"),
        names(value),
        many(value, "host", "hosts"),
        many(value, "uri", "uris"),
        nodes(value),
        plugins(value),
    ];
    cell(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "))
}

/// A scalar member as text.
fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        _ => String::new(),
    }
}

/// The texts of `one` or of the list `all`.
fn many(value: &Value, one: &str, all: &str) -> String {
    let list = value.get(all).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = list.iter().filter_map(Value::as_str);
    value.get(one).and_then(Value::as_str).into_iter().chain(texts).collect::<Vec<_>>().join(",")
}

fn names(value: &Value) -> String {
    many(value, "sni", "snis")
}

fn status(value: &Value) -> String {
    match value.get("status").and_then(Value::as_i64) {
        Some(0) => "disabled".to_owned(),
        _ => "enabled".to_owned(),
    }
}

/// `2026-12-24 (24 days)` of the certificate that ends first.
fn expiry(value: &Value) -> String {
    let more = value.get("certs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = value.get("cert").into_iter().chain(more).filter_map(Value::as_str);
    let ends = texts.filter_map(|pem| Some(certificates_from_pem(pem).ok()?.first()?.not_after()));
    ends.min_by_key(UnixTime::as_secs).map_or_else(String::new, |end| {
        let date = format_utc(end);
        let date = date.split(' ').next().unwrap_or_default();
        match mtls::days_left(end.as_secs(), UnixTime::now()) {
            days if days < 0 => format!("{date} EXPIRED"),
            days => format!("{date} ({days} days)"),
        }
    })
}

/// `required`, `required but 2 skip rules`, `none`, or the type of an upstream's client
/// certificate.
fn client_policy(value: &Value) -> String {
    if value.get("type").and_then(Value::as_str) == Some("client") {
        return "for upstreams".to_owned();
    }
    let Some(client) = value.get("client").filter(|client| !client.is_null()) else {
        return "none".to_owned();
    };
    let skipped = client.get("skip_mtls_uri_regex").and_then(Value::as_array).map_or(0, Vec::len);
    match skipped {
        0 => "required".to_owned(),
        count => format!("required, {count} skip rules"),
    }
}

/// `10.0.0.1:80,10.0.0.2:80` of an upstream in either form.
fn nodes(value: &Value) -> String {
    let node = |node: &Value| {
        let address = [text(node, "host"), text(node, "port")];
        address.join(":").trim_matches(':').to_owned()
    };
    match value.get("nodes") {
        Some(Value::Object(nodes)) => nodes.keys().cloned().collect::<Vec<_>>().join(","),
        Some(Value::Array(nodes)) => nodes.iter().map(node).collect::<Vec<_>>().join(","),
        _ => String::new(),
    }
}

fn plugins(value: &Value) -> String {
    let plugins = value.get("plugins").and_then(Value::as_object);
    plugins.map_or_else(String::new, |plugins| plugins.keys().cloned().collect::<Vec<_>>().join(","))
}

/// Where a route leads.
fn target(value: &Value) -> String {
    for (member, name) in [("service_id", "service"), ("upstream_id", "upstream")] {
        let id = text(value, member);
        if !id.is_empty() {
            return format!("{name} {id}");
        }
    }
    value.get("upstream").map_or_else(String::new, nodes)
}

fn utc(seconds: u64) -> String {
    format_utc(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use pki::ca::{Authority, AuthoritySpec, LeafSpec};
    use serde_json::json;

    use super::*;

    fn printed(table: &Table) -> String {
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_empty_cells_marked() {
        let route = json!({"uris": ["/a", "/b"], "host": "x.test", "service_id": 7, "update_time": 0});
        let text = printed(&documents(
            Some(Kind::Route),
            &[("1".into(), route), ("long-id".into(), json!({"status": 0}))],
        ));
        let expected = "\
ID       NAME  HOSTS   URIS   STATUS    TARGET     UPDATED
1        -     x.test  /a,/b  enabled   service 7  1970-01-01 00:00:00 UTC
long-id  -     -       -      disabled  -          -
";
        assert_eq!(text, expected);
        assert_eq!(printed(&documents(Some(Kind::Upstream), &[])), "ID  NAME  TYPE  NODES  UPDATED\n");
    }

    #[test]
    fn a_site_shows_expiry_and_client_policy() {
        let ca = Authority::root(&AuthoritySpec::new("ca")).unwrap();
        let cert = ca.issue(&LeafSpec::server("a.test")).unwrap().chain_pem;
        let client = json!({"ca": "x", "skip_mtls_uri_regex": ["/a"]});
        let site = json!({"snis": ["a.test", "*.b.test"], "cert": cert, "client": client});
        let text = printed(&documents(Some(Kind::Ssl), &[("1".into(), site)]));
        assert!(text.contains("a.test,*.b.test") && text.contains("required, 1 skip rules"), "{text}");
        assert!(text.contains(" days)"), "{text}");
        for (site, expected) in [
            (json!({"client": {"ca": "x"}}), "required"),
            (json!({"type": "client"}), "for upstreams"),
            (json!({"cert": "$env://CERT"}), "none"),
        ] {
            assert_eq!(client_policy(&site), expected);
            assert_eq!(expiry(&site), "");
        }
    }

    #[test]
    fn a_cell_is_one_short_line() {
        let text = cell("\u{1b}[31mred\nx");
        assert_eq!(text, "?[31mred?x");
        assert!(cell(&"ä".repeat(100)).len() <= CELL_MAX + 3);
    }

    #[test]
    fn nodes_and_plugins_are_shown() {
        assert_eq!(nodes(&json!({"nodes": {"a:80": 1, "b:81": 1}})), "a:80,b:81");
        let rule = json!({"plugins": {"prometheus": {}, "proxy-rewrite": {}}});
        let text = printed(&documents(Some(Kind::GlobalRule), &[("1".into(), rule)]));
        assert!(text.contains("1   prometheus,proxy-rewrite  -\n"), "{text}");
        assert_eq!(nodes(&json!({"nodes": [{"host": "a", "port": 80}, {"host": "b"}]})), "a:80,b");
    }

    #[test]
    fn data_planes_show_their_state() {
        let node = |more: Value| {
            let mut node = json!({"name": "n", "address": "10.0.0.1:1", "acknowledged": 7, "lag": null});
            node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            node
        };
        let view = json!({"list": [
            node(json!({"connected": true, "lag": 0})), node(json!({"connected": false})),
            node(json!({"connected": true, "held": {"store": "x"}})),
        ]});
        let text = printed(&data_planes(&view));
        assert!(text.contains("n     10.0.0.1:1  7         0    connected\n"), "{text}");
        assert!(text.contains("-    away\n") && text.contains("-    held\n"), "{text}");
    }
}
