//! What `apply` does: the differences between the stated and the stored resources, as operations of
//! `POST batch`. No I/O.
//!
//! Invariants: an operation states what it has seen (`if_match`, `if_none_match`), so that it never
//! replaces a change that the plan did not see; a resource is written after those that it refers
//! to, and deleted before them; no private key is printed.

use std::collections::BTreeSet;
use std::io::{self, Write};

use model::{Key, Kind, extension};
use serde_json::{Map, Value, json};

use super::desired::DesiredResources;
use super::resources::clipped;
use super::stored::StoredResources;
use super::table;

/// Operations and bytes of one batch that is only checked.
pub(super) const DRY_RUN_OPERATIONS_MAX: usize = 10_000;
pub(super) const DRY_RUN_BYTES_MAX: usize = 32 << 20;
/// Operations and bytes of one batch. The Admin API takes 128 and 1.5 MiB.
const BATCH_OPERATIONS_MAX: usize = 128;
const BATCH_BYTES_MAX: usize = 1_400_000;

/// One write.
#[derive(Debug, PartialEq)]
pub(super) struct PlannedOperation {
    pub key: Key,
    pub change: ApplyEffect,
}

#[derive(Debug, PartialEq)]
pub(super) enum ApplyEffect {
    Create { document: Value },
    Update { document: Value, modified: u64, differences: Vec<MemberDifference> },
    Delete { summary: String, modified: u64 },
}

/// A member that an update changes.
#[derive(Debug, PartialEq)]
pub(super) struct MemberDifference {
    /// `client.depth`
    pub path: String,
    /// `None`: absent. A private key is `Null`.
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// The operations, in the order in which they may be made.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ApplyPlan {
    pub operations: Vec<PlannedOperation>,
    pub unchanged: usize,
    /// Extension fields that the files do not mention and the resources keep.
    pub kept: Vec<String>,
}

impl ApplyPlan {
    /// Compares. `prune` deletes what the files do not have, of the kinds that they name.
    pub(super) fn of(desired: DesiredResources, stored: &StoredResources, prune: bool) -> Self {
        let mut plan = Self::default();
        let keys: BTreeSet<Key> = desired.documents.keys().cloned().collect();
        let order = |key: &Key| Kind::ALL.iter().position(|kind| *kind == key.kind);
        for (key, document) in desired.documents {
            let Some(before) = stored.get(&key) else {
                plan.operations.push(PlannedOperation { key, change: ApplyEffect::Create { document } });
                continue;
            };
            let (differences, kept) = differences(key.kind, &before.value, &document);
            plan.kept.extend(kept.iter().map(|field| format!("{key}: {field}")));
            if differences.is_empty() {
                plan.unchanged += 1;
                continue;
            }
            let change = ApplyEffect::Update { document, modified: before.modified, differences };
            plan.operations.push(PlannedOperation { key, change });
        }
        plan.operations.sort_by_key(|operation| order(&operation.key));
        let others = stored
            .iter()
            .filter(|(key, _)| prune && desired.kinds.contains(&key.kind) && !keys.contains(key));
        let mut deletes: Vec<_> = others
            .map(|(key, before)| PlannedOperation {
                key: key.clone(),
                change: ApplyEffect::Delete {
                    summary: table::summary(&before.value),
                    modified: before.modified,
                },
            })
            .collect();
        deletes.sort_by_key(|operation| std::cmp::Reverse(order(&operation.key)));
        plan.operations.extend(deletes);
        plan
    }

    /// How many are created, updated and deleted.
    pub(super) fn counts(&self) -> [usize; 3] {
        let count = |matches: fn(&ApplyEffect) -> bool| {
            self.operations.iter().filter(|operation| matches(&operation.change)).count()
        };
        [
            count(|change| matches!(change, ApplyEffect::Create { .. })),
            count(|change| matches!(change, ApplyEffect::Update { .. })),
            count(|change| matches!(change, ApplyEffect::Delete { .. })),
        ]
    }

