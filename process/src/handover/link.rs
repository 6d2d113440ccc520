//! One end of the pair of sockets between predecessor and successor.
//!
//! Invariant: a received descriptor is closed on exec, and closed at once when its message is
//! rejected.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::message::{BYTES_MAX, DESCRIPTORS_MAX, Message};
use super::{HandoverError, Wait};

/// How often a wait checks whether it is cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
/// A send waits while the other process leaves some ten messages unread.
const SEND_MAX: Duration = Duration::from_secs(10);
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// What came instead of a message.
#[derive(Debug)]
pub(super) enum ReceiveError {
    /// The other process has ended or closed its end.
    Closed,
    Late,
    Cancelled,
    Invalid(String),
    Io(io::Error),
}

impl Link {
    /// Both ends, closed on exec.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::of(own)?, other))
    }

    /// An end that was made by [`Link::pair`].
    pub(super) fn of(socket: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Send, Some(SEND_MAX))?;
        Ok(Self(socket))
    }

    /// Another descriptor of this end.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Sends one message, with descriptors.
    pub(super) fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let name = message.name();
        let bytes = serde_json::to_vec(message)
            .map_err(|error| HandoverError::Protocol(format!("{name} cannot be written: {error}")))?;
        if bytes.len() > BYTES_MAX {
            return Err(HandoverError::Protocol(format!(
                "{name} has {} bytes, over {BYTES_MAX}",
                bytes.len()
            )));
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = descriptors.len() <= DESCRIPTORS_MAX
            && (descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        if !fits {
            let count = descriptors.len();
            return Err(HandoverError::Protocol(format!(
                "{name} has {count} descriptors, over {DESCRIPTORS_MAX}"
            )));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags))
            .map(|_sent| ())
            .map_err(HandoverError::system("cannot send to the other process"))
    }

    /// Waits for the next message.
    pub(super) fn receive(&self, wait: Wait<'_>) -> Result<(Message, Vec<OwnedFd>), ReceiveError> {
        let deadline = Instant::now() + wait.limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_readable(left.min(CANCEL_INTERVAL)).map_err(ReceiveError::Io)? {
                return self.receive_now();
            }
            if (wait.cancelled)() {
                return Err(ReceiveError::Cancelled);
            }
            if left.is_zero() {
                return Err(ReceiveError::Late);
            }
        }
    }

    fn receive_now(&self) -> Result<(Message, Vec<OwnedFd>), ReceiveError> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
        });
        let received = match received {
            Ok(received) => received,
            // It closed its end without reading everything.
            Err(rustix::io::Errno::CONNRESET) => return Err(ReceiveError::Closed),
            Err(error) => return Err(ReceiveError::Io(error.into())),
        };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ReceiveError::Invalid(format!("a message has more than {BYTES_MAX} bytes")));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ReceiveError::Invalid(
                "descriptors of a message were lost: the limit on open descriptors (ulimit -n, LimitNOFILE) may be too low"
                    .to_owned(),
            ));
        }
        bytes.truncate(received.bytes);
        let message = serde_json::from_slice(&bytes)
            .map_err(|error| ReceiveError::Invalid(format!("a message cannot be read: {error}")))?;
        Ok((message, descriptors))
    }

    fn is_readable(&self, limit: Duration) -> io::Result<bool> {
        poll_one(self.0.as_fd(), PollFlags::POLLIN, limit).map(|events| !events.is_empty())
    }
}

/// Whether the other end of a life token is still open.
pub(super) fn is_open(token: &OwnedFd) -> bool {
    let events = poll_one(token.as_fd(), PollFlags::empty(), Duration::ZERO);
    // Without an answer the process counts as alive: that refuses an upgrade, and breaks nothing.
    !events.is_ok_and(|events| events.contains(PollFlags::POLLHUP))
}

fn poll_one(descriptor: BorrowedFd<'_>, events: PollFlags, limit: Duration) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(descriptor, events)];
    match poll(&mut polled, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(polled.iter().filter_map(PollFd::revents).fold(PollFlags::empty(), PollFlags::union)),
        // The caller polls again.
        Err(nix::errno::Errno::EINTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error.into()),
    }
}
