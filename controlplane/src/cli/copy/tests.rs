//! Copies between all locations that need no server, as on the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use model::Id;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::publish::deny_list::DeniedNode;
use crate::store::{EmbeddedStore, StoredDocument};

const KEYRING: &str = "qeddd145sfvddff3";

#[derive(Parser)]
struct CopyCommand {
    #[command(flatten)]
    args: CopyArgs,
}

/// A directory with a configuration and the locations.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let settings = json!({
            "apisix": {"data_encryption": {"keyring": [KEYRING]}},
            "countersign": {"store": {"path": world.path("configured.redb")}},
        });
        std::fs::write(world.path("config.yaml"), settings.to_string()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `from` and `to` as on the command line, with `@` for the directory.
    async fn copy(&self, command_line: &str) -> Result<String, CopyError> {
        let command_line = command_line.replace('@', &format!("{}/", self.folder.path().display()));
        let CopyCommand { args } =
            CopyCommand::try_parse_from(["copy"].into_iter().chain(command_line.split_whitespace())).unwrap();
        let mut out = Vec::new();
        let result = run(&self.path("config.yaml"), &args, &mut out).await;
        let output = String::from_utf8(out).unwrap();
        result.map(|()| output)
    }

    async fn put(&self, name: &str, documents: &[(&str, Value)]) -> u64 {
        let store = EmbeddedStore::open(&self.path(name)).unwrap();
        for (name, document) in documents {
            let put = Mutation::Put {
                key: key(name),
                document: document.clone(),
                precondition: Precondition::Unconditional,
                ttl: None,
            };
            store.commit(put.into()).await.unwrap();
        }
        store.revision()
    }

    async fn load(&self, name: &str) -> (u64, Vec<(String, Value)>) {
        let loaded = EmbeddedStore::open(&self.path(name)).unwrap().load().await.unwrap();
        let of = |item: StoredDocument| (item.key.to_string(), item.document);
        (loaded.revision, loaded.items.into_iter().map(of).collect())
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn key(name: &str) -> Key {
    let (kind, id) = name.split_once('/').unwrap();
    Key::new(Kind::from_plural(kind).unwrap(), Id::parse(id).unwrap())
}

fn upstream(port: u16) -> Value {
    json!({"id": "u", "type": "roundrobin", "nodes": {format!("127.0.0.1:{port}"): 1}})
}

/// A site, with its private key sealed by `keyring`.
fn site(keyring: &Keyring) -> Value {
    let authority = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let issued = authority.issue(&LeafSpec::server("a.test")).unwrap();
    json!({"id": "1", "cert": issued.certificate_pem, "key": keyring.seal(&issued.key_pem), "snis": ["a.test"]})
}

fn keyring() -> Keyring {
    Keyring::new(vec![KEYRING.to_owned()]).unwrap()
}

#[tokio::test]
async fn a_round_trip_changes_nothing() {
    let world = World::new();
    let route =
        json!({"id": "r", "uri": "/*", "upstream_id": "u", "desc": "two\nlines", "labels": {"on": "yes"}});
    let documents = [
        ("ssls/1", site(&keyring())),
        ("upstreams/u", upstream(1)),
        ("routes/r", route),
        ("routes/odd", json!({"id": "odd"})),
    ];
    world.put("a.redb", &documents).await;
    let output = world.copy("--from embedded:@a.redb --to yaml:@rules.yaml").await.unwrap();
    assert!(output.contains("4 are new, 0 differ"), "{output}");
    assert!(
        output.contains("warning: routes/odd: "),
        "what cannot be served is copied, with a warning: {output}"
    );
    let mode = std::fs::metadata(world.path("rules.yaml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = world.text("rules.yaml");
    assert!(
        text.ends_with("#END\n") && text.contains("cert: |\n      -----BEGIN CERTIFICATE-----\n"),
        "{text}"
    );
    assert!(!text.contains("PRIVATE KEY"), "sealed keys stay sealed");

    let output = world.copy("--from yaml:@rules.yaml --to embedded:@b.redb").await.unwrap();
    assert!(output.contains("verified: 4 documents, SHA-256 "), "{output}");
    let (_, items) = world.load("b.redb").await;
    assert_eq!(items, world.load("a.redb").await.1);
    // `embedded` names the configured store, and every copy has the same digest.
    let again = world.copy("--from embedded:@b.redb --to embedded").await.unwrap();
    assert_eq!(again.lines().last(), output.lines().last());
}

#[tokio::test]
async fn a_copy_ends_when_its_document_does() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1))]).await;
    let ends = async |name: &str| {
        let expiries = EmbeddedStore::open(&world.path(name)).unwrap().expiries().await.unwrap();
        let left =
            |(key, end): (Key, Instant)| (key.to_string(), remaining_seconds(end, Instant::now()).get());
        expiries.into_iter().map(left).collect::<Vec<_>>()
    };
    let put = Mutation::Put {
        key: key("upstreams/short"),
        document: upstream(2),
        precondition: Precondition::Absent,
        ttl: NonZeroU32::new(1000),
    };
    EmbeddedStore::open(&world.path("a.redb")).unwrap().commit(put.into()).await.unwrap();
    world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    let copied = ends("b.redb").await;
    assert!(copied.len() == 1 && copied[0].0 == "upstreams/short", "{copied:?}");
    assert!((900..=1000).contains(&copied[0].1), "{copied:?}");
    let again = world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    assert!(again.contains("0 are new, 0 differ, 2 are the same"), "{again}");
    // A document that would stay is not the same.
    world.put("b.redb", &[("upstreams/short", upstream(2))]).await;
    assert_eq!(ends("b.redb").await, []);
    world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap_err();
    world.copy("--from embedded:@a.redb --to embedded:@b.redb --overwrite").await.unwrap();
    assert_eq!(ends("b.redb").await.len(), 1);
    let file = world.copy("--from embedded:@a.redb --to yaml:@rules.yaml").await.unwrap();
    assert!(file.contains("warning: upstreams/short: its time to live ("), "{file}");
}

