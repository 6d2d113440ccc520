//! The limit on file descriptors: the Admin API and the push get connection limits that leave a
//! reserve for the store, etcd and the status listener.

use process::descriptors::raise_limit;

/// For store, etcd, status listener, certificate files, runtime and standard streams.
const RESERVE: usize = 96;
/// Connections to the Admin API; more wait in the accept queue.
const ADMIN_MAX: usize = 1024;
/// Connections of data planes; more wait in the accept queue.
const PUSH_MAX: usize = 65_536;
/// The limit from which there is no warning: the Admin API's maximum and a thousand data planes.
const COMFORTABLE: usize = RESERVE + ADMIN_MAX + 1000;
/// The limit below which the control plane does not start.
const MINIMUM: usize = RESERVE + 8;

/// Limits on concurrent connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    pub admin: usize,
    pub push: usize,
}

/// Raises the soft limit to the hard one and divides it.
///
/// # Errors
/// When the limit is too low or unreadable.
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
    fn a_low_limit_keeps_a_reserve_and_favours_data_planes() {
        assert_eq!(divide(MINIMUM - 1), None);
        assert_eq!(divide(MINIMUM), Some(ConnectionLimits { admin: 2, push: 6 }));
        assert_eq!(divide(256), Some(ConnectionLimits { admin: 40, push: 120 }));
        assert_eq!(divide(usize::MAX), Some(ConnectionLimits { admin: ADMIN_MAX, push: PUSH_MAX }));
    }
}
