//! `watch`: prints changes of resources as they come.
//!
//! Asks for the newest revision every second, and reads the lists when it is another one; a request
//! that waits for the next revision would save little and hold a connection. Several writes of a
//! resource within a second are one line. Invariant: a change is printed once, also one
//! that comes while the lists are read or the control plane is away.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use model::{Key, Kind};
use pki::format_utc;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use telemetry::stdout::CommandOutput;

use super::client::ApiClient;
use super::resource_name::{ResourceName, ResourceNameError};
use super::stored::{self, StoredResources};
use super::{AdminCliError, EXIT_SUCCESS, note, suggestions, table};

const INTERVAL: Duration = Duration::from_secs(1);

/// Print changes as they come.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane admin watch
  controlplane admin watch ssls -o json | jq .key

It looks once a second: several writes of a resource within one are one line. Ends with Ctrl-C. A control plane that is away is waited for; what changed meanwhile is printed then.")]
pub(crate) struct WatchArgs {
    /// Only this kind, such as routes
    #[arg(value_parser = suggestions::kinds(), hide_possible_values = true)]
    kind: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: LineForm,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LineForm {
    /// For people
    #[default]
    Table,
    /// For programs: one object a line
    Json,
}

/// What happened to a resource between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchEvent {
    Created,
    Updated,
    Deleted,
}

impl WatchEvent {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

pub(super) async fn watch(
    client: &mut ApiClient,
    args: &WatchArgs,
    out: &mut CommandOutput,
) -> Result<u8, AdminCliError> {
    let kinds = match &args.kind {
        None => Kind::ALL.to_vec(),
        Some(text) => {
            let kind = ResourceName::parse(std::slice::from_ref(text))?.kind;
            vec![kind.ok_or_else(|| ResourceNameError::Empty(text.clone()))?]
        }
    };
    // The first reading must succeed: it shows that the flags are right.
    let mut revision = stored::revision(client).await?;
    let mut known = stored::read(client, &kinds).await?;
    note(&format_args!("watching {} at revision {revision}", client.address()));
    let mut lost = false;
    while !out.has_failed() {
        tokio::time::sleep(INTERVAL).await;
        match read_changed(client, &kinds, revision).await {
            Ok(reading) => {
                if std::mem::take(&mut lost) {
                    note(&"connected again");
                }
                let Some((newest, resources)) = reading else { continue };
                print_changes(out, &known, &resources, args.output)?;
                (revision, known) = (newest, resources);
            }
            Err(AdminCliError::Client(error)) if error.is_transient() => {
                if !std::mem::replace(&mut lost, true) {
                    note(&format_args!("lost, reconnecting: {error}"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(EXIT_SUCCESS)
}

/// The resources at a revision other than `known`. The revision is read first, so a change that
/// comes while the lists are read is read again.
async fn read_changed(
    client: &mut ApiClient,
    kinds: &[Kind],
    known: u64,
) -> Result<Option<(u64, StoredResources)>, AdminCliError> {
    let revision = stored::revision(client).await?;
    if revision == known {
        return Ok(None);
    }
    Ok(Some((revision, stored::read(client, kinds).await?)))
}

fn print_changes(
    out: &mut dyn Write,
    before: &StoredResources,
    now: &StoredResources,
    form: LineForm,
) -> io::Result<()> {
    let time = format_utc(UnixTime::now());
    for (event, key, value) in changes(before, now) {
        match form {
            LineForm::Table => {
                writeln!(out, "{time}  {}  {key}  {}", event.as_str(), table::summary(value))?;
            }
            LineForm::Json => {
                let line =
                    json!({"time": time, "event": event.as_str(), "key": key.to_string(), "value": value});
                writeln!(out, "{line}")?;
            }
        }
    }
    out.flush()
}

fn changes<'a>(
    before: &'a StoredResources,
    now: &'a StoredResources,
) -> Vec<(WatchEvent, &'a Key, &'a Value)> {
    let deleted = before.iter().filter(|(key, _)| !now.contains_key(*key));
    let deleted = deleted.map(|(key, resource)| (WatchEvent::Deleted, key, &resource.value));
    let written = now.iter().filter_map(|(key, resource)| match before.get(key) {
        None => Some((WatchEvent::Created, key, &resource.value)),
        Some(before) if before.modified != resource.modified => {
            Some((WatchEvent::Updated, key, &resource.value))
        }
        Some(_) => None,
    });
    deleted.chain(written).collect()
}

#[cfg(test)]
mod tests {
    use model::Id;

    use super::super::stored::StoredResource;
    use super::*;

    fn stored(resources: &[(&str, u64)]) -> StoredResources {
        let resource = |(id, modified): &(&str, u64)| {
            let key = Key::new(Kind::Route, Id::parse(id).unwrap());
            (key, StoredResource { value: json!({"uri": format!("/{id}")}), modified: *modified })
        };
        resources.iter().map(resource).collect()
    }

    #[test]
    fn changes_are_found_by_their_index() {
        let (before, now) =
            (stored(&[("a", 1), ("b", 2), ("c", 3)]), stored(&[("b", 2), ("c", 4), ("d", 5)]));
        let found: Vec<_> = changes(&before, &now)
            .iter()
            .map(|(event, key, _)| format!("{} {key}", event.as_str()))
            .collect();
        assert_eq!(found, ["deleted routes/a", "updated routes/c", "created routes/d"]);
        let mut out = Vec::new();
        print_changes(&mut out, &before, &now, LineForm::Table).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("UTC  updated  routes/c  /c\n"));
        let mut out = Vec::new();
        print_changes(&mut out, &before, &now, LineForm::Json).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["value"]), (&json!("created"), &json!({"uri": "/d"})));
    }
}
