//! The client side of TLS towards upstreams: which configuration an upstream has, and for how long.
//! Contract section 6.1.
//!
//! Equal configurations are one: it is found by its content and cached on the upstream, so a change
//! of anything else keeps its connections and sessions. It is in use while a resource of the
//! current snapshot has it; then it is retired, whatever requests still run, and the pool closes
//! its idle connections. Invariant: a retired configuration never comes back, and connections of
//! different configurations are never exchanged.

mod config;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use model::{CacheSlot, Delta, KeyPair, Resource, Snapshot, Ssl, Upstream, UpstreamIdentity};
use process::throttle::LogThrottle;
use rustls::crypto::CryptoProvider;

pub use self::config::TrustDefaults;
pub(crate) use self::config::{Alpn, ClientTlsConfig};
use self::config::{ConfigFactory, TlsKey};
use super::balancer::Balancer;
use crate::tls::record::RecordLayerKind;

/// Unverified upstreams may be many, and each is logged at its first connection.
static UNVERIFIED_LOG: LogThrottle = LogThrottle::new(10, Duration::from_secs(10));

/// Derived from an upstream once and cached on it.
pub struct PreparedUpstream {
    pub balancer: Balancer,
    /// Its configuration, once one was needed.
    resolved: ArcSwapOption<ResolvedTls>,
    /// Whether the upstream has left the current snapshot: nothing is stored here any more.
    retired: Mutex<bool>,
}

/// The configuration of an upstream.
struct ResolvedTls {
    /// The ssl with its client certificate.
    ssl: Option<Weak<Ssl>>,
    lease: Result<Arc<ConfigLease>, ClientTlsError>,
}

/// The use of a configuration by resources of the current snapshot. The last one that is dropped
/// retires it.
struct ConfigLease(Arc<ClientTlsConfig>);

impl Drop for ConfigLease {
    fn drop(&mut self) {
        self.0.retired.store(true, Ordering::Relaxed);
    }
}

/// The upstreams that resolved an ssl of type client, cached on it. `None`: the ssl has left the
/// current snapshot.
struct SslUsers(Mutex<Option<Vec<Weak<PreparedUpstream>>>>);

/// There is no configuration for this upstream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientTlsError {
    /// `tls.client_cert_id` names no ssl. The text is APISIX's, typo included.
    #[error("failed to get ssl cert: ssl id [{0}] not exits")]
    NoSsl(model::Id),
    #[error("failed to get ssl cert: ssl type should be 'client' (ssl id [{0}])")]
    NotClient(model::Id),
    #[error("the client certificate of the upstream (ssl id [{0}]) is blocked: {1}")]
    Blocked(model::Id, String),
    /// rustls cannot use the certificate or its key.
    #[error("the client certificate of the upstream cannot be used: {0}")]
    Unusable(String),
}

/// The client certificate of an upstream.
#[derive(Clone, Copy, Default)]
struct ClientCertificate<'a> {
    pair: Option<&'a KeyPair>,
    /// The ssl that the pair is from, if not from the upstream itself.
    ssl: Option<&'a Arc<Ssl>>,
}

pub struct ClientTlsConfigs {
    /// Replaced when the defaults change.
    factory: ArcSwap<ConfigFactory>,
    /// The configurations in use. Locked when an upstream has none yet, not for each request.
    by_key: Mutex<HashMap<TlsKey, Weak<ConfigLease>>>,
}

impl ClientTlsConfigs {
    /// `records`: the record layer of long-lived connections.
    pub fn new(provider: Arc<CryptoProvider>, defaults: TrustDefaults, records: RecordLayerKind) -> Self {
        let factory = ArcSwap::from_pointee(ConfigFactory::new(provider, defaults, records));
        Self { factory, by_key: Mutex::default() }
    }

    /// Changes the trust in servers of upstreams that do not say so themselves. Configurations that
    /// stay equal go on with their connections and sessions; others are retired, and no connection
    /// that was made with them gets a further request. `snapshot`: gives the one of the workers,
    /// called when the new defaults are in force.
    pub fn set_defaults(&self, defaults: TrustDefaults, snapshot: impl FnOnce() -> Arc<Snapshot>) {
        self.factory.store(Arc::new(self.factory.load().with_defaults(defaults)));
        let snapshot = snapshot();
        for versioned in snapshot.resources() {
            if let Some(upstream) = versioned.resource.own_upstream()
                && let Some(prepared) = upstream.cache.get::<PreparedUpstream>()
                && prepared.resolved.load().is_some()
            {
                match client_certificate(upstream, &snapshot) {
                    // An error comes back with the next request.
                    Ok(certificate) => drop(self.resolve(upstream, &prepared, certificate)),
                    Err(_) => prepared.resolved.store(None),
                }
            }
        }
    }

