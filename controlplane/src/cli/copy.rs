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
//! because the source may not know them. A document that the source store will remove is removed by
//! the target store at the same time.

mod error;
mod location;
mod opener;
mod plan;
mod yaml;

use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use error::CopyError;
use futures_util::{StreamExt, stream};
use location::{Document, Location, LocationContent};
use model::{Key, Kind};
use opener::{LocationOpener, OpenLocation};
use pki::Keyring;
use plan::Plan;

use crate::cli::progress::ProgressLog;
use crate::compile;
use crate::publish::DeniedNodes;
use crate::store::{Mutation, Precondition, Store, StoreError};

/// The embedded store commits concurrent writes with one fsync.
const CONCURRENT_WRITES: usize = 64;
/// Lines per kind of message; the rest is counted.
const LINES_MAX: usize = 20;

const EXAMPLES: &str = "Locations:
  embedded         the embedded store that the configuration names (countersign.store.path)
  embedded:PATH    the embedded store in this file
  etcd             the cluster that the configuration names (deployment.etcd)
  etcd:FILE        the cluster that another configuration file names
  yaml:PATH        an APISIX's rules in a file (apisix.yaml)

Examples:
  controlplane copy --from embedded --to etcd --dry-run      what would be written, and the conflicts
  controlplane copy --from embedded --to etcd                run it again after a failure: it writes the rest
  controlplane copy --from etcd --to yaml:backup.yaml        a copy to read, and to go back to
  controlplane copy --from yaml:apisix.yaml --to embedded    the rules of a standalone APISIX
  controlplane copy --from etcd:old.yaml --to etcd           from one cluster or prefix to another

An embedded store is opened by one program at a time: stop its control plane first. Private keys stay sealed as they are, so both sides need the
same keyring (countersign.keyring_file, apisix.data_encryption.keyring).";

/// Copy all documents from one store to another.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CopyArgs {
    /// Where the documents are
    #[arg(long, value_name = "LOCATION")]
    from: Location,
    /// Where they go
    #[arg(long, value_name = "LOCATION")]
    to: Location,
    /// Replace documents of the target that differ; a file is replaced as a whole
    #[arg(long)]
    overwrite: bool,
    /// Print what would be done, and write no document
    #[arg(long)]
    dry_run: bool,
}

/// Copies the documents and prints a summary to `out`.
///
/// # Errors
/// The cause and its fix; the target then has some of the documents, or none.
pub(crate) async fn run(config: &Path, args: &CopyArgs, out: &mut dyn io::Write) -> Result<(), CopyError> {
    let settings = conf::load(config)?;
    let keyring = Keyring::new(settings.keyring()?)?;
    let opener = LocationOpener { settings: &settings };
    opener.check_distinct(&args.from, &args.to)?;
    let source = opener.source(&args.from).await?;
    let target = opener.target(&args.to, args.dry_run).await?;
    if source.is_same(&target) {
        return Err(CopyError::SameLocation(args.from.clone(), args.to.clone()));
    }

    let source_content = source.read().await?;
    writeln!(
        out,
        "from {}: {} documents{}",
        args.from,
        source_content.items.len(),
        at_revision(&source_content)
    )?;
    let target_content = target.read().await?;
    let desired = plan::desired_state(source_content, &target, &target_content, &keyring);
    print_warnings(out, &desired.notes)?;
    print_warnings(out, &compile_warnings(&desired.documents, &keyring))?;
    if !desired.unreadable.is_empty() {
        print_lines(out, "cannot be copied: ", &desired.unreadable)?;
        return Err(CopyError::Unreadable { location: args.from.clone(), count: desired.unreadable.len() });
    }
    writeln!(
        out,
        "to {}: {} documents{}",
        args.to,
        target_content.items.len(),
        at_revision(&target_content)
    )?;
    let plan = Plan::of(&desired.documents, &target_content, &target);
    plan.print_summary(out)?;

    let conflicts = plan.conflicts();
    if !conflicts.is_empty() && !args.overwrite {
        print_lines(out, "conflict: ", &conflicts)?;
        return Err(CopyError::Conflicts { location: args.to.clone(), count: conflicts.len() });
    }
    if args.dry_run {
        writeln!(out, "nothing was written (--dry-run)")?;
        return Ok(());
    }
    write(&target, &desired.documents, &plan).await?;
    copy_denied_nodes(&source, &target, out).await?;
    verify(&source, &target, &target_content, &desired.documents, &keyring).await?;
    let digest = plan::digest(&desired.documents);
    writeln!(out, "verified: {} documents, SHA-256 {digest}", desired.documents.len())?;
    Ok(())
}

