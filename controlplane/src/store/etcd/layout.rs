//! Keys and values in etcd: `{prefix}/{kind}/{id}` holds a document as JSON (contract 9.1), and
//! `{prefix}/countersign/extensions/{kind}/{id}` its extension fields, which an APISIX would reject
//! or drop.
//!
//! One transaction writes both. An extension entry belongs to the document if it is not older than
//! the document's creation, so a document that an APISIX recreates starts without. An APISIX reads
//! nothing below `countersign/`.
//!
//! Any program may write to etcd, so decoding never fails: a key that holds no document is a
//! placeholder, unknown, or yields a document that will not compile.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use etcd_client::KeyValue;
use model::extension::{extensions, mark_unreadable, merge, split};
use model::{Id, Key, Kind, SalvagedDocument, json};
use serde_json::Value;

use crate::store::{InternalKey, StoredDocument};

/// The value of an APISIX's directory keys.
pub(super) const PLACEHOLDER: &str = "init_dir";

/// The directories of an APISIX, each with a placeholder (its `constants.lua`).
pub(super) const DIRECTORIES: [&str; 14] = [
    "routes",
    "upstreams",
    "services",
    "plugins",
    "consumers",
    "ssls",
    "global_rules",
    "protos",
    "plugin_configs",
    "plugin_metadata",
    "consumer_groups",
    "stream_routes",
    "secrets",
    "graphql_cost_decorations",
];

/// A larger value is not read: an Admin API takes 1.5 MiB, and sealing adds a little.
const VALUE_MAX: usize = (3 << 19) + (1 << 16);

/// The directory of internal entries and extension fields.
const OWN_DIRECTORY: &str = "countersign";

/// The directory of extension fields below it.
const EXTENSIONS: &str = "extensions";

/// The layout below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Ends with a slash.
    root: String,
}

/// The meaning of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParsedKey {
    Document(Key),
    /// A document whose name is not an id, which an APISIX serves all the same. Has its substitute
    /// key and its name.
    Misnamed(Key, String),
    Extension(Key),
    /// A directory, or an internal entry.
    Ignored,
    /// A key of another program: its directory, or the whole key if there is none.
    Unknown(String),
}

