//! May we read and write below the prefix? Found out without changing anything.
//!
//! A transaction is judged whole before it runs, both of its branches. So one whose condition
//! cannot hold asks for the right to write every kind, and writes nothing: the revision stays what
//! it was.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::{Consistency, ProbeError, ProbeSettings, Prober, connect_and_login, count_keys};
use crate::store::etcd::dial::Endpoint;

/// The question, in errors.
pub(super) const WRITE: &str = "a write";
/// An id that is asked about and never written.
const PROBE_ID: &str = "countersign-doctor";
/// The directory of what only control planes read.
const OWN_DIRECTORY: &str = "countersign";

/// What was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permissions {
    /// Keys below the prefix.
    pub keys: i64,
}

/// Reads as the cluster (so that a majority must answer), and asks for the right to write.
///
/// # Errors
/// What we may not do, or why nobody answers.
pub(crate) async fn check(endpoint: &Endpoint, asking: ProbeSettings<'_>) -> Result<Permissions, ProbeError> {
    let (mut client, _) = connect_and_login(endpoint, asking).await?;
    let keys = count_keys(endpoint, asking, &mut client, Consistency::Linearizable).await?;
    let places = model::Kind::ADMIN.map(|kind| kind.plural()).into_iter().chain([OWN_DIRECTORY]);
    let keys_of = |place| format!("{}/{place}/{PROBE_ID}", asking.prefix);
    let writes: Vec<_> = places.map(|place| TxnOp::put(keys_of(place), "", None)).collect();
    // No key has fewer than zero versions.
    let never = Compare::version(keys_of(OWN_DIRECTORY), CompareOp::Less, 0);
    let question = Prober { endpoint, asking };
    question.call(WRITE, client.txn(Txn::new().when([never]).and_then(writes))).await?;
    Ok(Permissions { keys })
}
