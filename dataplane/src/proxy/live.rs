//! Live connections: what TLS established on each, and the end of those whose client is no longer
//! let in.
//!
//! Stands between the handshake and the session: `connection` enters what a handshake established
//! and holds it as long as the connection lives. A client is judged again by each request
//! ([`Established::review`]) and, whether it asks for anything or not, by [`tend`], which looks
//! through a worker's connections when the sites have changed and when a certificate's time is up.
//! Invariants: a client that the newest policy refuses is gone within a second, a request under way
//! included; nobody else notices. A connection whose site is gone, and that no client policy ever
//! asked anything, finishes what is under way instead, within `worker_shutdown_timeout` (decision
//! 42). The look is cut into slices so small that the requests between them are not delayed, and
//! nothing is looked through for a change that touches no site.

use std::borrow::Cow;
use std::cell::{Cell, Ref, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::admission::ClientVerification;
use model::{HostName, Snapshot, Ssl};
use pki::{Certificate, ClientAuth, PolicyDigest, VerifiedClient};
use rustls::pki_types::{CertificateDer, UnixTime};
use slab::Slab;

use crate::io::timeouts::TimeoutHandle;
use crate::lifecycle::drain::{DrainGuard, DrainHandle};
use crate::observability::log;
use crate::observability::metrics::Counters;
use crate::proxy::worker::Worker;
use crate::reason::Reason;
use crate::runtime;
use crate::tls::{Subsystem, client_verifier};

/// How often a worker asks whether the sites have changed.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often it looks for verdicts whose time is up.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// A look through all connections takes at most this many slices, a pause of a timer's granularity
/// after each.
const BATCHES_MAX: usize = 400;
/// Connections in a slice at the least; one costs about a microsecond.
const BATCH_MIN: usize = 16;
/// The pause between two slices.
const BATCH_PAUSE: Duration = Duration::from_millis(1);

/// What the handshake of one connection established.
pub struct ClientAuthState {
    /// The name the site was chosen by.
    pub sni: HostName,
    /// Who dialled us.
    pub peer: SocketAddr,
    /// What the handshake led to.
    purpose: Subsystem,
    verdict: RefCell<ClientVerdict>,
    /// [`Snapshot::site_changes`] of the snapshot it was last judged by.
    site_generation: Cell<u64>,
}

/// What becomes of a connection that may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseMode {
    /// It ends at once, a request under way included.
    Immediate(Reason),
    /// It finishes what is under way: its site is gone, and no client policy is involved.
    Graceful,
}

/// How the client stands under the policy of a certain digest.
struct ClientVerdict {
    policy_digest: Option<PolicyDigest>,
    /// The site has asked for a client certificate since the handshake, or in it.
    certificate_requested: bool,
    client: ClientVerification,
    /// What the client showed, to be judged again; `None` where its verdict holds all of that,
    /// which the connections of one client share.
    presented_chain: Option<Vec<CertificateDer<'static>>>,
    /// The client was verified once, and is refused now.
    was_verified: bool,
}

impl ClientVerdict {
    fn new(
        policy: Option<&ClientAuth>,
        client: ClientVerification,
        shown: Cow<'_, [CertificateDer<'static>]>,
    ) -> Self {
        let held =
            matches!(&client, ClientVerification::Verified(verified) if is_whole_chain(verified, &shown));
        Self {
            policy_digest: policy.map(|policy| *policy.digest()),
            certificate_requested: policy.is_some(),
            client,
            presented_chain: (!held).then(|| shown.into_owned()),
            was_verified: false,
        }
    }

    /// What the client showed, its own certificate first.
    fn presented_chain(&self) -> Cow<'_, [CertificateDer<'static>]> {
        match (&self.presented_chain, &self.client) {
            (Some(shown), _) => Cow::Borrowed(shown),
            (None, ClientVerification::Verified(verified)) => Cow::Owned(
                verified_certificates(verified).map(|certificate| certificate.der().clone()).collect(),
            ),
            (None, _) => Cow::Borrowed(&[]),
        }
    }
}

/// The certificates of a verdict, the client's own first.
fn verified_certificates(verified: &VerifiedClient) -> impl Iterator<Item = &Certificate> {
    std::iter::once(verified.identity().certificate()).chain(verified.path())
}

