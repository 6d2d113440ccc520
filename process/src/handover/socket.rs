//! A listening socket that passes from process to process.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};

use super::HandoverError;

/// A socket with what it serves.
#[derive(Debug)]
pub struct OfferedSocket {
    /// What it serves: a key of the settings.
    pub name: String,
    /// The address to which it is bound.
    pub address: String,
    /// The socket. Its open file is shared with the other process: neither `shutdown(2)` nor
    /// O_NONBLOCK may be used on it.
    pub socket: OwnedFd,
    /// Whether the service manager has it, too, and waits for connections when no process does.
    pub activated: bool,
}

/// A TCP listener from another process.
#[derive(Debug)]
pub struct InheritedListener {
    /// See [`OfferedSocket::name`].
    pub name: String,
    /// The address to which it is bound.
    pub addr: SocketAddr,
    /// Its open file is shared.
    pub socket: TcpListener,
    /// See [`OfferedSocket::activated`].
    pub activated: bool,
}

impl OfferedSocket {
    /// Another descriptor of a TCP listener that the service manager does not have.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(name: &str, addr: SocketAddr, socket: &TcpListener) -> std::io::Result<Self> {
        let socket = socket.try_clone()?.into();
        Ok(Self { name: name.to_owned(), address: addr.to_string(), socket, activated: false })
    }

    /// The socket as a TCP listener.
    ///
    /// # Errors
    /// [`HandoverError::WrongSocket`] when it is something else, or has another address.
    pub fn into_tcp_listener(self) -> Result<InheritedListener, HandoverError> {
        let Self { name, address, socket, activated } = self;
        let found = match getsockopt(&socket.as_fd(), sockopt::AcceptConn) {
            Ok(true) => {
                let socket = TcpListener::from(socket);
                match socket.local_addr() {
                    Ok(addr) if addr.to_string() == address => {
                        return Ok(InheritedListener { name, addr, socket, activated });
                    }
                    Ok(bound) => format!("bound to {bound}"),
                    Err(error) => format!("no TCP socket ({error})"),
                }
            }
            Ok(false) => "not listening".to_owned(),
            Err(error) => format!("no socket ({error})"),
        };
        Err(HandoverError::WrongSocket { name, address, found })
    }
}