    pub fn prepared(&self, upstream: &Upstream) -> Arc<PreparedUpstream> {
        get_or_init_cached(&upstream.cache, || PreparedUpstream {
            balancer: Balancer::new(upstream),
            resolved: ArcSwapOption::empty(),
            retired: Mutex::new(false),
        })
    }

    /// The configuration for an upstream; `None`: its scheme is not encrypted.
    ///
    /// # Errors
    /// [`ClientTlsError`]. There is never a connection without the certificate.
    pub fn find(
        &self,
        upstream: &Upstream,
        prepared: &Arc<PreparedUpstream>,
        snapshot: &Snapshot,
    ) -> Result<Option<Arc<ClientTlsConfig>>, ClientTlsError> {
        let is_encrypted = upstream.scheme.is_encrypted();
        is_encrypted.then(|| self.client_config(upstream, prepared, snapshot)).transpose()
    }

    /// The configuration for an upstream within TLS.
    ///
    /// # Errors
    /// [`ClientTlsError`].
    pub fn client_config(
        &self,
        upstream: &Upstream,
        prepared: &Arc<PreparedUpstream>,
        snapshot: &Snapshot,
    ) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
        let certificate = client_certificate(upstream, snapshot)?;
        match &*prepared.resolved.load() {
            Some(resolved) if resolved.is_from(certificate.ssl) => resolved.config(),
            before => {
                if before.is_none() && !self.factory.load().verifies(&upstream.tls) {
                    log_unverified(upstream);
                }
                self.resolve(upstream, prepared, certificate)
            }
        }
    }

    fn resolve(
        &self,
        upstream: &Upstream,
        prepared: &Arc<PreparedUpstream>,
        certificate: ClientCertificate<'_>,
    ) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
        loop {
            let factory = self.factory.load_full();
            let ssl = certificate.ssl.map(Arc::downgrade);
            let lease = self.lease(&factory, upstream, certificate.pair);
            let resolved = Arc::new(ResolvedTls { ssl, lease });
            let config = resolved.config();
            prepared.keep(resolved, certificate.ssl);
            // `set_defaults` may have passed this upstream before it was stored.
            if Arc::ptr_eq(&factory, &self.factory.load()) {
                return config;
            }
        }
    }

    /// The configuration with this content, made now if it is not in use.
    fn lease(
        &self,
        factory: &ConfigFactory,
        upstream: &Upstream,
        pair: Option<&KeyPair>,
    ) -> Result<Arc<ConfigLease>, ClientTlsError> {
        let key = factory.key(&upstream.tls, pair);
        let found = lock(&self.by_key).get(&key).and_then(Weak::upgrade);
        if let Some(lease) = found {
            return Ok(lease);
        }
        // Without the lock: other workers do not wait for a key that is parsed.
        let config = factory.build(&upstream.tls, pair).map_err(ClientTlsError::Unusable)?;
        let mut by_key = lock(&self.by_key);
        if let Some(lease) = by_key.get(&key).and_then(Weak::upgrade) {
            return Ok(lease);
        }
        if by_key.len() == by_key.capacity() {
            by_key.retain(|_, lease| lease.strong_count() > 0);
        }
        let lease = Arc::new(ConfigLease(Arc::new(config)));
        by_key.insert(key, Arc::downgrade(&lease));
        Ok(lease)
    }

    /// Called when the workers have `next`, which is `before` with `delta`. Upstreams that were in
    /// use and still have the same configuration keep it; configurations that only changed or
    /// removed resources had are retired. The cost is the size of the change, and of the upstreams
    /// that use a changed ssl.
    pub fn on_snapshot_change(&self, before: &Snapshot, delta: &Delta, next: &Snapshot) {
        let upserted = delta.upserts.iter().map(|versioned| versioned.resource.key());
        for key in upserted.chain(delta.removals.iter().cloned()) {
            let Some(old) = before.get(&key).map(|versioned| &versioned.resource) else { continue };
            let new = next.get(&key).map(|versioned| &versioned.resource);
            if let Resource::Ssl(old) = old {
                let new = match new {
                    Some(Resource::Ssl(new)) => Some(new),
                    _ => None,
                };
                retire_ssl(old, new);
            } else if let Some(old) = old.own_upstream()
                && let Some(prepared) = old.cache.get::<PreparedUpstream>()
            {
                if let Some(new) = new.and_then(Resource::own_upstream) {
                    self.carry_over(&prepared, new, next);
                }
                prepared.retire();
            }
        }
    }

    /// Gives an upstream its configuration while its predecessor still has one, which may be the
    /// same.
    fn carry_over(&self, before: &PreparedUpstream, upstream: &Upstream, snapshot: &Snapshot) {
        if before.resolved.load().is_some()
            && let Ok(certificate) = client_certificate(upstream, snapshot)
            && upstream.scheme.is_encrypted()
        {
            // An error comes back with the next request.
            let _config = self.resolve(upstream, &self.prepared(upstream), certificate);
        }
    }
}

