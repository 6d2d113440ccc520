//! Checks the permissions below the prefix without changing anything.
//!
//! etcd checks the permissions of a transaction before it runs, for both of its branches. A
//! transaction whose condition cannot hold therefore checks write permission for every kind, and
//! writes nothing.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::{Consistency, ProbeError, ProbeSettings, Prober, connect_and_login, count_keys};
use crate::store::etcd::dial::Endpoint;

/// The name of the call, in errors.
pub(super) const WRITE: &str = "a write";
/// An id that is never written.
const PROBE_ID: &str = "countersign-doctor";
/// The directory of internal entries and extension fields.
const OWN_DIRECTORY: &str = "countersign";

#[derive(Debug, Clone, Copy)]
pub(crate) struct Permissions {
    /// The number of keys below the prefix.
    pub keys: i64,
}

/// Makes a linearizable read, which needs a majority, and checks write permission.
///
/// # Errors
/// The missing permission, or the failure of the call.
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