/// Whether a verdict's certificates are these and no others.
fn is_whole_chain(verified: &VerifiedClient, shown: &[CertificateDer<'static>]) -> bool {
    verified_certificates(verified).map(Certificate::der).eq(shown)
}

impl ClientAuthState {
    /// Judges what the client showed in the handshake, by the site that it was made for, as it was
    /// when the sites had changed `as_of` times.
    pub fn new(
        sni: HostName,
        peer: SocketAddr,
        chain: Cow<'_, [CertificateDer<'static>]>,
        ssl: &Ssl,
        as_of: u64,
        purpose: Subsystem,
    ) -> Self {
        let policy = ssl.client.as_deref();
        let client = client_verifier::evaluate_client(policy, Some(&chain), UnixTime::now());
        let standing = RefCell::new(ClientVerdict::new(policy, client, chain));
        Self { sni, peer, purpose, verdict: standing, site_generation: Cell::new(as_of) }
    }

    /// Judges the client anew if the site's policy is not the one it was judged under.
    pub fn update_verdict(&self, ssl: &Ssl) {
        let policy = ssl.client.as_deref();
        if self.verdict.borrow().policy_digest.as_ref() != policy.map(ClientAuth::digest) {
            self.reverify(policy, UnixTime::now());
        }
    }

    /// The certificate it showed for itself.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.verdict.borrow().presented_chain().first().cloned()
    }

    /// The client, as it was last judged.
    pub fn client(&self) -> Ref<'_, ClientVerification> {
        Ref::map(self.verdict.borrow(), |standing| &standing.client)
    }

    /// Whether a handshake of this site may end with such a client.
    pub fn satisfies(&self, ssl: &Ssl) -> bool {
        let insists = ssl.client.as_deref().is_some_and(|policy| self.purpose.requires_client_cert(policy));
        !insists || matches!(*self.client(), ClientVerification::Verified(_))
    }

    /// Whether a stream's client may pass: where it was asked for a certificate it has shown a good
    /// one. Its handshake insists on that already; nothing that a handshake may come to skip
    /// shall change it.
    ///
    /// # Errors
    /// Why not.
    pub fn check_tcp_client(&self) -> Result<(), Reason> {
        match *self.client() {
            ClientVerification::Verified(_) | ClientVerification::NotRequested => Ok(()),
            ClientVerification::NoCertificate => Err(Reason::NoCertificate),
            ClientVerification::Rejected(_) => Err(Reason::BadCertificate),
        }
    }

    /// Counts and logs the end of this connection for `reason`.
    pub fn record_termination(&self, counters: &Counters, reason: Reason) {
        counters.record_error(reason);
        let rule = self.client().rejection_for(reason);
        if let Some(rule) = rule {
            counters.record_certificate_rejection(rule);
        }
        let leaf = self.leaf();
        let denied = log::ClientDenial {
            reason,
            sni: &self.sni,
            host: None,
            verify_reason: rule,
            leaf: leaf.as_ref(),
        };
        log::connection_terminated(self.peer, &denied);
    }

    /// What becomes of this connection under the newest sites, if it may not go on.
    fn revalidate(&self, snapshot: &Snapshot) -> Option<CloseMode> {
        self.site_generation.set(snapshot.site_generation());
        let Some(ssl) = snapshot.site(&self.sni) else {
            let asked = self.verdict.borrow().certificate_requested;
            return Some(if asked { CloseMode::Immediate(Reason::NoSite) } else { CloseMode::Graceful });
        };
        if ssl.blocked.is_some() {
            return Some(CloseMode::Immediate(Reason::BlockedSite));
        }
        self.update_verdict(ssl);
        self.check_policy(ssl)
    }

    /// The same when nothing but the time has moved.
    fn revalidate_expiry(&self, snapshot: &Snapshot, now: UnixTime) -> Option<CloseMode> {
        let over = matches!(&self.verdict.borrow().client, ClientVerification::Verified(verified) if !verified.is_valid_at(now));
        if !over {
            return None;
        }
        let ssl = snapshot.site(&self.sni)?;
        self.reverify(ssl.client.as_deref(), now);
        self.check_policy(ssl)
    }

    /// Where the site does not insist, each request is judged; but whoever was somebody and no
    /// longer is has to begin anew. A stream has no requests: there every site insists.
    fn check_policy(&self, ssl: &Ssl) -> Option<CloseMode> {
        let policy = ssl.client.as_deref()?;
        let standing = self.verdict.borrow();
        match standing.client {
            ClientVerification::Verified(_) => None,
            _ if self.purpose.requires_client_cert(policy) || standing.was_verified => {
                Some(CloseMode::Immediate(Reason::PolicyChanged))
            }
            _ => None,
        }
    }

    fn reverify(&self, policy: Option<&ClientAuth>, now: UnixTime) {
        let mut standing = self.verdict.borrow_mut();
        let known = match (policy, &standing.client) {
            (Some(policy), ClientVerification::Verified(before)) => pki::reverify(policy, before, now),
            _ => None,
        };
        let client = match known {
            Some(verified) => ClientVerification::Verified(Arc::new(verified)),
            None => client_verifier::evaluate_client(policy, Some(&standing.presented_chain()), now),
        };
        let was = standing.was_verified || matches!(standing.client, ClientVerification::Verified(_));
        let fallen = was && matches!(client, ClientVerification::Rejected(_));
        let shown = standing.presented_chain().into_owned();
        let asked = standing.certificate_requested || policy.is_some();
        *standing = ClientVerdict {
            was_verified: fallen,
            certificate_requested: asked,
            ..ClientVerdict::new(policy, client, Cow::Owned(shown))
        };
    }
}

/// A worker's live TLS connections.
#[derive(Default)]
pub struct ConnectionRegistry(RefCell<Slab<Rc<RegisteredConnection>>>);

