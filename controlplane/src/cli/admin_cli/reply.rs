//! Responses of the Admin API: success, or an error that says what to do.
//!
//! Invariant: a status other than 2xx is an [`ApiError`]; what the server says is kept, and the
//! flag that helps is named beside it.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::client::{ApiClient, ApiReply};

/// An error response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error(
        "the Admin API requires a client certificate: name one with --cert FILE and --cert-key FILE, or COUNTERSIGN_ADMIN_CERT and \
         COUNTERSIGN_ADMIN_CERT_KEY"
    )]
    NoCertificate,
    #[error(
        "the Admin API rejects the client certificate {0}: its log says why; it must be issued by the CA in admin_ssl_ca_cert and be valid now"
    )]
    CertificateRejected(String),
    #[error("the Admin API speaks TLS on this port: write https:// in the URL")]
    SpeaksTls,
    #[error("{0}")]
    Unauthorized(String),
    #[error(
        "403: this machine's address may not use this listener of the Admin API: allow_admin of the control plane lists those that may; --url \
         names another listener"
    )]
    AddressDenied,
    #[error("{0} is not there")]
    NotFound(String),
    #[error(
        "{0} was changed meanwhile, and nothing was written: read it again, then repeat with its new ETag"
    )]
    PreconditionFailed(String),
    /// Any other status, with the server's words.
    #[error("{status}: {message}", status = .status.as_u16())]
    Other { status: StatusCode, message: String },
    #[error("the response is not the Admin API's: {0}. Is this the port of an Admin API?")]
    NotAdmin(String),
}

impl ApiReply {
    /// The reply if its status is a success. `subject` is what was asked for, for messages.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(super) fn success(self, client: &ApiClient, subject: &str) -> Result<Self, ApiError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.body);
        let body: Option<Value> = serde_json::from_str(&text).ok();
        if body.is_none() && text.contains("<html>") {
            return Err(self.page_error(client, &text));
        }
        let message = body.as_ref().map_or_else(|| text.trim().to_owned(), error_text);
        Err(match self.status {
            StatusCode::UNAUTHORIZED => ApiError::Unauthorized(unauthorized(client, &message)),
            StatusCode::NOT_FOUND if message == "Key not found" => ApiError::NotFound(subject.to_owned()),
            StatusCode::PRECONDITION_FAILED if message.contains("was changed") => {
                ApiError::PreconditionFailed(subject.to_owned())
            }
            StatusCode::CONFLICT if message.contains("weaken") => ApiError::Other {
                status: self.status,
                message: format!("{message}\n--weaken writes it all the same"),
            },
            status => ApiError::Other { status, message },
        })
    }

    fn page_error(&self, client: &ApiClient, page: &str) -> ApiError {
        let has = |text: &str| page.contains(text);
        match self.status {
            StatusCode::BAD_REQUEST if has("No required SSL certificate was sent") => ApiError::NoCertificate,
            StatusCode::BAD_REQUEST if has("The SSL certificate error") => {
                let pair = client.target().pair.as_ref();
                let cert = pair.map_or_else(String::new, |(cert, _)| cert.path.display().to_string());
                ApiError::CertificateRejected(cert)
            }
            StatusCode::BAD_REQUEST if has("plain HTTP request was sent to HTTPS port") => {
                ApiError::SpeaksTls
            }
            StatusCode::FORBIDDEN => ApiError::AddressDenied,
            status => ApiError::NotAdmin(status.to_string()),
        }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON, so that no Admin API can have sent it.
    pub(super) fn json(&self) -> Result<Value, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::NotAdmin(error.to_string()))
    }

    /// What a write says beside its body, one line each: kept fields and weakened protection.
    pub(super) fn notes(&self) -> Vec<String> {
        let texts = |name: &str| header_texts(&self.headers, name);
        let kept = texts("x-countersign-kept").into_iter().map(|fields| format!("kept: {fields}"));
        let stale = texts("x-countersign-stale").into_iter().map(|seconds| {
            format!("the store is away; this was read from memory, {seconds} s after it was last reached")
        });
        texts("x-countersign-warning").into_iter().chain(kept).chain(stale).collect()
    }

    /// The revision of a write.
    pub(super) fn revision(&self) -> Option<String> {
        header_texts(&self.headers, "x-countersign-revision").into_iter().next()
    }
}