impl Layout {
    /// `prefix` may end with a slash.
    pub(super) fn new(prefix: &str) -> Self {
        Self { root: format!("{}/", prefix.trim_end_matches('/')) }
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn kind_prefix(&self, kind: Kind) -> String {
        self.directory_key(kind.plural())
    }

    pub(super) fn directory_key(&self, name: &str) -> String {
        format!("{}{name}/", self.root)
    }

    pub(super) fn document_key(&self, key: &Key) -> String {
        format!("{}{key}", self.root)
    }

    /// `None` for kinds without extension fields.
    pub(super) fn extension_key(&self, key: &Key) -> Option<String> {
        (!extensions(key.kind).is_empty()).then(|| format!("{}{key}", self.extensions_prefix()))
    }

    pub(super) fn extensions_prefix(&self) -> String {
        format!("{}{OWN_DIRECTORY}/{EXTENSIONS}/", self.root)
    }

    /// The prefix of the extension fields of a kind; `None` for kinds without them.
    pub(super) fn kind_extensions_prefix(&self, kind: Kind) -> Option<String> {
        (!extensions(kind).is_empty()).then(|| format!("{}{}/", self.extensions_prefix(), kind.plural()))
    }

    pub(super) fn internal_key(&self, key: InternalKey) -> String {
        format!("{}{OWN_DIRECTORY}/{}", self.root, key.name())
    }

    /// The prefix of the control planes' reports. The last segment is random per process.
    pub(super) fn reports_prefix(&self) -> String {
        format!("{}{OWN_DIRECTORY}/control_planes/", self.root)
    }

    /// The prefix of the node names of control planes, with the same last segments as their
    /// reports.
    pub(super) fn reported_nodes_prefix(&self) -> String {
        format!("{}{OWN_DIRECTORY}/control_plane_nodes/", self.root)
    }

    /// Compared by each write, and changed after each write of unknown outcome, so that a late one
    /// fails.
    pub(super) fn fence_key(&self) -> String {
        format!("{}{OWN_DIRECTORY}/fence", self.root)
    }

    /// The key that an APISIX writes to take an id.
    pub(super) fn sequence_key(&self) -> String {
        format!("{}gen_id", self.root)
    }

    /// Parses a key below the prefix.
    pub(super) fn parse(&self, name: &[u8]) -> ParsedKey {
        let text = String::from_utf8_lossy(name);
        let Some(relative) = text.strip_prefix(&self.root) else { return ParsedKey::Ignored };
        let Some((directory, id)) = relative.split_once('/') else {
            let is_placeholder = relative == "gen_id" || relative == "plugins";
            return if is_placeholder { ParsedKey::Ignored } else { ParsedKey::Unknown(relative.to_owned()) };
        };
        if id.is_empty() {
            return ParsedKey::Ignored;
        }
        if directory == OWN_DIRECTORY {
            let key = id
                .strip_prefix(EXTENSIONS)
                .and_then(|relative| relative.strip_prefix('/'))
                .and_then(parse_extension_key);
            return key.map_or(ParsedKey::Ignored, ParsedKey::Extension);
        }
        match Kind::from_plural(directory) {
            None => ParsedKey::Unknown(directory.to_owned()),
            Some(kind) => match Id::parse(id) {
                Ok(id) => ParsedKey::Document(Key::new(kind, id)),
                Err(_) => match substitute_key(kind, name) {
                    Some(key) => ParsedKey::Misnamed(key, relative.to_owned()),
                    None => ParsedKey::Unknown(relative.to_owned()),
                },
            },
        }
    }

    /// The document at a key; `None` if the key holds none.
    pub(super) fn decode(&self, kv: &KeyValue) -> Option<StoredDocument> {
        let (created, modified) = (kv.create_revision(), kv.mod_revision());
        match self.parse(kv.key()) {
            ParsedKey::Document(key) => Some(decode_document(key, kv.value(), created, modified)),
            ParsedKey::Misnamed(key, name) => {
                Some(decode_misnamed(key, &name, kv.value(), created, modified))
            }
            ParsedKey::Ignored | ParsedKey::Extension(_) | ParsedKey::Unknown(_) => None,
        }
    }
}

/// The key that stands for a document whose name is not an id. It is equal on every control plane,
/// and sorts before all others, so that no document with the same matchers is served instead.
fn substitute_key(kind: Kind, name: &[u8]) -> Option<Key> {
    let digest = digest(&SHA256, name);
    let digest = digest.as_ref().get(..SUBSTITUTE_DIGEST_BYTES)?;
    let id = format!("-misnamed-{}", HEXLOWER.encode_display(digest));
    Some(Key::new(kind, Id::parse(&id).ok()?))
}

const SUBSTITUTE_DIGEST_BYTES: usize = 16;

/// `routes/1` -> the key, for kinds with extension fields.
fn parse_extension_key(text: &str) -> Option<Key> {
    let (directory, id) = text.split_once('/')?;
    let kind = Kind::from_plural(directory).filter(|kind| !extensions(*kind).is_empty())?;
    Some(Key::new(kind, Id::parse(id).ok()?))
}

/// The extension fields of one document, as stored in etcd.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ExtensionEntry {
    pub(super) mod_revision: u64,
    /// The output of `model::extension::split`, or the reason why it cannot be read.
    fields: Result<Value, String>,
}

impl ExtensionEntry {
    pub(super) fn decode(value: &[u8], modified: i64) -> Self {
        let fields = if value.len() > VALUE_MAX {
            Err(format!("{} bytes, more than {VALUE_MAX}", value.len()))
        } else {
            json::parse(value).map_err(|error| format!("{} bytes that are not JSON: {error}", value.len()))
        };
        Self { mod_revision: from_etcd_revision(modified), fields }
    }

    /// Whether the entry belongs to the document with this create revision, not to an earlier one
    /// of the same name.
    pub(super) fn belongs_to(&self, created: u64) -> bool {
        self.mod_revision >= created
    }
}

/// The values of a document's two keys; the second is `None` without extension fields.
pub(super) fn split_document(key: &Key, mut document: Value) -> (String, Option<String>) {
    let extension = document.as_object_mut().and_then(|members| split(key.kind, members));
    (document.to_string(), extension.map(|extension| extension.to_string()))
}

/// The document with its extension fields.
pub(super) fn merge_extension(
    mut stored: StoredDocument,
    extension: Option<&ExtensionEntry>,
) -> StoredDocument {
    let Some(extension) = extension.filter(|extension| extension.belongs_to(stored.create_revision)) else {
        return stored;
    };
    let is_newer = stored.mod_revision > extension.mod_revision;
    if let Some(members) = stored.document.as_object_mut() {
        match &extension.fields {
            Ok(fields) => merge(stored.key.kind, members, fields.clone(), is_newer),
            Err(error) => mark_unreadable(stored.key.kind, members, error),
        }
        stored.stale_extensions = is_newer;
    }
    stored.mod_revision = stored.mod_revision.max(extension.mod_revision);
    stored
}

