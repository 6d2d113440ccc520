//! The successor's side of a hand-over.
//!
//! If the predecessor is killed after it has sent its sockets, the successor goes on alone: there
//! is no other process to serve clients, and no other writer. An orderly end kills it first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;

use super::generations::LifeToken;
use super::link::{Link, ReceiveError};
use super::message::{DrainingName, Message};
use super::{DrainingProcess, ENVIRONMENT, Generations, HandoverError, OfferedSocket, PROTOCOL, Step, Wait};

/// The offer is sent before the successor runs.
const OFFER_MAX: Duration = Duration::from_secs(30);

/// The sockets of a predecessor; nothing is taken over yet.
#[derive(Debug)]
pub struct OfferedSuccession {
    link: Arc<Link>,
    /// The sockets, until they are taken.
    pub sockets: Vec<OfferedSocket>,
    /// This process's place in the chain.
    pub generations: Generations,
    /// The process id of the predecessor.
    pub predecessor: u32,
}

/// The settings are valid, and the sockets are taken.
#[derive(Debug)]
pub struct PreparingSuccession(Arc<Link>);

/// Everything is paused in the predecessor: this process may accept connections.
#[derive(Debug)]
pub struct PermittedSuccession(Arc<Link>);

/// This process accepts connections.
#[derive(Debug)]
pub struct ServingSuccession(Arc<Link>);

/// Reports to the predecessor why this process ends.
#[derive(Debug, Clone)]
pub struct FailureReporter(Arc<Link>);

