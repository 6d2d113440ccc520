//! Which keys differ between two versions of the file, and whether a running program applies them.
//!
//! The values of all keys are kept as keyed hashes, so that no secret is kept twice; those that
//! need an upgrade also as they are, to go on with them. Invariant: a key whose value differs is
//! reported, by its name alone.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use crate::schema::{Plane, Reload, read_keys};
use crate::tree::{YamlNode, YamlScalar, YamlValue};

/// One for the process, so that equal values have equal hashes.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The values of all keys of a file over the defaults.
#[derive(Clone, Default)]
pub struct KeyValues(Vec<KeyValue>);

#[derive(Clone)]
struct KeyValue {
    path: &'static str,
    hash: u64,
    /// Of a key that needs an upgrade.
    node: Option<YamlNode>,
}

impl PartialEq for KeyValues {
    fn eq(&self, other: &Self) -> bool {
        let hashes = |values: &Self| values.0.iter().map(|value| value.hash).collect::<Vec<_>>();
        hashes(self) == hashes(other)
    }
}

impl Eq for KeyValues {}

impl fmt::Debug for KeyValues {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyValues(..)")
    }
}

impl KeyValues {
    pub(crate) fn new(merged: &YamlNode) -> Self {
        let of_planes = read_keys(Plane::Data).zip(read_keys(Plane::Control));
        let values = of_planes.map(|((path, data), (_, control))| {
            let node = value(merged, path);
            let needs_upgrade = [data, control].contains(&Reload::Upgrade);
            let hash = HASHER.hash_one(node.map(HashedNode));
            KeyValue { path, hash, node: node.filter(|_| needs_upgrade).cloned() }
        });
        Self(values.collect())
    }

    fn get(&self, path: &str) -> Option<&KeyValue> {
        self.0.iter().find(|value| value.path == path)
    }

    /// Gives the keys of a user's tree that need an upgrade these values.
    pub(crate) fn keep_in(&self, user: &mut YamlNode, defaults: &YamlNode, plane: Plane) {
        for (path, _) in read_keys(plane).filter(|(_, reload)| *reload == Reload::Upgrade) {
            let Some(value) = self.get(path) else { continue };
            let node = value.node.clone().or_else(|| {
                // A null deletes the default.
                let null =
                    || YamlNode { line: 0, value: YamlValue::Scalar(YamlScalar::plain(String::new())) };
                defaults.get_path(path).map(|_| null())
            });
            user.set_path(path, node);
        }
    }

    /// The keys of `newer` whose values differ from these.
    pub fn changed_keys(&self, newer: &Self, plane: Plane) -> ChangedKeys {
        let mut changed = ChangedKeys::default();
        for (path, reload) in read_keys(plane) {
            if self.get(path).map(|value| value.hash) == newer.get(path).map(|value| value.hash) {
                continue;
            }
            let keys = match reload {
                Reload::Hot => &mut changed.hot,
                Reload::Upgrade => &mut changed.upgrade,
                Reload::Unused => continue,
            };
            let shown = shown(path);
            if keys.last() != Some(&shown) {
                keys.push(shown);
            }
        }
        changed
    }
}

/// The value of a row of the schema. A row of a list's element has the list, where there is one.
fn value<'a>(merged: &'a YamlNode, path: &str) -> Option<&'a YamlNode> {
    match path.split_once("[]") {
        None => merged.get_path(path),
        Some((list, _)) => merged.get_path(list).filter(|node| !matches!(node.value, YamlValue::Map(_))),
    }
}

/// A value without its lines; the order of a map's keys means nothing.
struct HashedNode<'a>(&'a YamlNode);

impl Hash for HashedNode<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0.value {
            YamlValue::Scalar(scalar) => (0, self.0.is_null(), &scalar.text).hash(state),
            YamlValue::List(items) => {
                (1, items.len()).hash(state);
                items.iter().for_each(|item| HashedNode(item).hash(state));
            }
            YamlValue::Map(entries) => {
                (2, entries.len()).hash(state);
                let mut entries: Vec<_> = entries.iter().map(|(key, node)| (&key.text, node)).collect();
                entries.sort_by_key(|(key, _)| *key);
                entries.iter().for_each(|(key, node)| (key, HashedNode(node)).hash(state));
            }
        }
    }
}

/// The keys with other values, those that the program does not use left out. Elements of lists are
/// reported as the list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangedKeys {
    /// Keys that a running program applies.
    pub hot: Vec<&'static str>,
    /// Keys that need an upgrade.
    pub upgrade: Vec<&'static str>,
}

impl ChangedKeys {
    /// The result of a reload, in words.
    pub fn describe(&self, plane: Plane) -> String {
        let mut text = match self.hot.as_slice() {
            [] if self.upgrade.is_empty() => {
                "no setting has changed; the files that the settings name were read again".to_owned()
            }
            [] => "the files that the settings name were read again".to_owned(),
            keys => format!("applied {}", keys.join(", ")),
        };
        if !self.upgrade.is_empty() {
            let (program, keys) = (plane.program(), self.upgrade.join(", "));
            text.push_str(&format!(
                "; these need an upgrade (`{program} upgrade`), and are as before: {keys}"
            ));
        }
        text
    }
}

/// The keys whose changes need an upgrade of this program.
pub fn upgrade_keys(plane: Plane) -> Vec<&'static str> {
    let mut keys: Vec<_> = read_keys(plane)
        .filter(|(_, reload)| *reload == Reload::Upgrade)
        .map(|(path, _)| shown(path))
        .collect();
    keys.dedup();
    keys
}

