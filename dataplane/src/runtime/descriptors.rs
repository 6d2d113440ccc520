//! How the workers share the descriptors of the process.
//!
//! A client's connection needs one, and one more for the upstream while a request is served. So at
//! most half of a worker's share is for clients, and what they leave is for upstreams: clients who
//! connect and send nothing cannot take the descriptors with which others reach upstreams. What
//! keeps the process itself running (status, agent, resolver, last good snapshot) has a reserve
//! that neither may touch.

/// Descriptors beside the workers': standard streams, signals, the runtimes of status, agent and
/// saver (24), connections to the status listener (16), the agent's stream and files (8), the
/// resolver (8), and as many again.
const RESERVED: usize = 96;
/// Each worker: its ring or epoll, a waker, and two for each listener.
const PER_WORKER: usize = 6;
const PER_LISTENER: usize = 2;
/// Clients, at least, of each worker.
const CLIENTS_MIN: usize = 8;

/// What one worker may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Client connections.
    pub clients: usize,
    /// Connections to upstreams, idle ones included.
    pub upstreams: usize,
}

/// Of a worker's places for upstreams one client may take at most one in so many.
const CLIENT_FRACTION: usize = 4;

impl ConnectionLimits {
    /// How many requests one client may have under way, where the settings ask for `wanted`: each
    /// takes a place for an upstream, and no client may take all of them. 0: no limit.
    pub fn requests_per_client(&self, wanted: usize) -> usize {
        wanted.min((self.upstreams / CLIENT_FRACTION).max(1))
    }
}

/// The limit on descriptors is too low to serve anybody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the limit on open descriptors is {limit}, and {workers} worker(s) with {listeners} listener(s) need at least {needed}: raise it \
     (ulimit -n {needed}, LimitNOFILE={needed}) or lower countersign.workers"
)]
pub struct TooFewDescriptors {
    limit: usize,
    workers: usize,
    listeners: usize,
    needed: usize,
}

/// What each of `workers` may have open under `limit`, with `listeners` addresses, where the
/// settings ask for `wanted` client connections each; and the warning to be logged where that is
/// less.
///
/// # Errors
/// [`TooFew`].
pub fn connection_limits(
    limit: usize,
    workers: usize,
    listeners: usize,
    wanted: usize,
) -> Result<(ConnectionLimits, Option<String>), TooFewDescriptors> {
    let workers = workers.max(1);
    let own = workers.saturating_mul(PER_WORKER + PER_LISTENER * listeners).saturating_add(RESERVED);
    let need = |clients: usize| clients.saturating_mul(2 * workers).saturating_add(own);
    let least = need(wanted.min(CLIENTS_MIN));
    if limit < least {
        return Err(TooFewDescriptors { limit, workers, listeners, needed: least });
    }
    let share = limit.saturating_sub(own) / workers;
    let clients = wanted.min(share / 2).max(1);
    let warning = (clients < wanted).then(|| {
        let needed = need(wanted);
        format!(
            "the limit on open descriptors is {limit}: each worker serves {clients} client connections at a time, not the {wanted} of \
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
    fn what_the_settings_ask_for_is_given_where_it_fits() {
        let (fits, warning) = connection_limits(1 << 20, 2, 2, 50_000).unwrap();
        assert_eq!((fits.clients, warning), (50_000, None));
        assert!(fits.upstreams > 400_000, "{fits:?}");
    }

    #[test]
    fn a_low_limit_is_shared_and_the_warning_has_a_number_that_fits() {
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
    fn no_client_may_take_all_places_for_upstreams() {
        let (low, _) = connection_limits(1024, 1, 2, 50_000).unwrap();
        assert_eq!((low.upstreams, low.requests_per_client(1000)), (459, 114));
        let (high, _) = connection_limits(1 << 20, 2, 2, 50_000).unwrap();
        assert_eq!([0, 1, 1000].map(|wanted| high.requests_per_client(wanted)), [0, 1, 1000]);
        let tiny = ConnectionLimits { clients: 1, upstreams: 2 };
        assert_eq!([0, 1000].map(|wanted| tiny.requests_per_client(wanted)), [0, 1]);
    }

    proptest! {
        #[test]
        fn all_shares_and_the_reserve_fit_into_the_limit(
            limit in 0_usize..2_000_000, workers in 1_usize..200, listeners in 1_usize..50, wanted in 1_usize..200_000,
        ) {
            if let Ok((share, _)) = connection_limits(limit, workers, listeners, wanted) {
                let own = RESERVED + workers * (PER_WORKER + PER_LISTENER * listeners);
                prop_assert!(own + workers * (share.clients + share.upstreams) <= limit);
                prop_assert!(share.upstreams >= share.clients && share.clients <= wanted);
            }
        }
    }
}