/// Merges the deny-list, so that a denied node stays denied in the target. A file cannot hold it.
async fn copy_denied_nodes(
    source: &OpenLocation,
    target: &OpenLocation,
    out: &mut dyn io::Write,
) -> Result<(), CopyError> {
    let OpenLocation::Store { location, store } = source else { return Ok(()) };
    let failed = |location: &Location, source| CopyError::Denied { location: location.clone(), source };
    let denied = DeniedNodes::load(Arc::clone(store)).await.map_err(|error| failed(location, error))?;
    let list = denied.list().borrow().clone();
    let count = list.entries().len();
    match target {
        _ if count == 0 => {}
        OpenLocation::Store { location, store } => {
            let target_content =
                DeniedNodes::load(Arc::clone(store)).await.map_err(|error| failed(location, error))?;
            let added = target_content.merge(&list).await.map_err(|error| failed(location, error))?;
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
        OpenLocation::Store { location, store } => write_documents(location, &**store, plan).await,
        OpenLocation::File { path, .. } if plan.is_done() && path.exists() => Ok(()),
        OpenLocation::File { path, .. } => yaml::write(path, documents),
        // Only a dry run has an absent target.
        OpenLocation::Absent { .. } => Ok(()),
    }
}

/// Kind by kind, so that a watching control plane sees a referenced document before the reference.
async fn write_documents(location: &Location, store: &dyn Store, plan: &Plan) -> Result<(), CopyError> {
    let mut progress = ProgressLog::new(plan.writes.len(), "documents");
    for kind in Kind::ALL {
        let due = plan.writes.iter().filter(|write| write.document.key.kind == kind);
        let mut writes = stream::iter(due)
            .map(|write| async move {
                let (key, document) = (write.document.key.clone(), write.document.value.clone());
                let expect = write.replaces.map_or(Precondition::Absent, Precondition::ModRevision);
                let ttl = write.document.expires.map(|end| remaining_seconds(end, Instant::now()));
                let put = Mutation::Put { key, document, precondition: expect, ttl };
                store.commit(put.into()).await.map_err(|error| (write.document.key.clone(), error))
            })
            .buffer_unordered(CONCURRENT_WRITES);
        while let Some(written) = writes.next().await {
            written.map_err(|(key, source)| match source {
                StoreError::Conflict { .. } => {
                    CopyError::ConcurrentChange { location: location.clone(), key }
                }
                source => CopyError::Store { location: location.clone(), source },
            })?;
            progress.advance(1);
        }
    }
    Ok(())
}

/// The time to live of a document that is removed at `end`: whole seconds, and at least one.
fn remaining_seconds(end: Instant, now: Instant) -> NonZeroU32 {
    let left = end.saturating_duration_since(now);
    let rounded_up = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    u32::try_from(rounded_up)
        .map_or(NonZeroU32::MAX, |seconds| NonZeroU32::new(seconds).unwrap_or(NonZeroU32::MIN))
}

/// Reads both sides again and compares.
async fn verify(
    source: &OpenLocation,
    target: &OpenLocation,
    before: &LocationContent,
    desired: &[Document],
    keyring: &Keyring,
) -> Result<(), CopyError> {
    let reread = plan::desired_state(source.read().await?, target, before, keyring).documents;
    if plan::digest(&reread) != plan::digest(desired) {
        return Err(CopyError::SourceChanged(source.location().clone()));
    }
    let target_content = target.read().await?;
    let by_key = plan::by_key(&target_content.items);
    let now = Instant::now();
    let first_difference = desired.iter().find(|document| {
        let is_gone = document.expires.is_some_and(|end| end <= now);
        match by_key.get(&document.key) {
            Some(found) => found.document != document.value,
            None => !is_gone,
        }
    });
    match first_difference {
        None => Ok(()),
        Some(Document { key, .. }) => {
            Err(CopyError::VerifyFailed { location: target.location().clone(), key: key.clone() })
        }
    }
}

#[cfg(test)]
mod tests;
