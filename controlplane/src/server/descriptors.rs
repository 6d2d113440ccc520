//! How the descriptors of the process are shared: the Admin API and the push serve so many
//! connections at a time that the store, etcd and the status listener always have the rest.

use process::descriptors::raise_limit;

/// Store, etcd, status listener, certificate files, runtime, standard streams.
const RESERVE: usize = 96;
/// Connections to the Admin API, at most; more wait to be accepted.
const ADMIN_MAX: usize = 1024;
/// Connections of data planes, at most; more wait to be accepted.
const PUSH_MAX: usize = 65_536;
/// What no warning is needed for: the Admin API's most, and a thousand data planes.
const COMFORTABLE: usize = RESERVE + ADMIN_MAX + 1000;
/// Below this, nobody is served.
const MINIMUM: usize = RESERVE + 8;

/// Connections at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// To the Admin API.
    pub admin: usize,
    /// To the push.
    pub push: usize,
}

/// Raises the soft limit to the hard one, and shares what there is.
///
/// # Errors
/// When the limit is too low, or cannot be read.
pub(crate) fn connection_limits() -> std::io::Result<ConnectionLimits> {
    let limit = raise_limit()?;
    let share = divide(limit).ok_or_else(|| {
        std::io::Error::other(format!(
            "the limit on open descriptors is {limit}, and at least {MINIMUM} are needed: raise it (ulimit -n {COMFORTABLE}, \
             LimitNOFILE={COMFORTABLE})"
        ))
    })?;
    if limit < COMFORTABLE {
        let ConnectionLimits { admin, push } = share;
        tracing::warn!(
            "the limit on open descriptors is {limit}: the Admin API serves {admin} connections at a time and the push {push} data \
             planes. Raise the hard limit (ulimit -Hn {COMFORTABLE}, LimitNOFILE={COMFORTABLE})"
        );
    }
    Ok(share)
}

fn divide(limit: usize) -> Option<ConnectionLimits> {
    let left = limit.checked_sub(RESERVE).filter(|_| limit >= MINIMUM)?;
    let admin = (left / 4).min(ADMIN_MAX);
    Some(ConnectionLimits { admin, push: (left - admin).min(PUSH_MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_leaves_most_to_data_planes_and_a_reserve() {
        assert_eq!(divide(MINIMUM - 1), None);
        assert_eq!(divide(MINIMUM), Some(ConnectionLimits { admin: 2, push: 6 }));
        assert_eq!(divide(256), Some(ConnectionLimits { admin: 40, push: 120 }));
        assert_eq!(divide(usize::MAX), Some(ConnectionLimits { admin: ADMIN_MAX, push: PUSH_MAX }));
    }
}
