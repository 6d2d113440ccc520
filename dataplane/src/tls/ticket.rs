//! Session tickets: sealed by one site for itself, so that a session resumes where its client would
//! be let in anyway.
//!
//! Keys are derived from the fleet's ring of secrets (`agent::Secrets`) and from the site's
//! [`Binding`]: its id, the digest of its policy, its TLS versions. A ticket of another site, or
//! from before one of these changed, therefore names a key that does not exist here. In the ticket,
//! sealed, is the [`Window`] in which the client's verdict holds. What a ticket cannot open
//! leads to a full handshake, never to a failed one.
//!
//! Layout: key name, nonce, then AES-256-GCM-SIV (nonces are random, and nobody counts over a
//! fleet) of window and session, with the name authenticated. Invariant: a session is handed to
//! rustls only by [`Tickets::open`], within its window, in a handshake whose [`Resumption`] then
//! knows that window; and none is sealed without one.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::digest::{SHA256, digest};
use model::Id;
use pki::ClientAuth;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;
pub use scope::{HandshakeState, ValidityPeriod};
use zeroize::Zeroizing;

use self::keys::TicketKeys;
use crate::lifecycle::handles::TicketRingHandle;
use crate::observability::reason::TicketRejection;

mod keys;
mod scope;

/// `from` and `until`.
const VALIDITY_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// The largest session that gets a ticket, in bytes: clients send tickets back in their
/// ClientHello, and a session holds whatever chain its client chose to send.
const SESSION_BYTES_MAX: usize = 16 * 1024;

/// What a site's tickets are bound to.
pub struct TicketBinding {
    /// SHA-256 of everything, so encoded that two sites never have the same bytes: there may be a
    /// million of them.
    info: [u8; 32],
    /// Nobody without a verified certificate has a session.
    requires_client_cert: bool,
}

impl TicketBinding {
    /// A site by its id, its policy (`None`: it asks for no certificate) and the versions it is
    /// served with.
    pub fn new(id: &Id, policy: Option<&ClientAuth>, versions: &[&SupportedProtocolVersion]) -> Self {
        let id = id.as_str();
        let mut versions: Vec<u16> = versions.iter().map(|version| version.version.into()).collect();
        versions.sort_unstable();
        versions.dedup();
        let mut bound = Vec::with_capacity(64 + id.len());
        bound.extend_from_slice(&(id.len() as u64).to_be_bytes());
        bound.extend_from_slice(id.as_bytes());
        bound.push(match policy {
            None => 0,
            Some(policy) if policy.requires_client_cert() => 2,
            Some(_) => 1,
        });
        bound.extend_from_slice(policy.map_or(&[0; 32], |policy| policy.digest()));
        versions.iter().for_each(|version| bound.extend_from_slice(&version.to_be_bytes()));
        let mut info = [0; 32];
        info.copy_from_slice(digest(&SHA256, &bound).as_ref()); // both are 32 bytes
        Self { info, requires_client_cert: policy.is_some_and(ClientAuth::requires_client_cert) }
    }
}

/// A site's tickets, for rustls. Shared by all cores.
pub struct SiteTicketer {
    binding: TicketBinding,
    secrets: Arc<TicketRingHandle>,
    keys: ArcSwap<TicketKeys>,
}

impl SiteTicketer {
    /// The tickets of a site that is bound so. Keys follow the ring in `secrets`.
    pub fn new(binding: TicketBinding, secrets: Arc<TicketRingHandle>) -> Self {
        let keys = ArcSwap::from_pointee(TicketKeys::new(&secrets.load(), &binding.info));
        Self { binding, secrets, keys }
    }

    /// Those of the newest ring. Costs a comparison while that stays; two cores that see a new one
    /// at once both derive names.
    fn keys(&self) -> Guard<Arc<TicketKeys>> {
        let (ring, keys) = (self.secrets.load(), self.keys.load());
        if Arc::ptr_eq(&ring, &keys.ring) {
            return keys;
        }
        self.keys.store(Arc::new(TicketKeys::new(&ring, &self.binding.info)));
        self.keys.load()
    }

    /// Seals a session whose verdict holds in `window`; `None` when no ticket is to be given.
    fn seal(&self, session: &[u8], window: ValidityPeriod, now: u64) -> Option<Vec<u8>> {
        if session.len() > SESSION_BYTES_MAX || !window.contains(now) {
            return None;
        }
        let keys = self.keys();
        let key = keys.sealing_key(now)?;
        let header = key.name.len() + NONCE_LEN;
        let mut ticket = Vec::with_capacity(header + VALIDITY_BYTES + session.len() + TAG_BYTES);
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&window.from.to_be_bytes());
        ticket.extend_from_slice(&window.until.to_be_bytes());
        ticket.extend_from_slice(session);
        let (nonce, sealed) = (Nonce::assume_unique_for_key(nonce), ticket.get_mut(header..)?);
        let tag = key.with_aead(&self.binding.info, |aead| {
            aead.seal_in_place_separate_tag(nonce, Aad::from(key.name), sealed).ok()
        })?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// The session in a ticket, and the window in which its verdict holds.
    fn open(&self, ticket: &[u8], now: u64) -> Result<(Vec<u8>, ValidityPeriod), TicketRejection> {
        let (name, rest) = ticket.split_first_chunk::<16>().ok_or(TicketRejection::UnknownKey)?;
        let keys = self.keys();
        let key = keys.by_name(name).ok_or(TicketRejection::UnknownKey)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(TicketRejection::Malformed)?;
        // Wiped when it goes no further.
        let mut plain = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.with_aead(&self.binding.info, |aead| {
            aead.open_in_place(nonce, Aad::from(*name), &mut plain).map(|opened| opened.len()).ok()
        });
        let opened = opened.and_then(|length| plain.get(..length)).ok_or(TicketRejection::Malformed)?;
        let (from, rest) = opened.split_first_chunk::<8>().ok_or(TicketRejection::Malformed)?;
        let (until, session) = rest.split_first_chunk::<8>().ok_or(TicketRejection::Malformed)?;
        let window = ValidityPeriod { from: u64::from_be_bytes(*from), until: u64::from_be_bytes(*until) };
        if !window.contains(now) {
            return Err(TicketRejection::Expired);
        }
        let session = session.len();
        plain.truncate(VALIDITY_BYTES + session);
        plain.drain(..VALIDITY_BYTES);
        Ok((std::mem::take(&mut *plain), window))
    }
}

impl ProducesTickets for SiteTicketer {
    fn enabled(&self) -> bool {
        self.keys().len() > 0
    }

    fn lifetime(&self) -> u32 {
        HandshakeState::ticket_lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let now = UnixTime::now().as_secs();
        let lifetime = self.keys().ring.lifetime;
        let window = HandshakeState::ticket_validity(self.binding.requires_client_cert, now, lifetime)?;
        self.seal(session, window, now)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        // An empty one is no ticket but the wish for one (RFC 5077 section 3.2).
        if ticket.is_empty() {
            return None;
        }
        let opened = self.open(ticket, UnixTime::now().as_secs());
        match opened {
            Ok((session, window)) => HandshakeState::ticket_accepted(window).then_some(session),
            Err(refusal) => {
                HandshakeState::ticket_rejected(refusal);
                None
            }
        }
    }
}

impl std::fmt::Debug for SiteTicketer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tickets({} keys, not shown)", self.keys.load().len())
    }
}

#[cfg(test)]
mod tests;
