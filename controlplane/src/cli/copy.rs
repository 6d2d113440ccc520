//! `controlplane copy`: copies all documents of one store to another, or from and to the rules of
//! an APISIX in a file.
//!
//! `location` opens and reads both sides; `plan` computes the differences; the documents are
//! written in the order of their dependencies, each with the planned precondition; then both sides
//! are read again and compared. A second run writes only what is missing.
//!
//! Invariants: nothing is written before everything was read without a conflict; documents that
//! only the target has stay. A document changes in two ways only: a private key in clear is sealed
//! for a store, and extension fields (`model::extension`) that only the target has are kept,
//! because the source may not know them.

mod location;
mod plan;
mod yaml;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use location::{Location, LocationContent, LocationOpener, OpenLocation};
use model::{Key, Kind};
use pki::Keyring;
use plan::{Document, Plan};

use crate::compile;
use crate::publish::DeniedNodes;
use crate::publish::deny_list::DenyListError;
use crate::store::{Mutation, Precondition, Store, StoreError};

/// The embedded store commits concurrent writes with one fsync.
const CONCURRENT_WRITES: usize = 64;
/// Lines per kind of message; the rest is counted.
const LINES_MAX: usize = 20;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "Places:
  embedded         the embedded store that the configuration names (countersign.store.path)
  embedded:PATH    the embedded store in this file
  etcd             the cluster that the configuration names (deployment.etcd)
  etcd:FILE        the cluster that another configuration file names
  yaml:PATH        an APISIX's rules in a file (apisix.yaml)

Examples:
  controlplane copy --from embedded --to etcd --dry-run      what would be written, and what is in the way
  controlplane copy --from embedded --to etcd                run it again after a failure: it goes on where it was
  controlplane copy --from etcd --to yaml:backup.yaml        a copy to read, and to go back to
  controlplane copy --from yaml:apisix.yaml --to embedded    the rules of a standalone APISIX
  controlplane copy --from etcd:old.yaml --to etcd           from one cluster or prefix to another

An embedded store is opened by one program at a time: stop its control plane first. Private keys stay sealed as they are, so both sides need the
same apisix.data_encryption.keyring.";

/// Copy all documents from one store to another.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CopyArgs {
    /// Where the documents are
    #[arg(long, value_name = "PLACE")]
    from: Location,
    /// Where they go
    #[arg(long, value_name = "PLACE")]
    to: Location,
    /// Replace documents of the target that differ; a file is replaced as a whole
    #[arg(long)]
    overwrite: bool,
    /// Print what would be done, and write no document
    #[arg(long)]
    dry_run: bool,
}

/// Why the documents were not copied, or only a part of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("{0}")]
    Configuration(#[from] conf::ConfError),
    #[error("apisix.data_encryption.keyring: {0}")]
    Keyring(#[from] pki::KeyringError),
    #[error("{0}")]
    KeyringFile(#[from] conf::KeyringFileError),
    #[error("--from {place}: there is no file {path}", path = path.display())]
    SourceMissing { place: Location, path: PathBuf },
    #[error("--from {0} and --to {1} are the same place")]
    SameLocation(Location, Location),
    #[error("{place}: {source}")]
    Store { place: Location, source: StoreError },
    /// An entry that an APISIX would not read.
    #[error("{path}: {what}; nothing was copied", path = path.display())]
    InvalidRules {
        path: PathBuf,
        /// The entry, the found value and the expected one.
        what: String,
    },
    #[error("cannot write {path}: {source}", path = path.display())]
    WriteFailed { path: PathBuf, source: io::Error },
    /// The source has documents that cannot be read.
    #[error(
        "{count} document(s) in {place} cannot be read and may be obeyed by another program (listed above); nothing was written. \
         Write them again as plain JSON under a valid id, or delete them"
    )]
    Unreadable { place: Location, count: usize },
    /// Documents of the target differ.
    #[error(
        "{count} document(s) in {place} are in the way (listed above); nothing was written. --overwrite puts the source's in their place"
    )]
    Conflicts { place: Location, count: usize },
    /// Another program wrote the document meanwhile.
    #[error("{key} in {place} was changed by somebody else meanwhile: run this again")]
    ConcurrentChange { place: Location, key: Key },
    /// The source changed during the copy.
    #[error("{0} was changed while it was copied: run this again, it writes only what is missing")]
    SourceChanged(Location),
    /// The read-back differs.
    #[error(
        "{place} does not hold what was copied: {key} differs. Is somebody else writing to it? Run this again"
    )]
    VerifyFailed { place: Location, key: Key },
    #[error("{place}: {source}")]
    Denied { place: Location, source: DenyListError },
    #[error("cannot write the report: {0}")]
    Report(#[from] io::Error),
}

