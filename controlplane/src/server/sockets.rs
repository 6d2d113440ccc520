//! Listening sockets from a predecessor, or from the service manager. A listener that finds its own
//! there does not bind. None of them is shut down with `shutdown(2)`.

use std::net::{SocketAddr, TcpListener};

use process::handover::{HandoverError, InheritedListener, OfferedSocket};
use process::socket_activation::{self, ActivationError, UnknownSocket};

/// The sockets that no listener has taken yet.
#[derive(Debug, Default)]
pub(super) struct InheritedSockets(Vec<InheritedListener>);

/// The settings that name listeners.
const LISTENER_SETTINGS: &str =
    "deployment.admin.admin_listen, countersign.push.listen or countersign.control_plane.status";

/// The name of a listener in an offer: the key of its setting, and the address in it, which may
/// have port 0.
fn name(setting: &str, configured: SocketAddr) -> String {
    format!("{setting} {configured}")
}

impl InheritedSockets {
    /// # Errors
    /// When a socket is not what its name says.
    pub(super) fn new(offered: Vec<OfferedSocket>) -> Result<Self, HandoverError> {
        offered.into_iter().map(OfferedSocket::into_tcp_listener).collect::<Result<_, _>>().map(Self)
    }

    /// The sockets that the service manager has bound.
    ///
    /// # Errors
    /// One of them cannot be a listener.
    pub(super) fn activated() -> Result<Self, ActivationError> {
        socket_activation::take_sockets().map(Self)
    }

    /// # Errors
    /// A socket of the service manager is left that no listener has taken: its unit promises a port
    /// that nothing serves.
    pub(super) fn ensure_empty(&self) -> Result<(), UnknownSocket> {
        match self.0.first() {
            None => Ok(()),
            Some(left) => {
                Err(UnknownSocket { name: left.name.clone(), addr: left.addr, settings: LISTENER_SETTINGS })
            }
        }
    }

    /// The socket of a listener: with the same address in the settings, or bound to it.
    pub(super) fn take(&mut self, setting: &str, configured: SocketAddr) -> Option<TcpListener> {
        let name = name(setting, configured);
        let is_bound = |left: &InheritedListener| {
            let is_of_setting = left.name.split_once(' ').is_some_and(|(offered, _)| offered == setting);
            left.addr == configured && (is_of_setting || left.activated)
        };
        let same = self.0.iter().position(|left| left.name == name);
        let index = same.or_else(|| self.0.iter().position(is_bound))?;
        Some(self.0.remove(index).socket)
    }
}

/// A socket for the successor.
///
/// # Errors
/// When the system does not report its address.
pub(super) fn offer(
    setting: &str,
    configured: SocketAddr,
    socket: &TcpListener,
) -> std::io::Result<OfferedSocket> {
    OfferedSocket::new(&name(setting, configured), socket.local_addr()?, socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_finds_its_own_socket() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let bound = [(); 3].map(|()| TcpListener::bind(any).unwrap());
        let addresses = bound.each_ref().map(|socket| socket.local_addr().unwrap());
        let [first, second, status] = bound;
        let offered = vec![
            offer("admin", any, &first).unwrap(),
            offer("status", any, &status).unwrap(),
            offer("admin", any, &second).unwrap(),
        ];
        let mut sockets = InheritedSockets::new(offered).unwrap();
        let mut take = |setting: &str| Some(sockets.take(setting, any)?.local_addr().unwrap());
        assert_eq!(
            [take("admin"), take("admin"), take("admin")],
            [Some(addresses[0]), Some(addresses[1]), None]
        );
        assert_eq!((take("push"), take("status")), (None, Some(addresses[2])));
        // The file has the port now that the kernel had picked.
        let offered = vec![offer("admin", any, &TcpListener::bind(any).unwrap()).unwrap()];
        let picked = offered[0].address.parse().unwrap();
        let mut sockets = InheritedSockets::new(offered).unwrap();
        assert!(sockets.take("push", picked).is_none());
        assert_eq!(sockets.take("admin", picked).unwrap().local_addr().unwrap(), picked);
        let wrong = OfferedSocket {
            name: "admin".to_owned(),
            address: any.to_string(),
            socket: TcpListener::bind(any).unwrap().into(),
            activated: false,
        };
        assert!(InheritedSockets::new(vec![wrong]).is_err());
    }
}
