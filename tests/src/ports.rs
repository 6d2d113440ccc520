//! Reserved ports, and addresses where connecting fails in a known way.
//!
//! A bound socket that does not listen refuses connections, and the kernel gives its port to no
//! other program; one that names the port may still bind and listen there, because both sides set
//! SO_REUSEADDR.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, SockAddr, Socket, Type};

/// A reserved port of 127.0.0.1 that refuses connections.
pub struct Reservation {
    socket: Socket,
}

impl Reservation {
    pub fn any() -> Self {
        Self::of(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// This port, without a listener.
    pub fn of(address: SocketAddr) -> Self {
        let socket = reusable().expect("a socket can be made");
        socket
            .bind(&SockAddr::from(address))
            .unwrap_or_else(|problem| panic!("cannot keep {address}: {problem}"));
        Self { socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .expect("a bound socket has an address")
    }
}

fn reusable() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// An address where connecting neither succeeds nor fails: its queue is full, so the kernel drops
/// every SYN.
pub struct BlackHole {
    listener: Socket,
    _fillers: Vec<Socket>,
}

impl BlackHole {
    pub fn open() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
        listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        listener.listen(0).expect("a bound socket can listen");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut fillers = Vec::new();
        for _ in 0..16 {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
            let full = filler.connect_timeout(&address, std::time::Duration::from_millis(300)).is_err();
            if full {
                return Self { listener, _fillers: fillers };
            }
            fillers.push(filler);
        }
        panic!("the queue of {address:?} does not fill up")
    }

    pub fn address(&self) -> SocketAddr {
        self.listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .expect("a bound socket has an address")
    }
}
