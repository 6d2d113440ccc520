//! The limit on open descriptors (RLIMIT_NOFILE), and the errors of exhausted descriptors or
//! memory.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one and returns the resulting limit. Where the kernel does not
/// allow it, the soft limit stays.
///
/// # Errors
/// Those of `getrlimit(2)`.
pub fn raise_limit() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        // The hard limit is above fs.nr_open, which was lowered since.
        Err(_) => soft,
    };
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Whether an accept (or another call that opens a descriptor) failed because the process or the
/// machine has no descriptor or memory left: an immediate retry would fail again.
pub fn is_resource_exhausted(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
        exhausted.contains(&Errno::from_raw(code))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(256), hard).unwrap();
        assert_eq!(raise_limit().unwrap() as u64, hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn only_resource_errors_count_as_exhausted() {
        for error in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS] {
            assert!(is_resource_exhausted(&io::Error::from(error)));
        }
        for error in [Errno::ECONNABORTED, Errno::EINTR, Errno::EPERM, Errno::EINVAL] {
            assert!(!is_resource_exhausted(&io::Error::from(error)));
        }
    }
}
