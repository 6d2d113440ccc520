//! Streams: TCP connections that are passed on as they are, once TLS (if any) has said who is
//! there.
//!
//! Stands where HTTP has its session: `find` says where a connection goes, `upstream/client.rs` gets
//! a connection there, `relay` carries the bytes. `connection.rs` knows the order.

pub(crate) mod relay;
pub(crate) mod route;

use model::Id;
use relay::RelayError;

use crate::reason::Reason;
use crate::upstream::client::UpstreamError;

/// A stream that was not carried to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpProxyError {
    /// It goes nowhere, or its client may not.
    #[error("{}", .0.label())]
    Denied(Reason),
    /// No node takes it.
    #[error(transparent)]
    Connect(#[from] UpstreamError),
    /// It broke off.
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl TcpProxyError {
    /// For the log and the metric; `None`: the client left, which is its right.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Denied(reason) => Some(*reason),
            Self::Connect(error) => Some(error.reason()),
            Self::Relay(error) => error.reason(),
        }
    }
}

/// A stream that ended otherwise than both sides said, for the log.
#[derive(Debug)]
pub(crate) struct TcpFailure {
    /// The route, if one took it.
    pub route: Option<Id>,
    /// Why.
    pub error: TcpProxyError,
}