/// Copies the documents and prints a summary to `out`.
///
/// # Errors
/// The cause and its fix; the target then has some of the documents, or none.
pub(crate) async fn run(config: &Path, args: &CopyArgs, out: &mut dyn io::Write) -> Result<(), CopyError> {
    let settings = conf::load(config)?;
    let keyring = Keyring::new(settings.keyring()?)?;
    let opening = LocationOpener { settings: &settings };
    opening.check_distinct(&args.from, &args.to)?;
    let source = opening.source(&args.from).await?;
    let target = opening.target(&args.to, args.dry_run).await?;
    if source.is_same(&target) {
        return Err(CopyError::SameLocation(args.from.clone(), args.to.clone()));
    }

    let found = source.read().await?;
    writeln!(out, "from {}: {} documents{}", args.from, found.items.len(), at_revision(&found))?;
    let there = target.read().await?;
    let wanted = plan::desired_state(found, &target, &there, &keyring);
    print_warnings(out, &wanted.notes)?;
    print_warnings(out, &compile_warnings(&wanted.documents, &keyring))?;
    if !wanted.unreadable.is_empty() {
        print_lines(out, "cannot be copied: ", &wanted.unreadable)?;
        return Err(CopyError::Unreadable { place: args.from.clone(), count: wanted.unreadable.len() });
    }
    writeln!(out, "to {}: {} documents{}", args.to, there.items.len(), at_revision(&there))?;
    let plan = Plan::of(&wanted.documents, &there, &target);
    plan.print_summary(out)?;

    let in_the_way = plan.conflicts();
    if !in_the_way.is_empty() && !args.overwrite {
        print_lines(out, "in the way: ", &in_the_way)?;
        return Err(CopyError::Conflicts { place: args.to.clone(), count: in_the_way.len() });
    }
    if args.dry_run {
        writeln!(out, "nothing was written (--dry-run)")?;
        return Ok(());
    }
    write(&target, &wanted.documents, &plan).await?;
    copy_denied_nodes(&source, &target, out).await?;
    verify(&source, &target, &there, &wanted.documents, &keyring).await?;
    let digest = plan::digest(&wanted.documents);
    writeln!(out, "verified: {} documents, SHA-256 {digest}", wanted.documents.len())?;
    Ok(())
}

/// Merges the deny-list, so that a denied node stays denied in the target. A file cannot hold it.
async fn copy_denied_nodes(
    source: &OpenLocation,
    target: &OpenLocation,
    out: &mut dyn io::Write,
) -> Result<(), CopyError> {
    let OpenLocation::Store { place, store } = source else { return Ok(()) };
    let failed = |place: &Location, source| CopyError::Denied { place: place.clone(), source };
    let denied = DeniedNodes::load(Arc::clone(store)).await.map_err(|error| failed(place, error))?;
    let list = denied.list().borrow().clone();
    let count = list.entries().len();
    match target {
        _ if count == 0 => {}
        OpenLocation::Store { place, store } => {
            let there = DeniedNodes::load(Arc::clone(store)).await.map_err(|error| failed(place, error))?;
            let added = there.merge(&list).await.map_err(|error| failed(place, error))?;
            writeln!(out, "deny-list of data planes: {added} of {count} entries added")?;
        }
        OpenLocation::File { .. } | OpenLocation::Absent { .. } => {
            writeln!(out, "warning: the deny-list of data planes ({count} entries) is not in the file")?;
        }
    }
    Ok(())
}

