//! The resources that the files of `apply` and `diff` state.
//!
//! A file has lists under `routes:`, `ssls:`, ... (the form of `apisix.yaml`, in YAML or JSON); a
//! folder has such files, and folders named by kinds with one resource a file, whose name is its
//! id. Invariant: what cannot be read is an error, never left out, so that no plan takes it for
//! something to delete; that a kind has no resources must be stated (`routes: []`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use model::{Key, Kind, redact};
use serde_json::{Value, json};

use super::input::{self, InputError};
use crate::cli::rules_file::{self, MissingId};

/// Members that the control plane sets.
const SET_BY_SERVER: [&str; 2] = ["create_time", "update_time"];

/// The stated resources.
#[derive(Debug, Default, PartialEq)]
pub(super) struct DesiredResources {
    /// Without the members that the control plane sets.
    pub documents: BTreeMap<Key, Value>,
    /// The kinds that the files name, with or without resources: `apply --prune` deletes others of
    /// these kinds only.
    pub kinds: BTreeSet<Kind>,
}

/// Why the files state nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DesiredError {
    #[error("{0}")]
    Input(#[from] InputError),
    #[error("{path}: {error}", path = .path.display())]
    Folder { path: PathBuf, error: std::io::Error },
    #[error("{path}: {problem}", path = .path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("{path}: {key} is in another file, too", path = .path.display())]
    Twice { path: PathBuf, key: Key },
    #[error(
        "{}: there are no lists of resources and no folders named by a kind. To state that there are no routes, write routes: []",
        shown(.0)
    )]
    Empty(Vec<PathBuf>),
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The names that lists and folders may have.
fn kind_names() -> String {
    Kind::ALL.map(Kind::plural).join(", ")
}

impl DesiredResources {
    /// Reads files, folders, or standard input (`-`).
    ///
    /// # Errors
    /// [`DesiredError`] with the file and the problem.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, DesiredError> {
        let mut desired = Self::default();
        for path in paths {
            if path.is_dir() { desired.add_folder(path)? } else { desired.add_file(path)? }
        }
        if desired.kinds.is_empty() {
            return Err(DesiredError::Empty(paths.to_owned()));
        }
        Ok(desired)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<(), DesiredError> {
        for (path, name) in entries(folder)? {
            if !path.is_dir() {
                if has_document_extension(&path) {
                    self.add_file(&path)?;
                }
                continue;
            }
            let kind = Kind::from_plural(&name).ok_or_else(|| {
                let problem = format!("a folder is named by a kind: {}", kind_names());
                DesiredError::Invalid { path: path.clone(), problem }
            })?;
            self.add_kind_folder(kind, &path)?;
        }
        Ok(())
    }

