//! May we read and write below the prefix? Found out without changing anything.
//!
//! A transaction is judged whole before it runs, both of its branches. So one whose condition cannot hold asks for the right to write every
//! kind, and writes nothing: the revision stays what it was.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::{Asking, Freshness, ProbeError, Question, enter, may_read};
use crate::store::etcd::dial::Endpoint;

/// The question, in errors.
pub(super) const WRITE: &str = "a write";
/// An id that is asked about and never written.
const NOBODY: &str = "countersign-doctor";
/// The directory of what only control planes read.
const PRIVATE: &str = "countersign";

/// What was found.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Keys below the prefix.
    pub keys: i64,
}

/// Reads as the cluster (so that a majority must answer), and asks for the right to write.
///
/// # Errors
/// What we may not do, or why nobody answers.
pub async fn ask(endpoint: &Endpoint, asking: Asking<'_>) -> Result<Rights, ProbeError> {
    let (mut client, _) = enter(endpoint, asking).await?;
    let keys = may_read(endpoint, asking, &mut client, Freshness::Cluster).await?;
    let places = model::Kind::ADMIN.map(|kind| kind.plural()).into_iter().chain([PRIVATE]);
    let keys_of = |place| format!("{}/{place}/{NOBODY}", asking.prefix);
    let writes: Vec<_> = places.map(|place| TxnOp::put(keys_of(place), "", None)).collect();
    // No key has fewer than zero versions.
    let never = Compare::version(keys_of(PRIVATE), CompareOp::Less, 0);
    let question = Question { endpoint, asking };
    question.answer(WRITE, client.txn(Txn::new().when([never]).and_then(writes))).await?;
    Ok(Rights { keys })
}
