//! `dump`: all resources in the form that `apply` reads.
//!
//! Private keys of ssls are not readable, so the files have none; `apply` keeps the stored ones.
//! Invariant: the resources are those of one revision, or the command says that they are not.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use model::{Key, Kind};
use serde_json::{Map, Value};
use telemetry::stdout::CommandOutput;

use super::client::ApiClient;
use super::desired::has_document_extension;
use super::stored::{self, StoredResources};
use super::{AdminCliError, EXIT_SUCCESS, note};
use crate::cli::rules_file;

/// Readings until no write comes between.
const READINGS_MAX: usize = 3;

const KEYS_NOTE: &str = "private keys of ssls are not in the dump, since the Admin API does not show them; apply keeps the stored ones while the \
                         certificates stay (`controlplane backup` copies everything)";

/// Write all resources in the form that apply reads.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin dump > rules.yaml
  controlplane admin dump --to rules/               one file a resource: rules/routes/1.yaml
  controlplane admin dump --to rules/ --overwrite && git -C rules diff

Private keys of ssls cannot be read, so they are left out. apply keeps the stored ones.")]
pub(crate) struct DumpArgs {
    /// Folder to write; - is standard output
    #[arg(long, value_name = "FOLDER", default_value = "-")]
    to: PathBuf,
    /// Replace the files of an existing folder, and remove those of resources that are gone
    #[arg(long, requires = "to")]
    overwrite: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: DumpForm,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum DumpForm {
    #[default]
    Yaml,
    Json,
}

/// Why there is no dump, or only a part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    #[error("--to {folder}: there are files in {found}; --overwrite replaces them", folder = .folder.display(), found = .found.display())]
    Exists { folder: PathBuf, found: PathBuf },
    #[error(
        "{folder} is a symbolic link: its files are not replaced. Remove the link, or name another folder with --to",
        folder = .folder.display()
    )]
    Symlink { folder: PathBuf },
    #[error("{path}: {error}", path = .path.display())]
    File { path: PathBuf, error: io::Error },
}

pub(super) async fn dump(
    client: &mut ApiClient,
    args: &DumpArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let resources: Vec<_> = read_consistent(client)
        .await?
        .into_iter()
        .map(|(key, resource)| (key, readable(resource.value)))
        .collect();
    if resources.iter().any(|(key, _)| key.kind == Kind::Ssl) {
        note(&KEYS_NOTE);
    }
    if args.to == Path::new("-") {
        out.write_all(one_file(&resources, args.output).as_bytes())?;
    } else {
        write_folder(args, &resources)?;
        writeln!(out, "{} resources in {}", resources.len(), args.to.display())?;
    }
    Ok(EXIT_SUCCESS)
}

async fn read_consistent(client: &mut ApiClient) -> Result<StoredResources, AdminCliError> {
    let mut before = stored::revision(client).await?;
    let mut reading = 1;
    loop {
        let resources = stored::read(client, &Kind::ALL).await?;
        let after = stored::revision(client).await?;
        if before == after {
            return Ok(resources);
        }
        if reading == READINGS_MAX {
            note(
                &"warning: resources are being changed: the dump may have references to what it does not have",
            );
            return Ok(resources);
        }
        (before, reading) = (after, reading + 1);
    }
}

/// A resource without the members that the control plane sets.
fn readable(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.shift_remove("create_time");
        members.shift_remove("update_time");
    }
    value
}

/// A list for every kind, so that `apply --prune` of the file restores exactly this.
fn one_file(resources: &[(Key, Value)], form: DumpForm) -> String {
    let of_kind = |kind: Kind| -> Vec<Value> {
        let items = resources.iter().filter(|(key, _)| key.kind == kind);
        items.map(|(_, value)| value.clone()).collect()
    };
    match form {
        DumpForm::Json => {
            let lists = Kind::ALL.iter().map(|kind| (kind.plural().to_owned(), of_kind(*kind).into()));
            format!("{:#}\n", Value::Object(lists.collect::<Map<_, _>>()))
        }
        DumpForm::Yaml => {
            let mut text = format!("# {KEYS_NOTE}\n");
            for kind in Kind::ALL {
                rules_file::render_list(&mut text, kind.plural(), &of_kind(kind));
            }
            text.push_str("#END\n");
            text
        }
    }
}