#[test]
fn remaining_seconds_are_rounded_up() {
    let now = Instant::now();
    for (milliseconds, expected) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (60_000, 60)] {
        let end = now + std::time::Duration::from_millis(milliseconds);
        assert_eq!(remaining_seconds(end, now).get(), expected);
    }
    assert_eq!(remaining_seconds(now, now + std::time::Duration::from_secs(5)).get(), 1, "it has ended");
}

#[tokio::test]
async fn a_second_run_writes_only_the_rest() {
    let world = World::new();
    let all: Vec<(String, Value)> = (0..300).map(|nth| (format!("upstreams/{nth}"), upstream(nth))).collect();
    let all: Vec<(&str, Value)> =
        all.iter().map(|(name, document)| (name.as_str(), document.clone())).collect();
    world.put("a.redb", &all).await;
    world.put("b.redb", &all[..120]).await;
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    assert!(output.contains("180 are new, 0 differ, 120 are the same"), "{output}");
    let (revision, items) = world.load("b.redb").await;
    assert_eq!((revision, items.len()), (300, 300));
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    assert!(output.contains("0 are new, 0 differ, 300 are the same"), "{output}");
    assert_eq!(world.load("b.redb").await.0, revision);
}

#[tokio::test]
async fn differences_are_conflicts_without_overwrite() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1)), ("upstreams/new", upstream(2))]).await;
    let before =
        world.put("b.redb", &[("upstreams/u", upstream(9)), ("routes/own", json!({"id": "own"}))]).await;
    let command_line = "--from embedded:@a.redb --to embedded:@b.redb";
    for command_line in [command_line.to_owned(), format!("{command_line} --dry-run")] {
        let output = world.copy(&command_line).await.unwrap_err().to_string();
        assert!(
            output.contains("1 document(s) in embedded:") && output.contains("nothing was written"),
            "{output}"
        );
        assert_eq!(world.load("b.redb").await.0, before);
    }
    let output = world.copy(&format!("{command_line} --overwrite --dry-run")).await.unwrap();
    assert!(
        output.contains("1 are new, 1 differ, 0 are the same, 1 are only in the target and stay"),
        "{output}"
    );
    assert_eq!(world.load("b.redb").await.0, before);
    world.copy(&format!("{command_line} --overwrite")).await.unwrap();
    let names: Vec<String> = world.load("b.redb").await.1.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["routes/own", "upstreams/new", "upstreams/u"]);
    assert_eq!(world.load("b.redb").await.1[2].1, upstream(1));
}

