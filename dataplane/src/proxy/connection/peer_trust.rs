//! What a connection's peer may say of its clients, as a trusted proxy; and the limit on the
//! requests of one client.

use model::RequestTarget;

use super::Connection;
use crate::filters::headers::{ForwardedContext, PeerTrust};
use crate::filters::real_ip::ClientAddress;
use crate::observability::HasReason;
use crate::observability::log;
use crate::proxy::request_limit::RequestPermit;
use crate::proxy::worker::WorkerConfig;
use crate::reason::Reason;

impl Connection {
    /// Counts a request in flight, unless its client is at the limit. `None`: the client is not
    /// limited.
    pub(super) fn acquire_permit(&self, client: &ClientAddress) -> Result<Option<RequestPermit>, Reason> {
        let Some(limiter) = self.worker.request_limiter.when_limited() else { return Ok(None) };
        let named;
        let requests = match client.real_ip() {
            Some(address) => {
                named = limiter.client(address);
                &named
            }
            None => {
                let of_peer = self.peer_requests.get_or_init(|| {
                    let trust = self.peer_trust();
                    let is_shared = trust.forwarded || trust.address || self.is_unnamed_client();
                    (!is_shared).then(|| limiter.client(self.facts.info.peer.ip()))
                });
                let Some(requests) = of_peer else { return Ok(None) };
                requests
            }
        };
        requests.acquire().map(Some).map_err(|error| {
            log::request_rejected(client, &error);
            error.reason()
        })
    }

    /// Whether a trusted proxy of TCP connections has not named its client.
    fn is_unnamed_client(&self) -> bool {
        let config = self.worker.config();
        let peer = self.facts.info.direct_peer.ip().to_canonical();
        self.facts.info.listener.proxy_protocol
            && !self.facts.info.is_proxied()
            && config.real_ip.as_ref().is_some_and(|real_ip| real_ip.reads_proxy_protocol_from(peer))
    }

    /// The configured trust in the peer, whether or not it is a proxy that names a
    /// client.
    fn peer_trust(&self) -> PeerTrust {
        let config = self.worker.config();
        PeerTrust::of(
            self.facts.info.peer.ip(),
            self.facts.info.direct_peer.ip(),
            config.trusted_addresses.as_deref(),
            config.real_ip.as_ref(),
        )
    }

    pub(super) fn forwarded_context<'a>(
        &'a self,
        config: &'a WorkerConfig,
        target: &'a RequestTarget,
        client: &ClientAddress,
    ) -> ForwardedContext<'a> {
        ForwardedContext {
            connection: &self.headers,
            real_ip: client.real_ip(),
            has_trusted_addresses: config.trusted_addresses.is_some(),
            trust: self.peer_trust(),
            real_ip_header: config.real_ip.as_ref().and_then(model::RealIp::header),
            authority: target.authority.as_deref(),
        }
    }
}