fn write_folder(args: &DumpArgs, resources: &[(Key, Value)]) -> Result<(), DumpError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| DumpError::File { path, error }
    };
    for kind in Kind::ALL {
        let folder = args.to.join(kind.plural());
        if folder.is_symlink() {
            return Err(DumpError::Symlink { folder });
        }
        for old in document_files(&folder).map_err(failed(&folder))? {
            if !args.overwrite {
                return Err(DumpError::Exists { folder: args.to.clone(), found: folder });
            }
            fs::remove_file(&old).map_err(failed(&old))?;
        }
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
    }
    for (key, value) in resources {
        let (extension, text) = match args.output {
            DumpForm::Yaml => ("yaml", rules_file::render_value(value)),
            DumpForm::Json => ("json", format!("{value:#}\n")),
        };
        let path = args.to.join(key.kind.plural()).join(format!("{}.{extension}", key.id));
        write_file(&path, &text).map_err(failed(&path))?;
    }
    Ok(())
}

/// Sealed private keys of upstreams are in it: for its owner alone.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// The document files of a folder; none if there is no folder.
fn document_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    Ok(paths?.into_iter().filter(|path| has_document_extension(path)).collect())
}

#[cfg(test)]
mod tests {
    use model::Id;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::desired::DesiredResources;
    use super::super::plan::ApplyPlan;
    use super::super::stored::StoredResource;
    use super::*;

    fn key(kind: Kind, id: &str) -> Key {
        Key::new(kind, Id::parse(id).unwrap())
    }

    fn args(to: &Path, overwrite: bool, output: DumpForm) -> DumpArgs {
        DumpArgs { to: to.to_owned(), overwrite, output }
    }

    #[test]
    fn an_existing_folder_is_replaced_only_with_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path();
        let route = |id: &str| (key(Kind::Route, id), json!({"id": id}));
        write_folder(&args(to, false, DumpForm::Yaml), &[route("1"), route("2")]).unwrap();
        fs::write(to.join("routes/README.md"), "mine").unwrap();
        let error = write_folder(&args(to, false, DumpForm::Yaml), &[route("1")]).unwrap_err();
        assert!(error.to_string().contains("--overwrite"), "{error}");
        write_folder(&args(to, true, DumpForm::Json), &[route("1")]).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(to.join("routes")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["1.json", "README.md"]);
    }

    fn document() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[a-z]{0,6}",
            "\\PC{0,8}",
            Just("${{NAME}} $env://X".to_owned()),
            Just("-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n".to_owned()),
            Just("yes".to_owned()),
            Just("#END".to_owned()),
        ];
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z_.:0-9-]{1,6}", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        (prop::collection::btree_map("[a-z_]{2,6}", value, 0..4), any::<u32>()).prop_map(|(members, time)| {
            let mut members: Map<String, Value> = members.into_iter().collect();
            members.insert("update_time".to_owned(), time.into());
            Value::Object(members)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is stored, in every form.
        #[test]
        fn apply_of_a_dump_changes_nothing(
            documents in prop::collection::vec((0..Kind::ALL.len(), document()), 0..5),
        ) {
            let mut stored = StoredResources::new();
            for (number, (kind, mut value)) in documents.into_iter().enumerate() {
                let id = format!("a{number}");
                value["id"] = json!(id);
                stored.insert(key(Kind::ALL[kind], &id), StoredResource { value, modified: 7 });
            }
            let resources: Vec<_> =
                stored.iter().map(|(key, resource)| (key.clone(), readable(resource.value.clone()))).collect();
            let folder = tempfile::tempdir().unwrap();
            for form in [DumpForm::Yaml, DumpForm::Json] {
                let extension = if form == DumpForm::Yaml { "yaml" } else { "json" };
                let file = folder.path().join(format!("all.{extension}"));
                fs::write(&file, one_file(&resources, form)).unwrap();
                let to = folder.path().join(extension);
                write_folder(&args(&to, false, form), &resources).unwrap();
                for path in [file, to] {
                    let desired = DesiredResources::read(std::slice::from_ref(&path)).unwrap();
                    prop_assert_eq!(desired.kinds.len(), Kind::ALL.len());
                    let plan = ApplyPlan::of(desired, &stored, true);
                    prop_assert!(plan.operations.is_empty(), "{:?}: {:?}", path, plan);
                    prop_assert_eq!(plan.unchanged, stored.len());
                }
            }
        }
    }
}