#[tokio::test]
async fn a_file_is_written_atomically() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1))]).await;
    let command_line = "--from embedded:@a.redb --to yaml:@rules.yaml";
    let mine = "# mine\nconsumers:\n  - username: jack\nupstreams: []\n#END\n";
    std::fs::write(world.path("rules.yaml"), mine).unwrap();
    let output = world.copy(command_line).await.unwrap_err().to_string();
    assert!(output.contains("conflict with the source") && world.text("rules.yaml") == mine, "{output}");
    let output = world.copy(&format!("{command_line} --overwrite")).await.unwrap();
    assert!(output.contains("1 are only in the target and would go"), "{output}");
    let text = world.text("rules.yaml");
    assert!(!text.contains("jack") && text.contains("upstreams:\n  -\n    id: \"u\"\n"), "{text}");
    // An entry that only the file has is a conflict, and is lost.
    std::fs::write(world.path("rules.yaml"), text.replace("#END", "routes: [{id: 1}]\n#END")).unwrap();
    assert!(matches!(world.copy(command_line).await, Err(CopyError::Conflicts { count: 1, .. })));
    world.copy(&format!("{command_line} --overwrite")).await.unwrap();
    assert_eq!(world.text("rules.yaml"), text);
    // Nothing to do: not even the modification time changes.
    let before = std::fs::metadata(world.path("rules.yaml")).unwrap().modified().unwrap();
    world.copy(command_line).await.unwrap();
    assert_eq!(std::fs::metadata(world.path("rules.yaml")).unwrap().modified().unwrap(), before);
}

#[tokio::test]
async fn rules_get_the_ids_of_an_apisix() {
    let world = World::new();
    let rules = "routes:\n  -\n    uri: /hello\n    upstream:\n      nodes:\n        \"127.0.0.1:1980\": 1\n      type: roundrobin\n\
                 upstreams:\n  - {id: 7, nodes: {\"127.0.0.1:1\": 1}}\nservices:\nconsumers:\n  - username: jack\n#END\n";
    std::fs::write(world.path("rules.yaml"), rules).unwrap();
    let output = world.copy("--from yaml:@rules.yaml --to embedded:@a.redb").await.unwrap();
    assert!(output.contains("warning: consumers (1 of them) cannot be copied"), "{output}");
    let (_, items) = world.load("a.redb").await;
    let route = json!({"uri": "/hello", "upstream": {"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"}, "id": "arr_1"});
    let expected = [
        ("routes/arr_1".to_owned(), route),
        ("upstreams/7".to_owned(), json!({"id": 7, "nodes": {"127.0.0.1:1": 1}})),
    ];
    assert_eq!(items, expected);
    for (rules, expected) in [
        ("routes: 5\n#END", "routes: expected a list"),
        ("- 1\n#END", "expected lists under routes:"),
        ("routes: [{id: a b}]\n#END", "routes[1].id: found \"a b\""),
        ("routes: [{id: []}]\n#END", "routes[1].id: found []"),
        ("routes: [{id: 1}, {id: \"1\"}]\n#END", "routes[2].id: routes/1 is there already"),
        ("routes: []\n", "the last line must be #END"),
    ] {
        std::fs::write(world.path("rules.yaml"), rules).unwrap();
        let output =
            world.copy("--from yaml:@rules.yaml --to embedded:@bad.redb").await.unwrap_err().to_string();
        assert!(output.contains(expected), "{output}");
        assert!(world.load("bad.redb").await.1.is_empty());
    }
}

