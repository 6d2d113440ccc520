//! Prevents core dumps: the memory holds private keys, ticket secrets and the keyring.
//!
//! Two limits are needed: the kernel ignores RLIMIT_CORE where core files go to a program
//! (core_pattern with a pipe), and PR_SET_DUMPABLE 0 also keeps other processes of the same user
//! from reading the memory (ptrace, /proc/PID/mem).

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Disables core files, and memory access by other processes. Call it before any secret is read;
/// exec reverts it.
///
/// # Errors
/// Those of `setrlimit(2)` and `prctl(2)`.
pub fn disable() -> std::io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn core_dumps_and_ptrace_are_disabled() {
        disable().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert!(!prctl::get_dumpable().unwrap());
        disable().unwrap();
    }
}