/// The offer of the predecessor that started this process; `None` if there is none. Call it once,
/// before standard input is read; it is `/dev/null` afterwards.
///
/// # Errors
/// [`HandoverError`].
pub fn take_over(cancelled: &dyn Fn() -> bool) -> Result<Option<OfferedSuccession>, HandoverError> {
    let Some(version) = std::env::var_os(ENVIRONMENT) else { return Ok(None) };
    let stdin = io::stdin();
    let link =
        open_link(stdin.as_fd().try_clone_to_owned().map_err(HandoverError::system("standard input"))?)?;
    let null = std::fs::File::open("/dev/null").map_err(HandoverError::system("/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(HandoverError::system("standard input"))?;
    if version != PROTOCOL.to_string().as_str() {
        let error = HandoverError::OtherProtocol(version.to_string_lossy().into_owned());
        FailureReporter(Arc::new(link)).report(&error.to_string());
        return Err(error);
    }
    receive_offer(link, Wait::new(OFFER_MAX, cancelled)).map(Some)
}

/// Checks that the descriptor is an end of a predecessor's pair.
pub(super) fn open_link(socket: OwnedFd) -> Result<Link, HandoverError> {
    let not_ours = |found: &str| Err(HandoverError::NotAPredecessor { found: found.to_owned() });
    let Ok(kind) = socket_type(&socket) else { return not_ours("a file, a pipe or a terminal") };
    if socket_domain(&socket) != Ok(AddressFamily::UNIX) || kind != SocketType::SEQPACKET {
        return not_ours("another kind of socket");
    }
    let listens = getsockopt(&socket, sockopt::AcceptConn).unwrap_or(true);
    match getsockopt(&socket, sockopt::PeerCredentials) {
        Ok(peer) if !listens && [Uid::effective().as_raw(), 0].contains(&peer.uid()) => {
            Link::of(socket).map_err(HandoverError::system("standard input"))
        }
        Ok(_) => not_ours("a socket of another user"),
        Err(_) => not_ours("a socket without a peer"),
    }
}

pub(super) fn receive_offer(link: Link, wait: Wait<'_>) -> Result<OfferedSuccession, HandoverError> {
    let link = Arc::new(link);
    let result = offered(&link, wait);
    if let Err(error) = &result {
        FailureReporter(Arc::clone(&link)).report(&error.to_string());
    }
    result
}

fn offered(link: &Arc<Link>, wait: Wait<'_>) -> Result<OfferedSuccession, HandoverError> {
    let (message, tokens) = receive(link, Step::Offered, wait)?;
    let Message::Offer { pid, generation, sockets: count, draining } = message else {
        return Err(unexpected(&message));
    };
    if draining.len() != tokens.len() {
        return Err(HandoverError::Protocol(format!(
            "{} life tokens for {} names",
            tokens.len(),
            draining.len()
        )));
    }
    let mut sockets = Vec::new();
    while sockets.len() < count {
        let (message, descriptors) = receive(link, Step::Offered, wait)?;
        let Message::Sockets { sockets: names } = message else { return Err(unexpected(&message)) };
        if names.len() != descriptors.len() || names.is_empty() {
            let (names, found) = (names.len(), descriptors.len());
            return Err(HandoverError::Protocol(format!("{found} sockets for {names} names")));
        }
        let named = names.into_iter().zip(descriptors);
        sockets.extend(named.map(|(named, socket)| OfferedSocket {
            name: named.name,
            address: named.address,
            socket,
            activated: named.activated,
        }));
    }
    let mut tokens: Vec<LifeToken> = draining
        .into_iter()
        .zip(tokens)
        .map(|(DrainingName { pid, generation }, token)| LifeToken {
            process: DrainingProcess { pid, generation },
            token: Arc::new(token),
        })
        .collect();
    let own = link.try_clone().map_err(HandoverError::system("cannot keep the life token"))?;
    tokens.push(LifeToken { process: DrainingProcess { pid, generation }, token: Arc::new(own) });
    let generations = Generations::following(generation, tokens);
    Ok(OfferedSuccession { link: Arc::clone(link), sockets, generations, predecessor: pid })
}

impl OfferedSuccession {
    /// For the error path of the start.
    pub fn failure_reporter(&self) -> FailureReporter {
        FailureReporter(Arc::clone(&self.link))
    }

    /// Reports that the settings are valid and the sockets are taken.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub fn started(self) -> Result<PreparingSuccession, HandoverError> {
        send(&self.link, &Message::Started)?;
        Ok(PreparingSuccession(self.link))
    }
}

impl PreparingSuccession {
    /// Reports that everything is prepared, and waits for the permission to accept connections.
    ///
    /// # Errors
    /// [`HandoverError`]: the predecessor serves on.
    pub fn ready(self, detail: Value, wait: Wait<'_>) -> Result<PermittedSuccession, HandoverError> {
        send(&self.0, &Message::Ready { detail })?;
        match receive(&self.0, Step::Paused, wait) {
            Ok((Message::Go, _)) | Err(HandoverError::PredecessorGone(_)) => Ok(PermittedSuccession(self.0)),
            Ok((other, _)) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }
}

impl PermittedSuccession {
    /// Reports that this process accepts on all sockets. Nothing goes back after it.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub fn serving(self) -> Result<ServingSuccession, HandoverError> {
        send(&self.0, &Message::Serving)?;
        Ok(ServingSuccession(self.0))
    }
}

impl ServingSuccession {
    /// Waits until the predecessor has closed its listeners or has ended.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn wait_released(self, wait: Wait<'_>) -> Result<(), HandoverError> {
        match receive(&self.0, Step::Released, wait) {
            Ok((Message::Released, _)) | Err(HandoverError::PredecessorGone(_)) => Ok(()),
            Ok((other, _)) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }
}

impl FailureReporter {
    /// Sends the reason. Call it before this process ends; after `serving` it has no effect.
    pub fn report(&self, reason: &str) {
        // Without it the predecessor sees the end of this process.
        let _best_effort = self.0.send(&Message::failed(reason), &[]);
    }
}

/// A predecessor that has ended is no error here: the next receive finds that out.
fn send(link: &Link, message: &Message) -> Result<(), HandoverError> {
    match link.send(message, &[]) {
        Err(HandoverError::System { error, .. })
            if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Ok(())
        }
        sent => sent,
    }
}

fn receive(link: &Link, step: Step, wait: Wait<'_>) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
    link.receive(wait).map_err(|error| match error {
        ReceiveError::Closed => HandoverError::PredecessorGone(step),
        ReceiveError::Late => HandoverError::PredecessorLate { step, limit: wait.limit },
        ReceiveError::Cancelled => HandoverError::Cancelled,
        ReceiveError::Invalid(found) => HandoverError::Protocol(found),
        ReceiveError::Io(error) => {
            HandoverError::System { action: "cannot read from the predecessor", error }
        }
    })
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Protocol(format!("the message {} comes too early or too late", message.name()))
}
