//! Divides the descriptors of the process among the workers, as limits on connections.
//!
//! A client's connection needs one descriptor, and one more for the upstream while a request is
//! served. So at most half of a worker's share is for clients, and the rest is for upstreams:
//! clients that connect and send nothing cannot use up the descriptors for upstream connections.
//! The process itself (status, push client, resolver, last good snapshot) has a reserve that
//! neither may use.

/// Descriptors beside the workers': standard streams, signals, the runtimes of status, push client
/// and saver (24), connections to the status listener (16), the push stream and files (8), the
/// resolver (8), and as many again.
const RESERVED: usize = 96;
/// A worker has its ring or epoll, a waker, and two for each listener.
const PER_WORKER: usize = 6;
const PER_LISTENER: usize = 2;
/// The fewest client connections that a worker is started with.
const CLIENTS_MIN: usize = 8;

/// How many connections one worker may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub clients: usize,
    /// Idle ones included.
    pub upstreams: usize,
}

/// One client may use at most one in this many of a worker's upstream connections.
const CLIENT_FRACTION: usize = 4;

impl ConnectionLimits {
    /// The limit on one client's concurrent requests, where the settings have `configured`: each
    /// needs an upstream connection, and no client may use all of them. 0: no limit.
    pub fn requests_per_client(&self, configured: usize) -> usize {
        configured.min((self.upstreams / CLIENT_FRACTION).max(1))
    }
}

/// The limit on descriptors is too low for [`CLIENTS_MIN`] clients a worker.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the limit on open descriptors is {limit}, and {workers} worker(s) with {listeners} listener(s) need at least {needed}: raise it \
     (ulimit -n {needed}, LimitNOFILE={needed}) or lower countersign.workers"
)]
pub(crate) struct TooFewDescriptors {
    limit: usize,
    workers: usize,
    listeners: usize,
    needed: usize,
}

/// The limits of each of `workers` under the descriptor limit `limit`, with `listeners` addresses,
/// where the settings have `configured` client connections each; and the warning to log where that
/// is not reached.
///
/// # Errors
/// [`TooFewDescriptors`].
pub(crate) fn connection_limits(
    limit: usize,
    workers: usize,
    listeners: usize,
    configured: usize,
) -> Result<(ConnectionLimits, Option<String>), TooFewDescriptors> {
    let workers = workers.max(1);
    let fixed = workers.saturating_mul(PER_WORKER + PER_LISTENER * listeners).saturating_add(RESERVED);
    let need = |clients: usize| clients.saturating_mul(2 * workers).saturating_add(fixed);
    let needed = need(configured.min(CLIENTS_MIN));
    if limit < needed {
        return Err(TooFewDescriptors { limit, workers, listeners, needed });
    }
    let share = limit.saturating_sub(fixed) / workers;
    let clients = configured.min(share / 2).max(1);
    let warning = (clients < configured).then(|| {
        let needed = need(configured);
        format!(
            "the limit on open descriptors is {limit}: each worker serves {clients} client connections at a time, not the {configured} of \
             countersign.limits.connections_per_worker (or nginx_config.event.worker_connections), which need {needed} with \
             {workers} worker(s). Raise the hard limit (ulimit -Hn {needed}, LimitNOFILE={needed}), or lower that key or \
             countersign.workers"
        )
    });
    Ok((ConnectionLimits { clients, upstreams: share.saturating_sub(clients) }, warning))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_high_limit_allows_what_is_configured() {
        let (fits, warning) = connection_limits(1 << 20, 2, 2, 50_000).unwrap();
        assert_eq!((fits.clients, warning), (50_000, None));
        assert!(fits.upstreams > 400_000, "{fits:?}");
    }

    #[test]
    fn a_low_limit_is_divided_and_the_warning_says_what_is_needed() {
        let (low, warning) = connection_limits(256, 2, 2, 50_000).unwrap();
        assert_eq!(low, ConnectionLimits { clients: 35, upstreams: 35 });
        let warning = warning.unwrap();
        let needed: usize =
            warning.split_once("LimitNOFILE=").unwrap().1.split(')').next().unwrap().parse().unwrap();
        assert!(warning.contains("50000") && warning.contains("256"), "{warning}");
        assert_eq!(connection_limits(needed, 2, 2, 50_000).unwrap().1, None);
        assert!(connection_limits(needed - 4, 2, 2, 50_000).unwrap().1.is_some());
        let error = connection_limits(100, 2, 2, 50_000).unwrap_err();
        assert!(connection_limits(error.needed, 2, 2, 50_000).is_ok(), "{error}");
        assert!(connection_limits(error.needed - 1, 2, 2, 50_000).is_err());
        assert!(connection_limits(usize::MAX, 1, 1, usize::MAX).is_ok());
    }

    #[test]
    fn no_client_may_use_all_upstream_connections() {
        let (low, _) = connection_limits(1024, 1, 2, 50_000).unwrap();
        assert_eq!((low.upstreams, low.requests_per_client(1000)), (459, 114));
        let (high, _) = connection_limits(1 << 20, 2, 2, 50_000).unwrap();
        assert_eq!([0, 1, 1000].map(|configured| high.requests_per_client(configured)), [0, 1, 1000]);
        let tiny = ConnectionLimits { clients: 1, upstreams: 2 };
        assert_eq!([0, 1000].map(|configured| tiny.requests_per_client(configured)), [0, 1]);
    }

    proptest! {
        #[test]
        fn all_limits_and_the_reserve_fit_into_the_descriptor_limit(
            limit in 0_usize..2_000_000, workers in 1_usize..200, listeners in 1_usize..50, configured in 1_usize..200_000,
        ) {
            if let Ok((limits, _)) = connection_limits(limit, workers, listeners, configured) {
                let fixed = RESERVED + workers * (PER_WORKER + PER_LISTENER * listeners);
                prop_assert!(fixed + workers * (limits.clients + limits.upstreams) <= limit);
                prop_assert!(limits.upstreams >= limits.clients && limits.clients <= configured);
            }
        }
    }
}
