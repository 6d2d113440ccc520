//! A client of the Admin API: HTTPS with a client certificate and the API key.
//!
//! Every call of [`Admin`] has a connection of its own, so it survives a restart of the control
//! plane.

use std::net::SocketAddr;

use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::client::{ClientError, HttpClient, HttpConnection, Reply, full};
use crate::credentials::{Credential, Credentials, certificates};

/// The administrator's API key in every world.
pub const ADMIN_KEY: &str = "edd1c9f034335f136f87ad84b625c8f1";
/// The API key that may only read.
pub const VIEWER_KEY: &str = "4054f7cf07e344346cd3f287985e76a2";

#[derive(Clone)]
pub struct Admin {
    client: HttpClient,
    key: Option<String>,
}

/// A response of the Admin API.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// The revision of a write (`X-Countersign-Revision`).
    pub revision: Option<u64>,
    /// The JSON body; `Null` when it is not JSON.
    pub body: Value,
    pub reply: Reply,
}

impl Admin {
    pub fn new(address: SocketAddr, credentials: &Credentials) -> Self {
        let roots = certificates(credentials.servers.certificate_pem());
        let client = HttpClient::new(address, "admin.test", roots).identity(&credentials.admin_client);
        Self { client, key: Some(ADMIN_KEY.to_owned()) }
    }

    pub fn key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    pub fn identity(mut self, identity: &Credential) -> Self {
        self.client = self.client.identity(identity);
        self
    }

    pub fn client(&self) -> &HttpClient {
        &self.client
    }

    /// One call below `/apisix/admin/`.
    ///
    /// # Errors
    /// When there is no HTTP response (the control plane is down, for example).
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        self.connect().await?.call(method, path, body).await
    }

    /// A connection for many calls.
    ///
    /// # Errors
    /// When the handshake is rejected.
    pub async fn connect(&self) -> Result<AdminConnection, ClientError> {
        Ok(AdminConnection { session: self.client.connect().await?, key: self.key.clone() })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A write that must succeed; gives its revision.
    pub async fn write(&self, method: Method, path: &str, body: Option<&Value>) -> u64 {
        let answer = self
            .call(method.clone(), path, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.reply.text());
        answer.revision.unwrap_or_else(|| panic!("{method} {path}: no X-Countersign-Revision: {answer:?}"))
    }

    pub async fn put(&self, path: &str, body: &Value) -> u64 {
        self.write(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> u64 {
        self.write(Method::DELETE, path, None).await
    }
}

pub struct AdminConnection {
    session: HttpConnection,
    key: Option<String>,
}

impl AdminConnection {
    /// One call below `/apisix/admin/`.
    ///
    /// # Errors
    /// When there is no HTTP response (the control plane is down, for example).
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = self.session.request(method, &format!("/apisix/admin/{path}"), full(body));
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, "application/json".parse().expect("a header value"));
        if let Some(key) = &self.key {
            headers.insert("x-api-key", key.parse().expect("a header value"));
        }
        let reply = self.session.fetch(request).await?;
        let revision = reply
            .headers
            .get("x-countersign-revision")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok());
        let body = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
        Ok(Answer { status: reply.status, revision, body, reply })
    }
}