#[tokio::test]
async fn keys_are_sealed_and_foreign_ones_reported() {
    let world = World::new();
    let clear = site(&Keyring::empty());
    let foreign = site(&Keyring::new(vec!["1234567890123456".to_owned()]).unwrap());
    std::fs::write(world.path("rules.yaml"), format!("ssls: [{clear}]\n#END")).unwrap();
    world.copy("--from yaml:@rules.yaml --to embedded:@a.redb").await.unwrap();
    let (_, items) = world.load("a.redb").await;
    let plain = clear["key"].as_str().unwrap();
    assert_eq!(items[0].1["key"], keyring().seal(plain));
    // Sealing is no difference: a second run writes nothing.
    let output = world.copy("--from yaml:@rules.yaml --to embedded:@a.redb").await.unwrap();
    assert!(output.contains("0 are new, 0 differ, 1 are the same"), "{output}");

    world.put("b.redb", &[("ssls/1", foreign.clone())]).await;
    let output = world.copy("--from embedded:@b.redb --to embedded:@c.redb").await.unwrap();
    assert!(
        output.contains("warning: ssls/1: ") && output.contains("failed to decrypt previous encrypted key"),
        "{output}"
    );
    assert_eq!(world.load("c.redb").await.1[0].1, foreign, "as it is");
}

#[tokio::test]
async fn entries_that_are_not_documents_are_reported_and_stay() {
    let world = World::new();
    world
        .put(
            "a.redb",
            &[
                ("upstreams/u", upstream(1)),
                ("routes/x", json!("<7 bytes>")),
                ("routes/y", json!(["secret"])),
            ],
        )
        .await;
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    assert!(
        output.contains("warning: routes/x is left out: it is no JSON object, but <7 bytes>\n"),
        "{output}"
    );
    assert!(output.contains("routes/y") && !output.contains("secret"), "{output}");
    assert!(output.contains("verified: 1 documents"), "{output}");
}

#[tokio::test]
async fn invalid_arguments_create_no_file() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1))]).await;
    let open = EmbeddedStore::open(&world.path("open.redb")).unwrap();
    std::fs::write(world.path("other"), "not a store").unwrap();
    for (command_line, expected) in [
        ("--from embedded:@none.redb --to embedded:@b.redb", "there is no file"),
        ("--from yaml:@none.yaml --to embedded:@b.redb", "there is no file"),
        ("--from embedded --to embedded:@b.redb", "there is no file"),
        ("--from embedded:@a.redb --to embedded:@a.redb", "are the same location"),
        ("--from yaml:@other --to yaml:@other", "are the same location"),
        ("--from embedded:@open.redb --to embedded:@b.redb", "in use by another process"),
        ("--from embedded:@other --to embedded:@b.redb", "other"),
        ("--from embedded:@a.redb --to yaml:@none/rules.yaml", "cannot write"),
    ] {
        let output = world.copy(command_line).await.unwrap_err().to_string();
        assert!(output.contains(expected), "{command_line}: {output}");
        assert!(!world.path("b.redb").exists() && !world.path("none.redb").exists(), "{command_line}");
    }
    drop(open);
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb --dry-run").await.unwrap();
    assert!(output.contains("1 are new") && output.contains("nothing was written"), "{output}");
    let output = world.copy("--from embedded:@a.redb --to yaml:@b.yaml --dry-run").await.unwrap();
    assert!(output.contains("1 are new") && !world.path("b.yaml").exists() && !world.path("b.redb").exists());
    for location in ["redis", "yaml", "yaml:", "embedded:", ""] {
        assert!(location.parse::<Location>().is_err(), "{location}");
    }
}

fn guarded() -> Value {
    json!({"id": "1", "uri": "/a", "upstream_id": "u", "client_identity": {"allow": [{"dns": "a.b"}]}})
}

#[tokio::test]
async fn extension_fields_survive_a_round_trip() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1)), ("routes/1", guarded())]).await;
    world.copy("--from embedded:@a.redb --to yaml:@rules.yaml").await.unwrap();
    let text = std::fs::read_to_string(world.path("rules.yaml")).unwrap();
    let rules = conf::read_apisix_yaml(&world.path("rules.yaml"), &|_| None).unwrap();
    assert_eq!(rules["routes"][0].get("client_identity"), None, "an APISIX refuses it there: {text}");
    assert_eq!(rules["countersign_extensions"][0]["resource"], "routes/1");
    world.copy("--from yaml:@rules.yaml --to embedded:@b.redb").await.unwrap();
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb --dry-run").await.unwrap();
    assert!(output.contains("2 are the same"), "{output}");
    // An extension entry without its document would protect nothing.
    std::fs::write(world.path("lost.yaml"), text.replace("resource: \"routes/1\"", "resource: \"routes/9\""))
        .unwrap();
    let error = world.copy("--from yaml:@lost.yaml --to embedded:@c.redb").await.unwrap_err().to_string();
    assert!(error.contains("countersign_extensions[1]: resource: there is no routes/9"), "{error}");
}