fn at_revision(content: &LocationContent) -> String {
    content.revision.map_or_else(String::new, |revision| format!(" at revision {revision}"))
}

/// Warnings about documents that a data plane would not serve. They are copied all the same.
fn compile_warnings(documents: &[Document], keyring: &Keyring) -> Vec<String> {
    let problem = |document: &Document| {
        let Key { kind, id } = &document.key;
        let problem = compile::compile(*kind, id, &document.value, keyring).err()?;
        Some(format!("{}: {problem}; it is copied as it is, and cannot be served so", document.key))
    };
    documents.iter().filter_map(problem).collect()
}

fn print_warnings(out: &mut dyn io::Write, lines: &[String]) -> io::Result<()> {
    print_lines(out, "warning: ", lines)
}

fn print_lines(out: &mut dyn io::Write, start: &str, lines: &[String]) -> io::Result<()> {
    for line in lines.iter().take(LINES_MAX) {
        writeln!(out, "{start}{line}")?;
    }
    if lines.len() > LINES_MAX {
        writeln!(out, "{start}{} more like these", lines.len() - LINES_MAX)?;
    }
    Ok(())
}

async fn write(target: &OpenLocation, documents: &[Document], plan: &Plan) -> Result<(), CopyError> {
    match target {
        OpenLocation::Store { place, store } => write_documents(place, &**store, plan).await,
        OpenLocation::File { path, .. } if plan.is_done() && path.exists() => Ok(()),
        OpenLocation::File { path, .. } => yaml::write(path, documents),
        // Only a dry run has an absent target.
        OpenLocation::Absent { .. } => Ok(()),
    }
}

/// Kind by kind, so that a watching control plane sees a referenced document before the reference.
async fn write_documents(place: &Location, store: &dyn Store, plan: &Plan) -> Result<(), CopyError> {
    let mut progress = ProgressLog::new(plan.writes.len());
    for kind in Kind::ALL {
        let due = plan.writes.iter().filter(|write| write.document.key.kind == kind);
        let mut writes = stream::iter(due)
            .map(|write| async move {
                let (key, document) = (write.document.key.clone(), write.document.value.clone());
                let expect = write.replaces.map_or(Precondition::Absent, Precondition::ModRevision);
                let put = Mutation::Put { key, document, precondition: expect, ttl: None };
                store.commit(put).await.map_err(|error| (write.document.key.clone(), error))
            })
            .buffer_unordered(CONCURRENT_WRITES);
        while let Some(written) = writes.next().await {
            written.map_err(|(key, source)| match source {
                StoreError::Conflict => CopyError::ConcurrentChange { place: place.clone(), key },
                source => CopyError::Store { place: place.clone(), source },
            })?;
            progress.step();
        }
    }
    Ok(())
}

/// Reads both sides again and compares.
async fn verify(
    source: &OpenLocation,
    target: &OpenLocation,
    before: &LocationContent,
    wanted: &[Document],
    keyring: &Keyring,
) -> Result<(), CopyError> {
    let again = plan::desired_state(source.read().await?, target, before, keyring).documents;
    if plan::digest(&again) != plan::digest(wanted) {
        return Err(CopyError::SourceChanged(source.place().clone()));
    }
    let there = target.read().await?;
    let held = plan::by_key(&there.items);
    let differs = wanted
        .iter()
        .find(|document| held.get(&document.key).is_none_or(|there| there.document != document.value));
    match differs {
        None => Ok(()),
        Some(Document { key, .. }) => {
            Err(CopyError::VerifyFailed { place: target.place().clone(), key: key.clone() })
        }
    }
}

/// Prints the progress to stderr, at most once per interval.
struct ProgressLog {
    total: usize,
    done: usize,
    last_printed: Instant,
}

impl ProgressLog {
    fn new(total: usize) -> Self {
        Self { total, done: 0, last_printed: Instant::now() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.last_printed.elapsed() >= PROGRESS_INTERVAL {
            self.last_printed = Instant::now();
            telemetry::log::write_unfiltered(&format_args!(
                "{} of {} documents are written",
                self.done, self.total
            ));
        }
    }
}

#[cfg(test)]
mod tests;
