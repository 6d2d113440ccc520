//! Socket activation, sd_listen_fds(3): listening sockets that the service manager has bound.
//!
//! LISTEN_FDS counts them, LISTEN_FDNAMES names them (`FileDescriptorName=` of a socket unit), and
//! LISTEN_PID says for which process they are. Invariant: what is not a listening TCP socket is an
//! error, not ignored: its unit promises a listener that nothing would serve.

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

use crate::handover::InheritedListener;

/// Why the sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The environment contradicts itself.
    #[error("LISTEN_FDS={fds:?}, LISTEN_FDNAMES={names:?}: a number, and as many names, are expected")]
    Environment {
        /// LISTEN_FDS.
        fds: String,
        /// LISTEN_FDNAMES.
        names: String,
    },
    /// It is another kind of file.
    #[error(
        "the inherited socket {name:?} (descriptor {descriptor}) is not a listening TCP socket ({error}): use ListenStream= with an \
         address and a port in the socket unit"
    )]
    NotAListener {
        /// From LISTEN_FDNAMES.
        name: String,
        /// Its number.
        descriptor: usize,
        /// Why.
        error: io::Error,
    },
}

/// A socket of the service manager that the settings do not name.
#[derive(Debug, thiserror::Error)]
#[error(
    "the inherited socket {name:?} is bound to {addr}, which is no listener of the settings: correct ListenStream= of the socket \
     unit, or add the address to {settings}"
)]
pub struct UnknownSocket {
    /// From LISTEN_FDNAMES.
    pub name: String,
    /// The address that it is bound to.
    pub addr: SocketAddr,
    /// The settings that name listeners.
    pub settings: &'static str,
}

/// The first descriptor, by the protocol.
const FIRST: usize = 3;

/// Takes the sockets out of the environment, by the names of LISTEN_FDNAMES; they are non-blocking,
/// and closed in other programs that this one starts. Empty: there are none, or they are for
/// another process. Call it once, before threads are started that read the environment.
///
/// # Errors
/// [`ActivationError`].
pub fn take_sockets() -> Result<Vec<InheritedListener>, ActivationError> {
    let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    if variable("LISTEN_PID").is_none_or(|pid| pid != std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let Some(fds) = variable("LISTEN_FDS") else { return Ok(Vec::new()) };
    let names = names(&fds, variable("LISTEN_FDNAMES"))?;
    let mut inherited = ListenFd::from_env();
    let sockets = names.into_iter().enumerate();
    sockets.map(|(index, name)| take(&mut inherited, index, name)).collect()
}

/// One name for each descriptor; `unknown` without LISTEN_FDNAMES, as systemd has it.
fn names(fds: &str, names: Option<String>) -> Result<Vec<String>, ActivationError> {
    let count = fds.parse::<u16>().ok().map(usize::from);
    let list: Option<Vec<_>> = names.as_ref().map(|names| names.split(':').map(str::to_owned).collect());
    match (count, list) {
        (Some(count), None) => Ok(vec!["unknown".to_owned(); count]),
        (Some(count), Some(list)) if list.len() == count => Ok(list),
        _ => Err(ActivationError::Environment { fds: fds.to_owned(), names: names.unwrap_or_default() }),
    }
}

fn take(inherited: &mut ListenFd, index: usize, name: String) -> Result<InheritedListener, ActivationError> {
    let mut listener = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = inherited.take_tcp_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
        if !getsockopt(&socket, sockopt::AcceptConn)? {
            return Err(io::Error::other("it does not listen"));
        }
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        Ok((socket, addr))
    };
    match listener() {
        Ok((socket, addr)) => Ok(InheritedListener { name, addr, socket, activated: true }),
        Err(error) => Err(ActivationError::NotAListener { name, descriptor: FIRST + index, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_has_a_name() {
        assert_eq!(names("2", Some("http:https".to_owned())).unwrap(), ["http", "https"]);
        assert_eq!(names("2", None).unwrap(), ["unknown", "unknown"]);
        for (fds, given) in [("2", Some("http")), ("x", None), ("-1", None), ("99999999", None)] {
            assert!(names(fds, given.map(str::to_owned)).is_err(), "{fds}");
        }
    }

    #[test]
    fn sockets_of_another_process_are_left() {
        // The test runner's own environment names no process, or another one.
        assert_eq!(take_sockets().unwrap().len(), 0);
    }
}
