//! `/apisix/admin/dataplanes`: what the data planes serve, and whether those that hold back take
//! this store's state over.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::super::reply::{self, Reply};
use super::{AdminApi, AdminRequest, error_reply};
use crate::change::ChangeError;

/// `timeout` of `?acknowledged=`: its default and its maximum.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

impl AdminApi {
    /// Has data planes that hold another store's state take this store's state over, whatever it
    /// removes.
    pub(super) async fn accept_store(&self, request: AdminRequest) -> Reply {
        if let Err(error) = request.body {
            return error.into();
        }
        let held: Vec<_> = self.fleet.held_nodes().into_iter().map(|(name, _)| name).collect();
        match self.acceptance.accept().await {
            Ok(until) => {
                let body = json!({"store": self.store.identity(), "accepted_until": until, "held": held});
                reply::json(StatusCode::OK, &body)
            }
            Err(error) => error_reply(ChangeError::Store(error)),
        }
    }

    /// What the data planes serve; with `?acknowledged=`, once all of them serve that revision.
    pub(super) async fn data_planes(&self, request: &AdminRequest) -> Reply {
        let revision = request.query.get("acknowledged").map(str::parse).transpose();
        let timeout = match request.query.get("timeout").map(str::parse::<f64>) {
            None => Some(WAIT_DEFAULT),
            Some(Ok(seconds)) => Duration::try_from_secs_f64(seconds).ok(),
            Some(Err(_)) => None,
        };
        let (Ok(revision), Some(timeout)) = (revision, timeout) else {
            let message = "invalid argument acknowledged or timeout: should be a number";
            return reply::error(StatusCode::BAD_REQUEST, message, None);
        };
        let Some(revision) = revision else {
            // The response's `revision` is at least that of every write with an earlier response.
            drop(self.current.snapshot().await);
            return reply::json(StatusCode::OK, &self.fleet.view().await);
        };
        match self.fleet.wait_acknowledged(revision, timeout.min(WAIT_MAX)).await {
            Ok(view) => reply::json(StatusCode::OK, &view),
            Err(view) => reply::json(StatusCode::GATEWAY_TIMEOUT, &view),
        }
    }
}