struct RegisteredConnection {
    client_auth: Rc<ClientAuthState>,
    watched: TimeoutHandle,
    drain_handle: DrainHandle,
    /// Since when it is to finish.
    draining_since: Cell<Option<Instant>>,
}

impl RegisteredConnection {
    /// Tells the connection to finish; whether it was not told before. A stream cannot be told, and
    /// goes on until its sides end it or its time is up.
    fn drain(&self) -> bool {
        let first = self.draining_since.get().is_none();
        if first {
            self.draining_since.set(Some(Instant::now()));
            if self.client_auth.purpose == Subsystem::Http {
                self.drain_handle.drain();
            }
        }
        first
    }

    /// Whether it has had `limit` to finish; true once.
    fn is_overdue(&self, limit: Duration) -> bool {
        let late = self.draining_since.get().is_some_and(|since| since.elapsed() >= limit);
        if late {
            self.draining_since.take();
        }
        late
    }
}

/// A connection's place among the live ones; dropping it says that the connection is over. It goes
/// before the connection's
/// [`Running`].
pub struct RegistryGuard {
    registry: Rc<ConnectionRegistry>,
    key: usize,
}

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        self.registry.0.borrow_mut().try_remove(self.key);
    }
}

impl ConnectionRegistry {
    /// Enters a connection whose handshake is done.
    ///
    /// # Errors
    /// Why the client is refused after all: the sites may have changed while it shook hands.
    pub fn register(
        self: &Rc<Self>,
        established: &Rc<ClientAuthState>,
        watched: TimeoutHandle,
        running: &DrainGuard,
        snapshot: &Snapshot,
    ) -> Result<RegistryGuard, Reason> {
        let moved = established.site_generation.get() != snapshot.site_generation();
        let fate = if moved { established.revalidate(snapshot) } else { None };
        let entry = RegisteredConnection {
            client_auth: Rc::clone(established),
            watched,
            drain_handle: running.handle(),
            draining_since: Cell::new(None),
        };
        match fate {
            None => {}
            Some(CloseMode::Immediate(reason)) => return Err(reason),
            // Nothing of a stream is under way yet.
            Some(CloseMode::Graceful) if established.purpose == Subsystem::Stream => {
                return Err(Reason::NoSite);
            }
            Some(CloseMode::Graceful) => drop(entry.drain()),
        }
        let key = self.0.borrow_mut().insert(Rc::new(entry));
        Ok(RegistryGuard { registry: Rc::clone(self), key })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries with keys from `from` on, at most `count` keys; `None` past the last.
    fn batch(&self, from: usize, count: usize) -> Option<Vec<Rc<RegisteredConnection>>> {
        let entries = self.0.borrow();
        (from < entries.capacity())
            .then(|| (from..from.saturating_add(count)).filter_map(|key| entries.get(key).cloned()).collect())
    }
}

/// Ends connections whose client is no longer let in, as long as the worker runs.
pub(crate) async fn run_revalidation(worker: Rc<Worker>) {
    let mut seen = worker.snapshot().site_generation();
    let mut looked = Instant::now();
    loop {
        runtime::sleep(CHECK_INTERVAL).await;
        let changes = worker.snapshot().site_generation();
        let moved = changes != seen;
        if moved || looked.elapsed() >= EXPIRY_INTERVAL {
            (seen, looked) = (changes, Instant::now());
            sweep(&worker, moved).await;
        }
    }
}

/// Looks through all connections once. Those that come meanwhile were judged by the newest snapshot
/// when they entered.
async fn sweep(worker: &Worker, moved: bool) {
    let count = BATCH_MIN.max(worker.registry.0.borrow().capacity().div_ceil(BATCHES_MAX));
    let (mut from, mut told) = (0, 0_usize);
    while let Some(entries) = worker.registry.batch(from, count) {
        let (snapshot, now) = (worker.snapshot(), UnixTime::now());
        for entry in &entries {
            let established = &entry.client_auth;
            let mut fate = if moved && established.site_generation.get() != snapshot.site_generation() {
                established.revalidate(&snapshot)
            } else {
                established.revalidate_expiry(&snapshot, now)
            };
            if !matches!(fate, Some(CloseMode::Immediate(_)))
                && entry.is_overdue(worker.shared.config.shutdown_timeout)
            {
                fate = Some(CloseMode::Immediate(Reason::NoSite));
            }
            match fate {
                None => {}
                Some(CloseMode::Graceful) => told += usize::from(entry.drain()),
                Some(CloseMode::Immediate(reason)) => {
                    established.record_termination(&worker.counters, reason);
                    entry.watched.shutdown();
                }
            }
        }
        from += count;
        if !entries.is_empty() {
            runtime::sleep(BATCH_PAUSE).await;
        }
    }
    if told > 0 {
        tracing::info!(
            connections = told,
            "the site of these connections is gone: they finish what is under way"
        );
    }
}

#[cfg(test)]
mod tests;