    /// Prints a line for each operation, with the members that an update changes, then the counts.
    /// At most `operations_max` of them.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub(super) fn print(&self, out: &mut dyn Write, operations_max: usize) -> io::Result<()> {
        for operation in self.operations.iter().take(operations_max) {
            operation.print(out)?;
        }
        if self.operations.len() > operations_max {
            writeln!(out, "... and {} more", self.operations.len() - operations_max)?;
        }
        for kept in &self.kept {
            writeln!(out, "kept: {kept} (the files do not mention it; null removes it)")?;
        }
        let [created, updated, deleted] = self.counts();
        let unchanged = self.unchanged;
        writeln!(
            out,
            "plan: {created} to create, {updated} to update, {deleted} to delete, {unchanged} unchanged"
        )
    }

    /// All operations as one body of `POST batch?dry_run=true`, so that each is checked beside all
    /// others; `None`: they are more than it takes.
    pub(super) fn dry_run_batch(&self) -> Option<(usize, Value)> {
        let operations: Vec<_> = self.operations.iter().map(PlannedOperation::to_json).collect();
        let (count, body) = (operations.len(), json!({"operations": operations}));
        let fits = count <= DRY_RUN_OPERATIONS_MAX && body.to_string().len() <= DRY_RUN_BYTES_MAX;
        fits.then_some((count, body))
    }

    /// The bodies of `POST batch`, in order, each with its number of operations.
    pub(super) fn batches(&self) -> Vec<(usize, Value)> {
        let mut batches: Vec<(usize, Vec<Value>)> = vec![(0, Vec::new())];
        for operation in &self.operations {
            let operation = operation.to_json();
            let size = operation.to_string().len() + 1;
            if let Some((bytes, batch)) = batches.last_mut()
                && (batch.is_empty()
                    || batch.len() < BATCH_OPERATIONS_MAX && *bytes + size <= BATCH_BYTES_MAX)
            {
                *bytes += size;
                batch.push(operation);
            } else {
                batches.push((size, vec![operation]));
            }
        }
        let filled = batches.into_iter().filter(|(_, batch)| !batch.is_empty());
        filled.map(|(_, batch)| (batch.len(), json!({"operations": batch}))).collect()
    }
}

impl PlannedOperation {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let key = &self.key;
        match &self.change {
            ApplyEffect::Create { document } => writeln!(out, "+ {key}  {}", table::summary(document)),
            ApplyEffect::Delete { summary, .. } => writeln!(out, "- {key}  {summary}"),
            ApplyEffect::Update { differences, .. } => {
                writeln!(out, "~ {key}")?;
                let shown = |value: &Option<Value>| match value {
                    None => "(absent)".to_owned(),
                    Some(Value::Null) => "(private key)".to_owned(),
                    Some(value) => clipped(value),
                };
                for MemberDifference { path, before, after } in differences {
                    writeln!(out, "    {path}: {} -> {}", shown(before), shown(after))?;
                }
                Ok(())
            }
        }
    }

    fn to_json(&self) -> Value {
        let path = format!("/apisix/admin/{}", self.key);
        let etag = |modified: &u64| format!("\"{modified}\"");
        match &self.change {
            ApplyEffect::Create { document } => {
                json!({"method": "PUT", "path": path, "body": document, "if_none_match": "*"})
            }
            ApplyEffect::Update { document, modified, .. } => {
                json!({"method": "PUT", "path": path, "body": document, "if_match": etag(modified)})
            }
            ApplyEffect::Delete { modified, .. } => {
                json!({"method": "DELETE", "path": path, "if_match": etag(modified)})
            }
        }
    }
}

/// The members that a PUT of `document` would change, and the extension fields that it would keep.
fn differences(kind: Kind, before: &Value, document: &Value) -> (Vec<MemberDifference>, Vec<String>) {
    let mut after = document.as_object().cloned().unwrap_or_default();
    let carried = extension::carry_over(kind, Some(before), &mut after);
    let empty = Map::new();
    let mut differences = Vec::new();
    compare(&mut differences, "", before.as_object().unwrap_or(&empty), &after);
    (differences, carried.kept)
}

/// Members that the control plane sets or that name the resource itself.
const NOT_COMPARED: [&str; 3] = ["id", "create_time", "update_time"];