fn header_texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().filter_map(|value| Some(value.to_str().ok()?.to_owned())).collect()
}

/// The message of an error body, with the field's hint on a line of its own.
fn error_text(body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let message = text("error_msg").or_else(|| text("message"));
    let mut message = message.map_or_else(|| body.to_string(), str::to_owned);
    if let Some(description) = text("description") {
        message = format!("{message}: {description}");
    }
    let errors = body.get("errors").and_then(Value::as_array).into_iter().flatten();
    for error in errors {
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        let (kind, id, problem) = (text("resource_type"), text("resource_id"), text("error"));
        message = format!("{message}\n{kind}/{id}: {problem}");
    }
    if let Some(hint) = text("hint") {
        message = format!("{message}\n{hint}");
    }
    message
}

fn unauthorized(client: &ApiClient, message: &str) -> String {
    let fix = match &client.target().key {
        None if message.contains("role") => {
            "the client certificate has the role viewer (deployment.admin.client_roles), which only reads".to_owned()
        }
        None => {
            "no admin key was sent: --key-file FILE or COUNTERSIGN_ADMIN_KEY gives one (the control plane prints a generated key at its \
             first start and keeps it in admin.key beside its store; of a key with a hash in admin_key it has only the hash)"
                .to_owned()
        }
        Some(key) if message.contains("role") => format!("the key of {} may only read", key.source),
        Some(key) => format!(
            "the key of {} is not one of this control plane: --key-file FILE or COUNTERSIGN_ADMIN_KEY gives another",
            key.source
        ),
    };
    format!("401: {message}\n{fix}")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::super::target::{ApiTarget, PresentedKey};
    use super::*;

    fn client(key: Option<&str>) -> ApiClient {
        let key = key.map(|key| PresentedKey { value: key.to_owned().into(), source: "a file".to_owned() });
        let target = ApiTarget {
            https: false,
            host: "127.0.0.1".to_owned(),
            port: 1,
            server_name: "a".try_into().unwrap(),
            ca: None,
            pair: None,
            key,
        };
        ApiClient::new(target).unwrap()
    }

    fn failure(status: u16, body: &str, key: Option<&str>) -> String {
        let (status, headers) = (StatusCode::from_u16(status).unwrap(), HeaderMap::new());
        let reply = ApiReply { status, headers, body: Bytes::from(body.to_owned()) };
        reply.success(&client(key), "routes/1").unwrap_err().to_string()
    }

    #[test]
    fn each_error_says_what_to_do() {
        let page = |text: &str| format!("<html>{text}</html>");
        let failed =
            json!({"error_msg": "failed to check token", "description": "missing apikey"}).to_string();
        let problem = json!({"error_msg": "invalid configuration: x", "field": "x", "hint": "leave it out"});
        let weakens = json!({"error_msg": "the change weakens the protection"}).to_string();
        for (status, body, key, expected) in [
            (400, page("No required SSL certificate was sent"), None, "--cert FILE"),
            (400, page("The SSL certificate error"), None, "rejects the client certificate"),
            (400, page("The plain HTTP request was sent to HTTPS port"), None, "https://"),
            (403, page("403 Forbidden"), None, "allow_admin"),
            (404, page("404 Not Found"), None, "Is this the port of an Admin API?"),
            (401, failed.clone(), None, "no admin key was sent: --key-file"),
            (401, failed, Some("k"), "the key of a file is not one of this control plane"),
            (404, json!({"message": "Key not found"}).to_string(), None, "routes/1 is not there"),
            (412, json!({"error_msg": "was changed"}).to_string(), None, "routes/1 was changed meanwhile"),
            (409, weakens, None, "--weaken"),
            (400, problem.to_string(), None, "400: invalid configuration: x\nleave it out"),
            (400, "page_size must be between 10 and 500".to_owned(), None, "between 10 and 500"),
        ] {
            let message = failure(status, &body, key);
            assert!(message.contains(expected), "{status} {body}: {message}");
        }
    }
}
