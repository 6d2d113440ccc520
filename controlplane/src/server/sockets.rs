//! Listening sockets from a predecessor. A listener that finds its own there does not bind.

use std::net::{SocketAddr, TcpListener};

use process::handover::{HandoverError, OfferedSocket};

/// The sockets that no listener has taken yet, by their names.
#[derive(Debug, Default)]
pub(super) struct InheritedSockets(Vec<(String, TcpListener)>);

/// The name of a listener in an offer: the key of its setting, and the address in it, which may
/// have port 0.
fn name(setting: &str, configured: SocketAddr) -> String {
    format!("{setting} {configured}")
}

impl InheritedSockets {
    /// # Errors
    /// When a socket is not what its name says.
    pub(super) fn new(offered: Vec<OfferedSocket>) -> Result<Self, HandoverError> {
        let listeners = offered.into_iter().map(|socket| {
            let (name, _, listener) = socket.into_tcp_listener()?;
            Ok((name, listener))
        });
        listeners.collect::<Result<_, _>>().map(Self)
    }

    /// The socket of a listener: with the same address in the settings, or bound to it.
    pub(super) fn take(&mut self, setting: &str, configured: SocketAddr) -> Option<TcpListener> {
        let name = name(setting, configured);
        let is_bound = |(offered, socket): &(String, TcpListener)| {
            let is_of_setting = offered.split_once(' ').is_some_and(|(offered, _)| offered == setting);
            is_of_setting && socket.local_addr().is_ok_and(|bound| bound == configured)
        };
        let same = self.0.iter().position(|(offered, _)| *offered == name);
        let index = same.or_else(|| self.0.iter().position(is_bound))?;
        Some(self.0.remove(index).1)
    }
}

/// A socket for the successor.
///
/// # Errors
/// When the system does not report its address.
pub(super) fn offer(
    setting: &str,
    configured: SocketAddr,
    socket: TcpListener,
) -> std::io::Result<OfferedSocket> {
    let address = socket.local_addr()?.to_string();
    Ok(OfferedSocket { name: name(setting, configured), address, socket: socket.into() })
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
            offer("admin", any, first).unwrap(),
            offer("status", any, status).unwrap(),
            offer("admin", any, second).unwrap(),
        ];
        let mut sockets = InheritedSockets::new(offered).unwrap();
        let mut take = |setting: &str| Some(sockets.take(setting, any)?.local_addr().unwrap());
        assert_eq!(
            [take("admin"), take("admin"), take("admin")],
            [Some(addresses[0]), Some(addresses[1]), None]
        );
        assert_eq!((take("push"), take("status")), (None, Some(addresses[2])));
        // The file has the port now that the kernel had picked.
        let offered = vec![offer("admin", any, TcpListener::bind(any).unwrap()).unwrap()];
        let picked = offered[0].address.parse().unwrap();
        let mut sockets = InheritedSockets::new(offered).unwrap();
        assert!(sockets.take("push", picked).is_none());
        assert_eq!(sockets.take("admin", picked).unwrap().local_addr().unwrap(), picked);
        let wrong = OfferedSocket {
            name: "admin".to_owned(),
            address: any.to_string(),
            socket: TcpListener::bind(any).unwrap().into(),
        };
        assert!(InheritedSockets::new(vec![wrong]).is_err());
    }
}