/// Decodes a document. A value that is not JSON becomes a JSON string with the cause: not being an
/// object, it is never served and is reported as invalid, and it stays in etcd unchanged. Its
/// matchers are salvaged, so that they are blocked.
pub(super) fn decode_document(key: Key, value: &[u8], created: i64, modified: i64) -> StoredDocument {
    let parsed = if value.len() > VALUE_MAX {
        Err(format!("<{} bytes: more than {VALUE_MAX}>", value.len()))
    } else {
        // Without the first bytes: they may be a private key in clear.
        json::parse(value).map_err(|error| format!("<{} bytes that are not JSON: {error}>", value.len()))
    };
    let (document, salvaged) = match parsed {
        Ok(document) => (document, None),
        Err(error) => (Value::String(error), SalvagedDocument::read(value)),
    };
    let (created, modified) = (from_etcd_revision(created), from_etcd_revision(modified));
    StoredDocument {
        key,
        document,
        create_revision: created,
        mod_revision: modified,
        stale_extensions: false,
        salvaged,
    }
}

/// Decodes a document whose name is not an id: only its matchers.
fn decode_misnamed(key: Key, name: &str, value: &[u8], created: i64, modified: i64) -> StoredDocument {
    let document =
        Value::String(format!("<the name {name:?} has no id: 1 to 64 of letters, digits, '-', '_' and '.'>"));
    let (created, modified) = (from_etcd_revision(created), from_etcd_revision(modified));
    StoredDocument {
        key,
        document,
        create_revision: created,
        mod_revision: modified,
        stale_extensions: false,
        salvaged: SalvagedDocument::read(value),
    }
}