    /// A folder with one resource a file. An empty one states that there are none.
    fn add_kind_folder(&mut self, kind: Kind, folder: &Path) -> Result<(), DesiredError> {
        let invalid = |path: &Path, problem: &str| DesiredError::Invalid {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let entries = entries(folder)?;
        if let Some((path, _)) = entries.iter().find(|(path, _)| path.is_dir()) {
            return Err(invalid(
                path,
                "a folder within a folder of resources is not read: move its files up",
            ));
        }
        let (documents, others): (Vec<_>, Vec<_>) =
            entries.iter().partition(|(path, _)| has_document_extension(path));
        if let ([], [(path, _), ..]) = (documents.as_slice(), others.as_slice()) {
            let problem = "it is not read, and no file beside it is: resources are in files that end in .json, .yaml or \
                           .yml. To state that there are none, leave the folder empty";
            return Err(invalid(path, problem));
        }
        self.kinds.insert(kind);
        documents.iter().try_for_each(|(path, _)| self.add_resource_file(kind, path))
    }

    /// A file with lists.
    fn add_file(&mut self, path: &Path) -> Result<(), DesiredError> {
        let rules = input::read(path)?;
        self.add_rules(path, rules)
    }

    /// A file with one resource, named by its id.
    fn add_resource_file(&mut self, kind: Kind, path: &Path) -> Result<(), DesiredError> {
        let mut document = input::read(path)?;
        let invalid =
            |problem: &str| DesiredError::Invalid { path: path.to_owned(), problem: problem.to_owned() };
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let members = document.as_object_mut().ok_or_else(|| invalid("expected one resource, an object"))?;
        let id = members.entry("id").or_insert_with(|| name.into());
        let is_name = id.as_str() == Some(name) || id.as_number().is_some_and(|id| id.to_string() == name);
        if !is_name {
            return Err(invalid("the file is named by the id of its resource, and its id is another"));
        }
        self.add_rules(path, json!({kind.plural(): [document]}))
    }

    fn add_rules(&mut self, path: &Path, rules: Value) -> Result<(), DesiredError> {
        let invalid = |problem: String| DesiredError::Invalid {
            path: path.to_owned(),
            problem: redact(&problem).into_owned(),
        };
        check_lists(&rules).map_err(invalid)?;
        let file = rules_file::parse(rules, MissingId::Rejected).map_err(invalid)?;
        self.kinds.extend(file.kinds);
        for (key, mut document) in file.documents {
            if let Some(members) = document.as_object_mut() {
                SET_BY_SERVER.iter().for_each(|member| {
                    members.shift_remove(*member);
                });
            }
            if self.documents.insert(key.clone(), document).is_some() {
                return Err(DesiredError::Twice { path: path.to_owned(), key });
            }
        }
        Ok(())
    }
}

/// Rejects a list that is missing behind its name, or has a name that no list has.
fn check_lists(rules: &Value) -> Result<(), String> {
    for (name, list) in rules.as_object().into_iter().flatten() {
        let is_known = Kind::from_plural(name).is_some() || name == rules_file::EXTENSIONS;
        if !is_known && list.as_array().is_none_or(|list| !list.is_empty()) {
            let nearest = Kind::ALL.into_iter().find(|kind| kind.singular() == name);
            let hint = nearest.map_or_else(String::new, |kind| format!(" (write {})", kind.plural()));
            return Err(format!("{name}: no list has this name{hint}; there are {}", kind_names()));
        }
        if list.is_null() {
            return Err(format!(
                "{name}: nothing follows it. To state that there are none, write {name}: []"
            ));
        }
    }
    Ok(())
}

/// The paths and names in a folder, sorted; hidden ones that are no documents are left out.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>, DesiredError> {
    let failed = |error| DesiredError::Folder { path: folder.to_owned(), error };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // An id may begin with a dot.
        if !name.starts_with('.') || has_document_extension(&path) {
            found.push((path, name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file of a folder holds documents; others (a README) may lie beside them.
pub(super) fn has_document_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    matches!(extension.as_deref(), Some("json" | "yaml" | "yml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<DesiredResources, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        DesiredResources::read(&[folder.path().to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn files_and_folders_state_the_same() {
        let lists = "routes:\n  - id: 1\n    uri: /a\n    create_time: 5\nupstreams: []\n#END\n";
        let one = read(&[("all.yaml", lists)]).unwrap();
        let folder = read(&[
            ("routes/1.json", r#"{"id": 1, "uri": "/a", "update_time": 7}"#),
            ("routes/README.md", "not read"),
            (".git/config.yaml", "not: read"),
            ("upstreams/.keep", ""),
        ])
        .unwrap();
        assert_eq!(one, folder);
        let (key, document) = one.documents.first_key_value().unwrap();
        assert_eq!((key.to_string().as_str(), document), ("routes/1", &json!({"id": 1, "uri": "/a"})));
        assert_eq!(one.kinds, BTreeSet::from([Kind::Route, Kind::Upstream]));
        let named = read(&[("routes/a-b.yaml", "uri: /\n")]).unwrap();
        assert_eq!(named.documents.values().next(), Some(&json!({"uri": "/", "id": "a-b"})));
    }

    #[test]
    fn extension_fields_may_stand_in_their_own_list() {
        let text = "routes:\n  - id: 1\n    uri: /a\ncountersign_extensions:\n  - resource: routes/1\n    client_identity: {allow: []}\n";
        let document = read(&[("a.yaml", text)]).unwrap().documents.pop_first().unwrap().1;
        assert_eq!(document["client_identity"], json!({"allow": []}));
    }

    #[test]
    fn problems_name_the_file() {
        for (files, expected) in [
            (&[("a.yaml", "routes:\n  - uri: /a\n")][..], "routes[1].id: the entry has no id"),
            (&[("a.json", r#"{"routes": [{"id": 1}, {"id": "1"}]}"#)], "routes/1 is there already"),
            (&[("a.json", r#"{"routes": [{"id": 1}]}"#), ("routes/1.json", "{}")], "in another file, too"),
            (
                &[("a.json", r#"{"consumers": [{"username": "x"}]}"#)],
                "consumers: no list has this name; there are",
            ),
            (&[("a.json", "[]")], "expected lists"),
            (&[("a.yaml", "- {id: 1}\n")], "expected lists"),
            (&[("a.yaml", "null")], "nothing in it"),
            (&[("services/1.yaml", "")], "services/1.yaml: there is nothing in it"),
            (&[("a.json", "null")], "expected lists"),
            (
                &[("a.yaml", "routes:\nupstreams: []\n")],
                "routes: nothing follows it. To state that there are none, write routes: []",
            ),
            (&[("a.json", r#"{"ssls": null}"#)], "write ssls: []"),
            (&[("a.yaml", "routes: []\ncountersign_extensions:\n")], "write countersign_extensions: []"),
            (&[("a.yaml", "route:\n  - {id: 1}\n")], "route: no list has this name (write routes)"),
            (&[("a.yaml", "Routes:\n")], "Routes: no list has this name; there are ssls, "),
            (&[("a.yaml", "routes: {}\n")], "routes: expected a list"),
            (&[("a.yaml", "routes: []\n---\nupstreams: []\n")], "a.yaml:2"),
            (&[("a.yaml", "# later\n"), ("b.yaml", "routes: []")], "a.yaml: there is nothing in it"),
            (&[("a.yaml", "{}"), ("b.json", "{}")], "no lists of resources and no folders"),
            (&[], "no lists of resources"),
            (&[("README.md", "routes: []"), ("routes.txt", "")], "no lists of resources"),
            (&[("routes/1.txt", ""), ("routes/README", "")], "leave the folder empty"),
            (
                &[("routes/1.yaml", "uri: /"), ("routes/prod/2.yaml", "uri: /")],
                "within a folder of resources",
            ),
            (&[("route/1.json", "{}")], "a folder is named by a kind"),
            (&[("routes/1.json", "[]")], "expected one resource"),
            (&[("routes/1.json", r#"{"id": "2"}"#)], "its id is another"),
            (&[("routes/a b.json", "{}")], "routes[1].id"),
        ] {
            let error = read(files).unwrap_err();
            assert!(error.contains(expected) && error.contains("/"), "{expected}: {error}");
        }
        let other = read(&[("a.json", r#"{"consumers": [], "routes": []}"#)]).unwrap();
        assert_eq!(
            other.kinds,
            BTreeSet::from([Kind::Route]),
            "an empty list of another name states nothing"
        );
        assert_eq!(read(&[("routes/1.YAML", "uri: /")]).unwrap().documents.len(), 1);
        let key = "-----BEGIN PRIVATE KEY-----\\nMC4CAQAwBQYDK2VwBCIEIA\\n-----END PRIVATE KEY-----";
        let error = read(&[("a.json", &format!(r#"{{"ssls": [{{"id": "{key}"}}]}}"#))]).unwrap_err();
        assert!(!error.contains("MC4C"), "{error}");
    }
}