impl PreparedUpstream {
    /// Stores a configuration for the next requests, unless the upstream or the ssl is retired.
    fn keep(self: &Arc<Self>, resolved: Arc<ResolvedTls>, ssl: Option<&Arc<Ssl>>) {
        let retired = lock(&self.retired);
        if *retired {
            return;
        }
        match ssl {
            None => self.resolved.store(Some(resolved)),
            Some(ssl) => {
                let users = SslUsers::of(ssl);
                let mut users = lock(&users.0);
                let Some(users) = &mut *users else { return };
                if users.len() == users.capacity() {
                    users.retain(|user| user.strong_count() > 0);
                }
                users.push(Arc::downgrade(self));
                self.resolved.store(Some(resolved));
            }
        }
    }

    fn retire(&self) {
        let mut retired = lock(&self.retired);
        *retired = true;
        self.resolved.store(None);
    }
}

impl ResolvedTls {
    fn is_from(&self, ssl: Option<&Arc<Ssl>>) -> bool {
        match (&self.ssl, ssl) {
            (None, None) => true,
            (Some(own), Some(ssl)) => std::ptr::eq(own.as_ptr(), Arc::as_ptr(ssl)),
            _ => false,
        }
    }

    fn config(&self) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
        match &self.lease {
            Ok(lease) => Ok(Arc::clone(&lease.0)),
            Err(error) => Err(error.clone()),
        }
    }
}

impl SslUsers {
    fn of(ssl: &Ssl) -> Arc<Self> {
        get_or_init_cached(&ssl.cache, || Self(Mutex::new(Some(Vec::new()))))
    }
}

/// Takes the ssl `old` from its upstreams. Where `new` has the same certificate, they keep their
/// configurations.
fn retire_ssl(old: &Arc<Ssl>, new: Option<&Arc<Ssl>>) {
    if !old.client_side {
        return;
    }
    let users = lock(&SslUsers::of(old).0).take().unwrap_or_default();
    let usable = |ssl: &&Arc<Ssl>| ssl.client_side && ssl.blocked.is_none();
    let same = new.filter(usable).filter(|new| new.pairs.first() == old.pairs.first());
    for user in users.iter().filter_map(Weak::upgrade) {
        let resolved = user.resolved.load_full();
        let Some(resolved) = resolved.filter(|resolved| resolved.is_from(Some(old))) else { continue };
        match same {
            Some(new) => {
                let (ssl, lease) = (Some(Arc::downgrade(new)), resolved.lease.clone());
                user.keep(Arc::new(ResolvedTls { ssl, lease }), same);
            }
            None => user.resolved.store(None),
        }
    }
}

/// # Errors
/// The ssl that the upstream names cannot be used.
fn client_certificate<'a>(
    upstream: &'a Upstream,
    snapshot: &'a Snapshot,
) -> Result<ClientCertificate<'a>, ClientTlsError> {
    match &upstream.tls.identity {
        None => Ok(ClientCertificate::default()),
        Some(UpstreamIdentity::Inline(pair)) => Ok(ClientCertificate { pair: Some(pair), ssl: None }),
        Some(UpstreamIdentity::Ssl(id)) => {
            let ssl = snapshot.ssl(id).ok_or_else(|| ClientTlsError::NoSsl(id.clone()))?;
            if !ssl.client_side {
                return Err(ClientTlsError::NotClient(id.clone()));
            }
            if let Some(blocked) = &ssl.blocked {
                return Err(ClientTlsError::Blocked(id.clone(), blocked.reason().to_owned()));
            }
            let no_pair = || ClientTlsError::Unusable(format!("ssl id [{id}] has no certificate"));
            let pair = ssl.pairs.first().ok_or_else(no_pair)?;
            Ok(ClientCertificate { pair: Some(pair), ssl: Some(ssl) })
        }
    }
}

fn log_unverified(upstream: &Upstream) {
    let Some(suppressed) = UNVERIFIED_LOG.try_acquire() else { return };
    tracing::warn!(
        upstream = upstream.id.as_ref().map_or("inline", |id| id.as_str()),
        node = upstream.nodes.first().map_or("", |node| node.host.as_str()),
        suppressed,
        "the servers of an upstream are not verified: set its tls.verify, or apisix.ssl.upstream_verify_default"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn get_or_init_cached<T: Send + Sync + 'static>(slot: &CacheSlot, make: impl FnOnce() -> T) -> Arc<T> {
    match slot.get_or_try_init(|| Ok::<_, std::convert::Infallible>(Arc::new(make()))) {
        Ok(value) => value,
    }
}

#[cfg(test)]
mod tests;