#[tokio::test]
async fn a_denied_node_stays_denied_in_the_target() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1))]).await;
    let denied = |name: &'static str| {
        let path = world.path(name);
        async move { DeniedNodes::load(Arc::new(EmbeddedStore::open(&path).unwrap())).await.unwrap() }
    };
    let entry = DeniedNode { serial: Some("0a".to_owned()), ..DeniedNode::default() };
    denied("a.redb").await.put("edge-7", entry).await.unwrap();
    let output = world.copy("--from embedded:@a.redb --to embedded:@b.redb").await.unwrap();
    assert!(output.contains("deny-list of data planes: 1 of 1 entries added"), "{output}");
    assert!(denied("b.redb").await.list().borrow().get("edge-7").is_some());
    let output = world.copy("--from embedded:@a.redb --to yaml:@rules.yaml").await.unwrap();
    assert!(
        output.contains("warning: the deny-list of data planes (1 entries) is not in the file"),
        "{output}"
    );
}

#[tokio::test]
async fn rules_without_extension_fields_remove_none() {
    let world = World::new();
    world.put("a.redb", &[("upstreams/u", upstream(1)), ("routes/1", guarded())]).await;
    let rules = json!({
        "upstreams": [with_id("u", upstream(1))],
        "routes": [{"id": "1", "uri": "/b", "upstream_id": "u"}],
    });
    std::fs::write(world.path("apisix.yaml"), format!("{rules}\n#END\n")).unwrap();
    let output = world.copy("--from yaml:@apisix.yaml --to embedded:@a.redb --overwrite").await.unwrap();
    assert!(output.contains("warning: routes/1: client_identity of the target is kept"), "{output}");
    let store = EmbeddedStore::open(&world.path("a.redb")).unwrap();
    let route = store.get(&key("routes/1")).await.unwrap().unwrap().document;
    assert_eq!((&route["uri"], &route["client_identity"]), (&json!("/b"), &guarded()["client_identity"]));
}

/// A replaced file keeps the extension fields that only its documents have.
#[tokio::test]
async fn a_replaced_file_keeps_its_extension_fields() {
    let world = World::new();
    let site = |client: Value| {
        let mut site = site(&keyring());
        site["client"] = client;
        site
    };
    let authority = Authority::root(&AuthoritySpec::new("Clients")).unwrap();
    let list = authority.crl_pem(&CrlSpec::new()).unwrap();
    let ca = authority.certificate_pem();
    let full = [
        ("ssls/1", site(json!({"ca": ca, "crl": [list]}))),
        ("upstreams/u", upstream(1)),
        ("routes/1", guarded()),
    ];
    world.put("a.redb", &full).await;
    world.copy("--from embedded:@a.redb --to yaml:@rules.yaml").await.unwrap();
    let plain = json!({"id": "1", "uri": "/b", "upstream_id": "u"});
    let bare = [("ssls/1", site(json!({"ca": ca}))), ("upstreams/u", upstream(1)), ("routes/1", plain)];
    world.put("b.redb", &bare).await;
    let output = world.copy("--from embedded:@b.redb --to yaml:@rules.yaml --overwrite").await.unwrap();
    for kept in
        ["routes/1: client_identity of the target is kept", "ssls/1: client.crl of the target is kept"]
    {
        assert!(output.contains(kept), "{output}");
    }
    let rules = conf::read_apisix_yaml(&world.path("rules.yaml"), &|_| None).unwrap();
    assert_eq!(rules["routes"][0]["uri"], "/b");
    let beside = rules["countersign_extensions"].to_string();
    assert!(beside.contains("a.b") && beside.contains("X509 CRL"), "{beside}");
}