fn compare(
    differences: &mut Vec<MemberDifference>,
    path: &str,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
) {
    let names: Vec<&String> =
        after.keys().chain(before.keys().filter(|name| !after.contains_key(*name))).collect();
    for name in names {
        if path.is_empty() && NOT_COMPARED.contains(&name.as_str())
            || has_same_private_key(path, name, before, after)
        {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (before.get(name), after.get(name)) {
            (before, after) if before == after => {}
            (Some(Value::Object(before)), Some(Value::Object(after))) => {
                compare(differences, &path, before, after);
            }
            (before, after) => {
                let shown = |value: Option<&Value>| match value {
                    Some(_) if is_private_key(&path) => Some(Value::Null),
                    value => value.cloned(),
                };
                differences.push(MemberDifference { before: shown(before), after: shown(after), path });
            }
        }
    }
}

/// Whether a member holds a private key.
fn is_private_key(path: &str) -> bool {
    matches!(path, "key" | "keys" | "tls.client_key" | "upstream.tls.client_key")
}

/// The Admin API shows no private key of an ssl, and seals that of an upstream. A key belongs to
/// its certificate, so it is the same where the certificate is; where the files have none, the
/// stored one is kept.
fn has_same_private_key(
    path: &str,
    name: &str,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
) -> bool {
    let certificate = match (path, name) {
        ("", "key") => "cert",
        ("", "keys") => "certs",
        ("tls" | "upstream.tls", "client_key") if before.contains_key(name) && after.contains_key(name) => {
            "client_cert"
        }
        _ => return false,
    };
    before.contains_key(certificate) && before.get(certificate) == after.get(certificate)
}

#[cfg(test)]
mod tests {
    use model::Id;
    use proptest::prelude::*;

    use super::super::stored::StoredResource;
    use super::*;

    fn key(kind: Kind, id: &str) -> Key {
        Key::new(kind, Id::parse(id).unwrap())
    }

    fn stored(resources: &[(Kind, &str, Value)]) -> StoredResources {
        let resource = |(kind, id, value): &(Kind, &str, Value)| {
            (key(*kind, id), StoredResource { value: value.clone(), modified: 7 })
        };
        resources.iter().map(resource).collect()
    }

    fn desired(resources: &[(Kind, &str, Value)]) -> DesiredResources {
        DesiredResources {
            documents: resources.iter().map(|(kind, id, value)| (key(*kind, id), value.clone())).collect(),
            kinds: resources.iter().map(|(kind, ..)| *kind).collect(),
        }
    }

    fn update(kind: Kind, before: Value, after: Value) -> Vec<String> {
        let plan = ApplyPlan::of(desired(&[(kind, "1", after)]), &stored(&[(kind, "1", before)]), false);
        match plan.operations.first().map(|operation| &operation.change) {
            None => Vec::new(),
            Some(ApplyEffect::Update { differences, modified: 7, .. }) => {
                differences.iter().map(|difference| difference.path.clone()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn references_are_written_first_and_deleted_last() {
        let before = stored(&[
            (Kind::Upstream, "old", json!({})),
            (Kind::Route, "old", json!({"upstream_id": "old"})),
            (Kind::Service, "other", json!({})),
        ]);
        let after = desired(&[
            (Kind::Route, "new", json!({"upstream_id": "new"})),
            (Kind::Upstream, "new", json!({})),
            (Kind::Ssl, "new", json!({})),
        ]);
        let plan = ApplyPlan::of(after, &before, true);
        let order: Vec<String> = plan.operations.iter().map(|operation| operation.key.to_string()).collect();
        assert_eq!(order, ["ssls/new", "upstreams/new", "routes/new", "routes/old", "upstreams/old"]);
        assert_eq!((plan.counts(), plan.unchanged), ([3, 0, 2], 0), "services are not named by the files");
    }

    #[test]
    fn nothing_is_deleted_without_prune() {
        let before = stored(&[(Kind::Route, "1", json!({}))]);
        assert_eq!(
            ApplyPlan::of(desired(&[(Kind::Route, "2", json!({}))]), &before, false).counts(),
            [1, 0, 0]
        );
    }

    #[test]
    fn changed_members_are_named() {
        let before = json!({"id": "1", "uri": "/a", "create_time": 1, "upstream": {"nodes": {"a:1": 1}, "retries": 1}});
        assert!(update(Kind::Route, before.clone(), before.clone()).is_empty());
        let mut after = before.clone();
        after["upstream"]["nodes"] = json!({"a:1": 2});
        after["id"] = json!(1);
        after.as_object_mut().unwrap().shift_remove("uri");
        after["name"] = json!("x");
        assert_eq!(update(Kind::Route, before, after), ["upstream.nodes.a:1", "name", "uri"]);
    }

    #[test]
    fn a_private_key_is_that_of_its_certificate() {
        let before = json!({"cert": "C", "certs": ["D"], "snis": ["a"]});
        let with_keys = json!({"cert": "C", "certs": ["D"], "snis": ["a"], "key": "K", "keys": ["L"]});
        assert!(update(Kind::Ssl, before.clone(), with_keys).is_empty());
        assert!(update(Kind::Ssl, before.clone(), before.clone()).is_empty(), "a dump has no keys");
        let renewed = json!({"cert": "E", "certs": ["D"], "snis": ["a"], "key": "K", "keys": ["L"]});
        assert_eq!(update(Kind::Ssl, before, renewed), ["cert", "key"]);
        let sealed = json!({"tls": {"client_cert": "C", "client_key": "sealed"}});
        let clear = |cert: &str| json!({"tls": {"client_cert": cert, "client_key": "-----BEGIN"}});
        assert!(update(Kind::Upstream, sealed.clone(), clear("C")).is_empty());
        assert_eq!(update(Kind::Upstream, sealed, clear("D")), ["tls.client_cert", "tls.client_key"]);
        let added = update(Kind::Upstream, json!({"tls": {"client_cert": "C"}}), clear("C"));
        assert_eq!(added, ["tls.client_key"]);
    }

    #[test]
    fn no_private_key_is_printed() {
        let before = json!({"cert": "C"});
        let after = json!({"cert": "E", "key": "MC4CAQAwBQYDK2VwBCIEIA"});
        let plan =
            ApplyPlan::of(desired(&[(Kind::Ssl, "1", after)]), &stored(&[(Kind::Ssl, "1", before)]), false);
        let mut out = Vec::new();
        plan.print(&mut out, 10).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "~ ssls/1\n    cert: \"C\" -> \"E\"\n    key: (absent) -> (private key)\n\
                        plan: 0 to create, 1 to update, 0 to delete, 0 unchanged\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn unmentioned_extension_fields_are_kept() {
        let before = json!({"cert": "C", "client": {"ca": "A", "crl": "R"}});
        let after = json!({"cert": "C", "client": {"ca": "A"}});
        let plan = ApplyPlan::of(
            desired(&[(Kind::Ssl, "1", after)]),
            &stored(&[(Kind::Ssl, "1", before.clone())]),
            false,
        );
        assert_eq!((plan.operations.len(), plan.kept), (0, vec!["ssls/1: client.crl".to_owned()]));
        let removed = json!({"cert": "C", "client": {"ca": "A", "crl": null}});
        assert_eq!(update(Kind::Ssl, before, removed), ["client.crl"]);
    }

    #[test]
    fn operations_state_what_they_have_seen() {
        let before = stored(&[(Kind::Route, "1", json!({"uri": "/a"})), (Kind::Route, "3", json!({}))]);
        let after =
            desired(&[(Kind::Route, "1", json!({"uri": "/b"})), (Kind::Route, "2", json!({"uri": "/c"}))]);
        let batches = ApplyPlan::of(after, &before, true).batches();
        let expected = json!({"operations": [
            {"method": "PUT", "path": "/apisix/admin/routes/1", "body": {"uri": "/b"}, "if_match": "\"7\""},
            {"method": "PUT", "path": "/apisix/admin/routes/2", "body": {"uri": "/c"}, "if_none_match": "*"},
            {"method": "DELETE", "path": "/apisix/admin/routes/3", "if_match": "\"7\""},
        ]});
        assert_eq!(batches, [(3, expected)]);
        assert!(ApplyPlan::default().batches().is_empty());
    }

    #[test]
    fn batches_are_bounded_in_number_and_size() {
        let routes = |count: usize, size: usize| {
            let ids: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let all: Vec<_> =
                ids.iter().map(|id| (Kind::Route, id.as_str(), json!({"desc": "x".repeat(size)}))).collect();
            let batches = ApplyPlan::of(desired(&all), &StoredResources::new(), false).batches();
            batches.iter().map(|(count, _)| *count).collect::<Vec<_>>()
        };
        assert_eq!(routes(300, 1), [128, 128, 44]);
        assert_eq!(routes(3, 900_000), [1, 1, 1]);
        assert_eq!(routes(1, 3_000_000), [1], "the Admin API rejects it by its own limit");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]{1,2}", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Exactly the documents that differ are written.
        #[test]
        fn a_plan_writes_what_differs(before in json_value(), after in json_value()) {
            let document = |value: &Value| json!({"name": value});
            let plan = ApplyPlan::of(
                desired(&[(Kind::Upstream, "1", document(&after))]),
                &stored(&[(Kind::Upstream, "1", document(&before))]),
                true,
            );
            prop_assert_eq!(plan.operations.is_empty(), before == after);
        }
    }
}
