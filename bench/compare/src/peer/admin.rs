//! A client of the Admin API over mTLS: what a person would do with curl, on connections that stay open.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::PeerError;
use crate::identity::{ClientIdentity, Group, Version};
use crate::load::{Dialler, http1};
use crate::target::Target;

/// Limit of one request.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One connection to the Admin API, dialled when it is needed.
pub struct Admin {
    dialler: Dialler,
    host: String,
    key: String,
    stream: Option<TlsStream<TcpStream>>,
    buffer: Vec<u8>,
}

impl Admin {
    /// An operator of the Admin API at `target` with its key.
    ///
    /// # Errors
    /// When the operator's certificate is unusable.
    pub fn new(target: &Target, operator: &Arc<ClientIdentity>, key: &str) -> Result<Self, PeerError> {
        let config = operator.client_config(Version::V13, Group::X25519, &[b"http/1.1"], false)?;
        Ok(Self {
            dialler: Dialler::new(target.clone(), config),
            host: target.host.clone(),
            key: key.to_owned(),
            stream: None,
            buffer: Vec::new(),
        })
    }

    /// PUTs a document and gives the revision it was committed as.
    ///
    /// # Errors
    /// Anything but 200 and 201, with what the API said.
    pub async fn put(&mut self, path: &str, document: &Value) -> Result<u64, PeerError> {
        let body = document.to_string();
        let (answer, text) = self.call("PUT", path, body.as_bytes()).await?;
        if !matches!(answer.status, 200 | 201) {
            return Err(PeerError::Admin(format!("PUT {path}: {} {}", answer.status, text.trim_end())));
        }
        let revision =
            answer.header(&self.buffer, "x-countersign-revision").and_then(|text| text.parse().ok());
        revision
            .ok_or_else(|| PeerError::Admin(format!("PUT {path}: the answer has no X-Countersign-Revision")))
    }

    /// Waits until every connected data plane (at least one) has acknowledged a revision.
    ///
    /// # Errors
    /// When they have not within a minute.
    pub async fn wait_acknowledged(&mut self, revision: u64) -> Result<(), PeerError> {
        let path = format!("dataplanes?acknowledged={revision}&timeout=55");
        let (answer, text) = self.call("GET", &path, b"").await?;
        if answer.status != 200 {
            let text = text.trim_end();
            return Err(PeerError::Admin(format!(
                "revision {revision} is not acknowledged: {} {text}",
                answer.status
            )));
        }
        Ok(())
    }

    async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(http1::Answer, String), PeerError> {
        let mut request = format!(
            "{method} /apisix/admin/{path} HTTP/1.1\r\nHost: {}\r\nX-API-KEY: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            self.key,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let calling = async {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.dialler.dial().await?,
            };
            let answer = http1::exchange(&mut stream, &request, &mut self.buffer).await?;
            self.stream = answer.reusable.then_some(stream);
            Ok::<_, crate::failure::Failure>(answer)
        };
        let answer = tokio::time::timeout(TIMEOUT, calling)
            .await
            .map_err(|_| PeerError::Admin(format!("{method} {path}: no answer within {TIMEOUT:?}")))?
            .map_err(|failure| PeerError::Admin(format!("{method} {path}: {failure}")))?;
        let text = String::from_utf8_lossy(&answer.body(&self.buffer)).into_owned();
        Ok((answer, text))
    }
}
