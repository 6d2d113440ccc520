//! TCP connections that are relayed as they are, APISIX's `stream_proxy`: [`route`] finds the
//! upstream, [`relay`] copies the bytes.

pub(crate) mod relay;
pub(crate) mod route;

use model::Id;

use self::relay::RelayError;
use crate::observability::reason::HasReason;
use crate::reason::Reason;
use crate::upstream::client::UpstreamError;

/// A TCP connection that was denied, or that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpProxyError {
    /// It has no route, or its client may not connect.
    #[error("{}", .0.label())]
    Denied(Reason),
    /// No upstream node accepts it.
    #[error(transparent)]
    Connect(#[from] UpstreamError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl TcpProxyError {
    /// The reason, or `None` where the client closed: that is no error.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Denied(reason) => Some(*reason),
            Self::Connect(error) => Some(error.reason()),
            Self::Relay(error) => error.reason(),
        }
    }
}

/// A [`TcpProxyError`] with its route.
#[derive(Debug)]
pub(crate) struct TcpFailure {
    /// The route that matched.
    pub(crate) route: Option<Id>,
    pub(crate) error: TcpProxyError,
}
