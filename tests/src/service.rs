//! A service manager's end of sd_notify(3): a datagram socket that sees what a program sends, in
//! order, and which process sends it.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::process::EVENT_TIMEOUT;

/// The socket, and the value of NOTIFY_SOCKET that leads to it.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    variable: OsString,
}

impl NotifySocket {
    /// A socket with a path, as systemd has it.
    pub fn at(path: &Path) -> Self {
        let socket = StdDatagram::bind(path).expect("the path is free");
        Self::new(socket, path.as_os_str().to_owned())
    }

    /// A socket with an abstract name, as service managers of containers have it.
    pub fn abstract_name(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let socket = StdDatagram::bind_addr(&address).expect("the name is free");
        Self::new(socket, format!("@{name}").into())
    }

    fn new(socket: StdDatagram, variable: OsString) -> Self {
        socket.set_nonblocking(true).expect("a socket can be nonblocking");
        setsockopt(&socket, sockopt::PassCred, &true).expect("the kernel names the senders");
        let socket = UnixDatagram::from_std(socket).expect("a runtime is running");
        Self { socket, variable }
    }

    /// The value of NOTIFY_SOCKET.
    pub fn variable(&self) -> &str {
        self.variable.to_str().expect("names of tests are UTF-8")
    }

    /// The lines of the next message.
    pub async fn next(&self) -> Vec<String> {
        self.next_with_sender().await.1
    }

    /// The process id of the next sender, and the lines of its message.
    pub async fn next_with_sender(&self) -> (u32, Vec<String>) {
        timeout(EVENT_TIMEOUT, self.receive()).await.expect("the service manager is notified")
    }

    /// The next message within this time.
    pub async fn next_within(&self, time: Duration) -> Option<Vec<String>> {
        timeout(time, self.receive()).await.ok().map(|(_, lines)| lines)
    }

    /// Discards messages up to the first with a line that begins so; returns that line.
    pub async fn until(&self, line: &str) -> String {
        let waiting = async {
            loop {
                let (_, lines) = self.receive().await;
                if let Some(found) = lines.into_iter().find(|found| found.starts_with(line)) {
                    return found;
                }
            }
        };
        timeout(EVENT_TIMEOUT, waiting).await.unwrap_or_else(|_| panic!("no message with {line}"))
    }

    /// Discards what has been sent so far.
    pub fn clear(&self) {
        while self.socket.try_recv(&mut [0; 1]).is_ok() {}
    }

    async fn receive(&self) -> (u32, Vec<String>) {
        let received = self.socket.async_io(Interest::READABLE, || receive_message(self.socket.as_raw_fd()));
        received.await.expect("the socket is open")
    }
}

fn receive_message(socket: i32) -> io::Result<(u32, Vec<String>)> {
    let mut buffer = [0; 8192];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(UnixCredentials);
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let sender = message.cmsgs()?.find_map(|attached| match attached {
        ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid().cast_unsigned()),
        _ => None,
    });
    let read = message.bytes;
    let lines = String::from_utf8_lossy(&buffer[..read]).lines().map(str::to_owned).collect();
    Ok((sender.expect("SO_PASSCRED is set"), lines))
}