#[tokio::test]
async fn an_extension_entry_has_one_document_and_known_fields() {
    let world = World::new();
    for (entries, expected) in [
        (
            json!([
                {"resource": "routes/1", "client_identity": {"allow": [{"dns": "a.b"}]}},
                {"resource": "routes/1", "client_identity": {"forward": ["xfcc"]}},
            ]),
            "countersign_extensions[2]: resource: there is an entry for routes/1 already",
        ),
        (
            json!([{"resource": "routes/1", "upstream_id": "v"}]),
            "countersign_extensions[1]: upstream_id: this is no",
        ),
        (
            json!([{"resource": "upstreams/u", "retries": 2}]),
            "countersign_extensions[1]: retries: this is no",
        ),
    ] {
        let rules = json!({
            "upstreams": [with_id("u", upstream(1))],
            "routes": [{"id": "1", "uri": "/b", "upstream_id": "u"}],
            "countersign_extensions": entries,
        });
        std::fs::write(world.path("rules.yaml"), format!("{rules}\n#END\n")).unwrap();
        let output =
            world.copy("--from yaml:@rules.yaml --to embedded:@a.redb").await.unwrap_err().to_string();
        assert!(output.contains(expected), "{output}");
    }
}

/// A copy without it would serve a broader document instead.
#[test]
fn unreadable_documents_are_never_skipped() {
    let target = OpenLocation::Absent { location: "embedded".parse().unwrap() };
    let stored = |text: &[u8]| StoredDocument {
        key: key("routes/1"),
        document: json!("<7 bytes that are not JSON>"),
        create_revision: 1,
        mod_revision: 1,
        stale_extensions: false,
        salvaged: model::SalvagedDocument::read(text),
    };
    let content = |items| LocationContent { items, ..LocationContent::empty() };
    let wanted =
        |text| plan::desired_state(content(vec![stored(text)]), &target, &content(Vec::new()), &keyring());
    let output = wanted(b"{\"uri\": \"/a\", \"desc\": \"caf\xe9\"}");
    assert_eq!((output.unreadable.len(), output.notes.len()), (1, 0));
    assert!(output.unreadable[0].starts_with("routes/1: "), "{:?}", output.unreadable);
    let output = wanted(b"init_dir");
    assert_eq!((output.unreadable.len(), output.notes.len()), (0, 1));
}

fn with_id(id: &str, mut document: Value) -> Value {
    document["id"] = json!(id);
    document
}

#[tokio::test]
async fn a_concurrent_write_is_never_overwritten() {
    let world = World::new();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&world.path("a.redb")).unwrap());
    let location: Location = "embedded".parse().unwrap();
    let target = OpenLocation::Store { location: location.clone(), store: Arc::clone(&store) };
    let document = Document { key: key("upstreams/u"), value: upstream(1), expires: None };
    let before = target.read().await.unwrap();
    let plan = Plan::of(std::slice::from_ref(&document), &before, &target);
    let other = Mutation::Put {
        key: key("upstreams/u"),
        document: upstream(2),
        precondition: Precondition::Absent,
        ttl: None,
    };
    store.commit(other.into()).await.unwrap();
    let error = write_documents(&location, &*store, &plan).await.unwrap_err();
    assert!(matches!(error, CopyError::ConcurrentChange { .. }), "{error}");
    assert_eq!(store.get(&key("upstreams/u")).await.unwrap().unwrap().document, upstream(2));
    let output = verify(&target, &target, &before, &[document], &keyring()).await.unwrap_err();
    assert!(matches!(output, CopyError::SourceChanged(_)), "{output}");
}

/// Any JSON, with texts that are special in YAML.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        "[ -~\n]{0,40}",
        "(yes|no|null|~|#END|- a|a: b|\\$\\{\\{HOME\\}\\}|1e3|0x1|\u{85}|\u{feff}|\t|\n){0,4}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        let members = prop::collection::vec((text.clone(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            members.prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_survives_the_file(values in prop::collection::vec(any_json(), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.yaml");
        let documents: Vec<_> = (0..).zip(values).map(|(nth, value)| {
            let id = format!("{nth}");
            Document { key: key(&format!("routes/{id}")), value: json!({"id": id, "value": value}), expires: None }
        }).collect();
        yaml::write(&path, &documents).unwrap();
        let read: Vec<_> = yaml::read(&path).unwrap().items.into_iter()
            .map(|item| Document { key: item.key, value: item.document, expires: None }).collect();
        prop_assert_eq!(read, documents);
    }
}