/// The end of the range of keys that start with `prefix/`: '0' follows '/'.
pub(super) fn range_end(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

/// etcd's revisions are signed and start at 1.
pub(super) fn from_etcd_revision(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

pub(super) fn to_etcd_revision(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn keys_parse_to_what_they_were_built_from() {
        for prefix in ["/apisix", "/apisix/", "/a/b"] {
            let layout = Layout::new(prefix);
            for kind in Kind::ALL {
                let key = Key::new(kind, Id::parse("a-1._z").unwrap());
                assert_eq!(
                    layout.parse(layout.document_key(&key).as_bytes()),
                    ParsedKey::Document(key.clone())
                );
                assert!(layout.document_key(&key).starts_with(&layout.kind_prefix(kind)));
                if let Some(extension) = layout.extension_key(&key) {
                    assert_eq!(layout.parse(extension.as_bytes()), ParsedKey::Extension(key));
                }
            }
        }
    }

    #[test]
    fn keys_without_documents_are_classified() {
        let layout = Layout::new("/apisix");
        let place = |name: &str| layout.parse(name.as_bytes());
        for nothing in [
            "/apisix/ssls/",
            "/apisix/plugins",
            "/apisix/gen_id",
            "/apisix/countersign/fence",
            "/apisix/countersign/control_planes/0123456789abcdef",
            "/apisix/countersign/control_plane_nodes/0123456789abcdef",
            "/apisix/countersign/extensions/",
            "/apisix/countersign/extensions/routes/",
            "/apisix/countersign/extensions/global_rules/1",
            "/apisix/countersign/extensions/routes/1/2",
            "/other/ssls/1",
        ] {
            assert_eq!(place(nothing), ParsedKey::Ignored, "{nothing}");
        }
        assert_eq!(place("/apisix/consumers/jack"), ParsedKey::Unknown("consumers".into()));
        assert_eq!(place("/apisix/secrets/vault/1"), ParsedKey::Unknown("secrets".into()));
        let long = format!("ssls/{}", "x".repeat(65));
        let mut stand_ins = BTreeSet::new();
        for name in ["ssls/a b", "ssls/1/2", "ssls/team:a", "ssls/\u{fffd}", long.as_str()] {
            let ParsedKey::Misnamed(key, parsed) = place(&format!("/apisix/{name}")) else {
                panic!("{name}")
            };
            assert_eq!((key.kind, parsed.as_str()), (Kind::Ssl, name));
            assert!(Id::parse(key.id.as_str()).is_ok(), "{key}");
            stand_ins.insert(key);
        }
        let ParsedKey::Misnamed(key, _) = layout.parse(b"/apisix/ssls/\xff") else { panic!("not misnamed") };
        stand_ins.insert(key);
        assert_eq!(stand_ins.len(), 6, "each has its own");
        for directory in DIRECTORIES {
            assert_eq!(place(&layout.directory_key(directory)), ParsedKey::Ignored);
        }
    }

    #[test]
    fn invalid_json_is_never_an_object() {
        let key = || Key::new(Kind::Ssl, Id::parse("1").unwrap());
        let read = |value: &[u8]| decode_document(key(), value, 3, 5);
        assert_eq!(read(br#"{"z":1,"a":[]}"#).document.to_string(), r#"{"z":1,"a":[]}"#);
        // Like an APISIX: a string may span lines, and a member must not occur twice.
        assert_eq!(read(b"{\"cert\": \"a\nb\"}").document, serde_json::json!({"cert": "a\nb"}));
        let twice = read(br#"{"status": 1, "status": 0}"#).document;
        let expected = "<26 bytes that are not JSON: the member \"status\" occurs twice in one object at line 1 column 22>";
        assert_eq!(twice, expected);
        let salvaged = |value: &[u8]| {
            read(value).salvaged.map(|salvaged| (salvaged.matchers().clone(), salvaged.is_complete()))
        };
        assert_eq!(salvaged(br#"{"sni": "a", "key": "x", "sni": "b"}"#), Some((json!({"sni": "b"}), true)));
        let big = json!({"sni": "b", "desc": "x".repeat(2 << 20)}).to_string();
        assert_eq!(salvaged(big.as_bytes()), Some((json!({"sni": "b"}), true)));
        assert_eq!((salvaged(b"{}"), salvaged(PLACEHOLDER.as_bytes()), salvaged(b"[]")), (None, None, None));
        assert!(read(PLACEHOLDER.as_bytes()).document.is_string());
        assert!(read(&[0xff, 0xfe]).document.is_string());
        let long = format!("\"{}\"", "x".repeat(2 << 20));
        assert!(read(long.as_bytes()).document.as_str().unwrap().len() < 100);
        assert_eq!((read(b"{}").create_revision, read(b"{}").mod_revision), (3, 5));
    }

    #[test]
    fn extension_fields_belong_to_one_document() {
        let key = Key::new(Kind::Route, Id::parse("1").unwrap());
        let document = json!({"uri": "/a", "client_identity": {"allow": [{"dns": "a.b"}]}, "id": "1"});
        let (value, extension) = split_document(&key, document.clone());
        let extension = extension.unwrap();
        assert!(!value.contains("client_identity") && !extension.contains("uri"));
        let joined = |created, modified, extension: i64| {
            let extension = ExtensionEntry::decode(beside_text(&document).as_bytes(), extension);
            merge_extension(
                decode_document(key.clone(), value.as_bytes(), created, modified),
                Some(&extension),
            )
        };
        let together = joined(3, 5, 5);
        assert_eq!(
            (&together.document, together.mod_revision, together.stale_extensions),
            (&document, 5, false)
        );
        let rewritten = joined(3, 7, 5);
        assert_eq!(
            (&rewritten.document, rewritten.mod_revision, rewritten.stale_extensions),
            (&document, 7, true)
        );
        let edited = joined(3, 5, 9);
        assert_eq!((&edited.document, edited.mod_revision, edited.stale_extensions), (&document, 9, false));
        // From an earlier document of the same name.
        let recreated = joined(7, 7, 5);
        assert_eq!(
            (recreated.document.get("client_identity"), recreated.mod_revision, recreated.stale_extensions),
            (None, 7, false)
        );
        assert_eq!(split_document(&key, json!({"uri": "/a"})).1, None);
    }

    fn beside_text(document: &Value) -> String {
        json!({"client_identity": document["client_identity"]}).to_string()
    }

    #[test]
    fn unreadable_extension_fields_invalidate_the_document() {
        let key = Key::new(Kind::Route, Id::parse("1").unwrap());
        let long = format!("\"{}\"", "x".repeat(2 << 20));
        for value in ["", "{", "[]", "7", "\"x\"", long.as_str()] {
            let extension = ExtensionEntry::decode(value.as_bytes(), 5);
            let stored = decode_document(key.clone(), br#"{"uri": "/a", "upstream_id": "1"}"#, 3, 5);
            let joined = merge_extension(stored, Some(&extension));
            assert!(model::validate(Kind::Route, &joined.document).is_err(), "{}", joined.document);
        }
    }
}
