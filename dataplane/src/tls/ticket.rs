//! Session tickets, bound to one site and its policy.
//!
//! A key follows from the fleet's ring of secrets and from the site's [`TicketBinding`]: its id,
//! the digest of its policy, its TLS versions. So a ticket of another site, or from before a change
//! of these, names a key that does not exist. The ticket holds the [`ValidityPeriod`] of the
//! client's verdict. A rejected ticket leads to a full handshake, never to a failed one.
//!
//! Layout: key name, nonce, then AES-256-GCM-SIV (nonces are random, and no counter spans the
//! fleet) of validity period and session; the name is authenticated. Invariant: rustls gets a
//! session only from [`SiteTicketer::open`], within its period, in a handshake whose
//! [`HandshakeState`] then has that period; no session is sealed without one.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::digest::{SHA256, digest};
use model::Id;
use pki::ClientAuth;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use self::keys::TicketKeys;
use super::handshake_state::{HandshakeState, ValidityPeriod};
use crate::lifecycle::handles::TicketRingHandle;
use crate::observability::TicketRejection;

mod keys;

/// `from` and `until` of the validity period.
const VALIDITY_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// The largest session that gets a ticket: clients send tickets back in their ClientHello, and a
/// session holds the whole chain that its client presented. Bytes.
const SESSION_BYTES_MAX: usize = 16 * 1024;

/// The site that tickets are bound to.
pub(crate) struct TicketBinding {
    /// A SHA-256 digest, since there may be a million sites.
    info: [u8; 32],
    requires_client_cert: bool,
}

impl TicketBinding {
    /// Binds to a site's id, its policy (`None`: it requests no certificate) and its versions.
    pub(crate) fn new(id: &Id, policy: Option<&ClientAuth>, versions: &[&SupportedProtocolVersion]) -> Self {
        let id = id.as_str();
        let mut versions: Vec<u16> = versions.iter().map(|version| version.version.into()).collect();
        versions.sort_unstable();
        versions.dedup();
        // Unambiguous: the id has its length in front, and the rest but the versions is of fixed
        // length.
        let mut encoded = Vec::with_capacity(64 + id.len());
        encoded.extend_from_slice(&(id.len() as u64).to_be_bytes());
        encoded.extend_from_slice(id.as_bytes());
        encoded.push(match policy {
            None => 0,
            Some(policy) if policy.requires_client_cert() => 2,
            Some(_) => 1,
        });
        encoded.extend_from_slice(policy.map_or(&[0; 32], |policy| policy.digest()));
        versions.iter().for_each(|version| encoded.extend_from_slice(&version.to_be_bytes()));
        let mut info = [0; 32];
        info.copy_from_slice(digest(&SHA256, &encoded).as_ref()); // both are 32 bytes
        Self { info, requires_client_cert: policy.is_some_and(ClientAuth::requires_client_cert) }
    }
}

/// Seals and opens the tickets of one site, for rustls. All workers share it.
pub(crate) struct SiteTicketer {
    binding: TicketBinding,
    ring: Arc<TicketRingHandle>,
    keys: ArcSwap<TicketKeys>,
}

impl SiteTicketer {
    /// The keys follow the newest ring in `ring`.
    pub(crate) fn new(binding: TicketBinding, ring: Arc<TicketRingHandle>) -> Self {
        let keys = ArcSwap::from_pointee(TicketKeys::new(&ring.load(), &binding.info));
        Self { binding, ring, keys }
    }

    /// The keys of the newest ring. Costs a comparison as long as the ring stays; two workers that
    /// see a new ring at once both derive its names.
    fn keys(&self) -> Guard<Arc<TicketKeys>> {
        let (ring, keys) = (self.ring.load(), self.keys.load());
        if Arc::ptr_eq(&ring, &keys.ring) {
            return keys;
        }
        self.keys.store(Arc::new(TicketKeys::new(&ring, &self.binding.info)));
        self.keys.load()
    }

    /// Seals a session into a ticket; `None` if it gets none.
    fn seal(&self, session: &[u8], period: ValidityPeriod, now: u64) -> Option<Vec<u8>> {
        if session.len() > SESSION_BYTES_MAX || !period.contains(now) {
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
        ticket.extend_from_slice(&period.from.to_be_bytes());
        ticket.extend_from_slice(&period.until.to_be_bytes());
        ticket.extend_from_slice(session);
        let (nonce, plaintext) = (Nonce::assume_unique_for_key(nonce), ticket.get_mut(header..)?);
        let tag = key.with_aead(&self.binding.info, |aead| {
            aead.seal_in_place_separate_tag(nonce, Aad::from(key.name), plaintext).ok()
        })?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// Opens a ticket: its session, and the validity period of its verdict.
    fn open(&self, ticket: &[u8], now: u64) -> Result<(Vec<u8>, ValidityPeriod), TicketRejection> {
        let (name, rest) = ticket.split_first_chunk::<16>().ok_or(TicketRejection::UnknownKey)?;
        let keys = self.keys();
        let key = keys.by_name(name).ok_or(TicketRejection::UnknownKey)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(TicketRejection::Malformed)?;
        // Zeroized if the ticket is rejected.
        let mut buf = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.with_aead(&self.binding.info, |aead| {
            aead.open_in_place(nonce, Aad::from(*name), &mut buf).map(|plaintext| plaintext.len()).ok()
        });
        let plaintext = len.and_then(|len| buf.get(..len)).ok_or(TicketRejection::Malformed)?;
        let (from, rest) = plaintext.split_first_chunk::<8>().ok_or(TicketRejection::Malformed)?;
        let (until, session) = rest.split_first_chunk::<8>().ok_or(TicketRejection::Malformed)?;
        let period = ValidityPeriod { from: u64::from_be_bytes(*from), until: u64::from_be_bytes(*until) };
        if !period.contains(now) {
            return Err(TicketRejection::Expired);
        }
        let session_len = session.len();
        buf.truncate(VALIDITY_BYTES + session_len);
        buf.drain(..VALIDITY_BYTES);
        Ok((std::mem::take(&mut *buf), period))
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
        let period = HandshakeState::ticket_validity(self.binding.requires_client_cert, now, lifetime)?;
        self.seal(session, period, now)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        // An empty ticket requests one (RFC 5077 section 3.2).
        if ticket.is_empty() {
            return None;
        }
        match self.open(ticket, UnixTime::now().as_secs()) {
            Ok((session, period)) => HandshakeState::ticket_accepted(period).then_some(session),
            Err(rejection) => {
                HandshakeState::ticket_rejected(rejection);
                None
            }
        }
    }
}

impl std::fmt::Debug for SiteTicketer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SiteTicketer({} keys, not shown)", self.keys.load().len())
    }
}

#[cfg(test)]
mod tests;