/// Without the part within a list's element.
fn shown(path: &'static str) -> &'static str {
    path.split_once("[]").map_or(path, |(list, _)| list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{merge, parse};

    fn values(text: &str) -> KeyValues {
        let tree = |text| parse(text).unwrap().unwrap();
        KeyValues::new(&merge(&tree(crate::DEFAULTS), &tree(text)))
    }

    /// A file with only this key, at a value that is no default.
    fn only(path: &str) -> String {
        let parts: Vec<_> = path.split('.').collect();
        let mut text = "changed".to_owned();
        for part in parts.iter().rev() {
            text = match part.strip_suffix("[]") {
                Some(list) => format!("{{{list}: [{text}]}}"),
                None => format!("{{{part}: {text}}}"),
            };
        }
        text
    }

    #[test]
    fn a_reload_names_what_it_changed_and_what_it_did_not() {
        let changed = |hot: &[&'static str], upgrade: &[&'static str]| ChangedKeys {
            hot: hot.to_vec(),
            upgrade: upgrade.to_vec(),
        };
        assert_eq!(
            changed(&["a.b", "c"], &["d", "e"]).describe(Plane::Control),
            "applied a.b, c; these need an upgrade (`controlplane upgrade`), and are as before: d, e"
        );
        let files = "the files that the settings name were read again";
        assert_eq!(changed(&[], &[]).describe(Plane::Data), format!("no setting has changed; {files}"));
        assert!(changed(&[], &["d"]).describe(Plane::Data).starts_with(&format!("{files}; these need")));
    }

    #[test]
    fn every_key_is_seen_to_change() {
        let before = values("{}");
        for plane in [Plane::Data, Plane::Control] {
            for (path, reload) in read_keys(plane) {
                let changed = before.changed_keys(&values(&only(path)), plane);
                let (reported, other) = match reload {
                    Reload::Upgrade => (&changed.upgrade, &changed.hot),
                    Reload::Hot => (&changed.hot, &changed.upgrade),
                    Reload::Unused => (&changed.upgrade, &changed.upgrade),
                };
                let is_reported = reported.contains(&shown(path));
                assert_eq!(is_reported, reload != Reload::Unused, "{path}: {changed:?}");
                assert!(!other.contains(&shown(path)), "{path}: {changed:?}");
            }
        }
    }

    #[test]
    fn a_list_has_one_class_of_changes() {
        for plane in [Plane::Data, Plane::Control] {
            for (path, reload) in read_keys(plane) {
                let other = read_keys(plane).find(|(other, _)| shown(other) == shown(path)).unwrap();
                assert_eq!(other.1, reload, "{path} and {}", other.0);
            }
        }
    }

    #[test]
    fn an_upgrade_takes_no_part_of_a_list() {
        for plane in [Plane::Data, Plane::Control] {
            let mut upgrade = read_keys(plane).filter(|(_, reload)| *reload == Reload::Upgrade);
            assert_eq!(upgrade.find(|(path, _)| path.contains("[]")), None);
        }
    }

    #[test]
    fn keys_that_need_an_upgrade_keep_their_values() {
        let tree = |text: &str| parse(text).unwrap().unwrap();
        let defaults = tree(crate::DEFAULTS);
        let files = ["{}".to_owned(), "apisix: {enable_http2: null, status: {port: 7}}".to_owned()];
        let every: Vec<String> = read_keys(Plane::Data).map(|(path, _)| only(path)).collect();
        let planes = [Plane::Data, Plane::Control].into_iter();
        for (plane, old) in planes.flat_map(|plane| files.iter().map(move |old| (plane, old))) {
            let old = KeyValues::new(&merge(&defaults, &tree(old)));
            for new in &every {
                let mut user = tree(new);
                let found = old.changed_keys(&KeyValues::new(&merge(&defaults, &user)), plane);
                old.keep_in(&mut user, &defaults, plane);
                let kept = old.changed_keys(&KeyValues::new(&merge(&defaults, &user)), plane);
                assert_eq!((kept.hot, kept.upgrade.len()), (found.hot, 0), "{new}");
            }
        }
    }

    #[test]
    fn every_key_is_used_by_a_program() {
        for ((path, data), (_, control)) in read_keys(Plane::Data).zip(read_keys(Plane::Control)) {
            assert!(data != Reload::Unused || control != Reload::Unused, "{path}");
        }
    }

    #[test]
    fn lines_and_the_order_of_keys_do_not_matter() {
        let one = values(
            "apisix:\n  status: {ip: 127.0.0.1, port: 1}\n  ssl: {listen: [{ip: 1.1.1.1, port: 2}]}\n",
        );
        let two =
            values("\napisix: {ssl: {listen: [{port: 2, ip: 1.1.1.1}]}, status: {port: 1, ip: 127.0.0.1}}\n");
        assert_eq!(one.changed_keys(&two, Plane::Data), ChangedKeys::default());
        let three =
            values("apisix: {ssl: {listen: [{port: 3, ip: 1.1.1.1}]}, status: {port: 1, ip: 127.0.0.2}}\n");
        let changed = one.changed_keys(&three, Plane::Data);
        assert_eq!((changed.hot, changed.upgrade), (vec!["apisix.ssl.listen"], vec!["apisix.status.ip"]));
    }

    #[test]
    fn debug_output_has_no_hash() {
        assert_eq!(format!("{:?}", values("{}")), "KeyValues(..)");
    }
}
