//! Datagrams to a syslog server, one a line, with nginx's header (RFC 3164).
//!
//! Invariant: no call waits, neither for the network nor for a server that does not read. A server
//! that has vanished costs lines; it is dialled again at most once a second.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use nix::errno::Errno;

use super::target::{SyslogServer, SyslogTarget};

/// Least interval between two attempts to reach a server.
const REDIAL_INTERVAL: Duration = Duration::from_secs(1);

/// A socket to a syslog server.
#[derive(Debug)]
pub(super) struct SyslogOutput {
    address: Address,
    socket: Socket,
    /// What follows the time of a header: host name and tag.
    origin: String,
    priority: u8,
    time_zone: TimeZone,
    /// The header of this second of the clock.
    header: (i64, Vec<u8>),
    datagram: Vec<u8>,
    dialled: Instant,
}

#[derive(Debug)]
enum Address {
    Udp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl SyslogOutput {
    /// Looks up the server's name, which may take a while, and makes a socket. A server that does
    /// not listen is no error: it may start later.
    pub(super) fn open(target: &SyslogTarget) -> io::Result<Self> {
        let address = match &target.server {
            SyslogServer::Unix(path) => Address::Unix(path.clone()),
            SyslogServer::Udp(host, port) => {
                let mut addresses = (host.as_str(), *port).to_socket_addrs()?;
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                Address::Udp(addresses.next().ok_or_else(none)?)
            }
        };
        let socket = address.socket()?;
        let hostname = match target.with_hostname {
            true => nix::unistd::gethostname()?.to_string_lossy().into_owned() + " ",
            false => String::new(),
        };
        let mut opened = Self {
            address,
            socket,
            origin: format!("{hostname}{}: ", target.tag),
            priority: target.priority,
            time_zone: TimeZone::system(),
            header: (i64::MIN, Vec::new()),
            datagram: Vec::new(),
            dialled: Instant::now(),
        };
        // The first line tries again, after the interval.
        let _later = opened.dial();
        Ok(opened)
    }

    fn dial(&mut self) -> io::Result<()> {
        self.dialled = Instant::now();
        self.socket = self.address.socket()?;
        match (&self.socket, &self.address) {
            (Socket::Udp(socket), Address::Udp(address)) => socket.connect(address),
            (Socket::Unix(socket), Address::Unix(path)) => socket.connect(path),
            _ => Ok(()),
        }
    }

    /// Sends a line, without its line break. `false`: the server does not read at the moment.
    pub(super) fn send(&mut self, line: &[u8]) -> Result<bool, Errno> {
        let mut datagram = std::mem::take(&mut self.datagram);
        datagram.clear();
        datagram.extend_from_slice(self.header());
        datagram.extend_from_slice(line);
        let sent = self.send_datagram(&datagram);
        self.datagram = datagram;
        sent
    }

    fn send_datagram(&mut self, datagram: &[u8]) -> Result<bool, Errno> {
        let mut sent = self.socket.send(datagram);
        if let Err(error) = sent
            && is_lost(error)
        {
            // A connected UDP socket reports the loss of the datagram before, and is still good.
            let is_earlier = matches!(self.socket, Socket::Udp(_)) && error == Errno::ECONNREFUSED;
            let is_usable = is_earlier || (self.dialled.elapsed() >= REDIAL_INTERVAL && self.dial().is_ok());
            if is_usable {
                sent = self.socket.send(datagram);
            }
        }
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn header(&mut self) -> &[u8] {
        let now = Timestamp::now();
        let (second, header) = &mut self.header;
        if *second != now.as_second() {
            *second = now.as_second();
            header.clear();
            let time = rfc3164_time(self.time_zone.to_datetime(now));
            // A write to a vector does not fail.
            let _infallible = write!(header, "<{}>{time} {}", self.priority, self.origin);
        }
        header
    }
}

fn rfc3164_time(time: DateTime) -> String {
    time.strftime("%b %e %H:%M:%S").to_string()
}

impl Address {
    fn socket(&self) -> io::Result<Socket> {
        let socket = match self {
            Self::Udp(address) if address.is_ipv4() => {
                Socket::Udp(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
            }
            Self::Udp(_) => Socket::Udp(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?),
            Self::Unix(_) => Socket::Unix(UnixDatagram::unbound()?),
        };
        match &socket {
            Socket::Udp(udp) => udp.set_nonblocking(true)?,
            Socket::Unix(unix) => unix.set_nonblocking(true)?,
        }
        Ok(socket)
    }
}

impl Socket {
    fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        loop {
            let sent = match self {
                Self::Udp(socket) => socket.send(datagram),
                Self::Unix(socket) => socket.send(datagram),
            };
            match sent.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether an error means that the server has gone.
fn is_lost(error: Errno) -> bool {
    matches!(
        error,
        Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::ENOTCONN
            | Errno::EDESTADDRREQ
            | Errno::EPIPE
            | Errno::ENOENT
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
    )
}

impl AsFd for SyslogOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}
