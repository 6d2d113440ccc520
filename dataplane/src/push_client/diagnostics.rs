//! Turns a failed session into a log line: what happened, which setting is wrong, what to do.
//!
//! TLS errors arrive wrapped by three libraries, some of which keep only the text, so the text of
//! the whole error chain is matched. Each case here has a test that produces the failure.

use std::error::Error;
use std::path::PathBuf;

use tonic::Code;

use super::session::SessionEnd;
use crate::observability::error_chain;

/// The settings that the descriptions name.
pub(super) struct Diagnostics {
    cert: PathBuf,
    ca: PathBuf,
    server_name: String,
}

impl Diagnostics {
    pub(crate) fn new(settings: &conf::NodeSettings) -> Self {
        Self {
            cert: settings.cert.clone(),
            ca: settings.ca.clone(),
            server_name: settings.server_name.clone(),
        }
    }

    /// The same failure gives the same text, so that the log has it once.
    pub(crate) fn describe(&self, address: &str, end: &SessionEnd) -> String {
        if let SessionEnd::Status(status) = end
            && end.is_stale()
        {
            return format!("the control plane {address} is behind this node: {}", status.message());
        }
        let chain = match end {
            SessionEnd::Unreachable(error) => error_chain(error),
            SessionEnd::Status(status) => match status.code() {
                Code::PermissionDenied | Code::Unauthenticated => {
                    return format!("the control plane {address} refused this node: {}", status.message());
                }
                // The Display of a Status is Rust code, so its message and its source are taken.
                _ => match status.source().map(error_chain) {
                    Some(cause) => format!("{}: {cause}", status.message()),
                    None => status.message().to_owned(),
                },
            },
            SessionEnd::PeerCertificate(error) => {
                return format!(
                    "ended the stream with the control plane {address}: its certificate (countersign.push.cert) is no longer \
                     valid: {error}"
                );
            }
            SessionEnd::Renewed => {
                return format!("left the control plane {address} to reconnect with a renewed certificate");
            }
            SessionEnd::Closed => return format!("the control plane {address} closed the stream"),
            SessionEnd::Held => {
                return format!(
                    "left the control plane {address}: it has another store, whose state would remove most of what is served"
                );
            }
            SessionEnd::Protocol(problem) => {
                return format!("the control plane {address} violates the protocol: {problem}");
            }
        };
        match self.advice(&chain) {
            Some(advice) => format!("no stream with the control plane {address}: {advice} ({chain})"),
            None => format!("no stream with the control plane {address}: {chain}"),
        }
    }

    fn advice(&self, chain: &str) -> Option<String> {
        let has = |part: &str| chain.contains(part);
        let (cert, ca, name) = (self.cert.display(), self.ca.display(), &self.server_name);
        if has("received fatal alert") {
            return Some(format!(
                "it rejects our certificate {cert} (countersign.node.cert): it must be valid now and come from the CA in \
                 countersign.push.ca"
            ));
        }
        if has("UnknownIssuer") || has("BadSignature") {
            return Some(format!("its certificate is not from the CA in {ca} (countersign.node.ca)"));
        }
        if has("NotValidForName") || has("not valid for name") {
            return Some(format!(
                "its certificate does not carry the name {name:?}: set countersign.node.server_name to a name it carries, or issue \
                 countersign.push.cert with this name"
            ));
        }
        if has("certificate expired") || has("Expired") || has("not valid yet") || has("NotValidYet") {
            return Some("its certificate is not valid now; look at it with `controlplane pki show`, and at the clocks".into());
        }
        if has("InvalidContentType") || has("corrupt message") {
            return Some("it does not speak TLS: is this the push port (countersign.push.listen)?".into());
        }
        if has("close_notify") || has("Connection reset") || has("Broken pipe") || has("connection closed") {
            return Some("the connection broke".into());
        }
        if has("KeepAlive") || has("keep-alive") || has("operation timed out") {
            return Some("it does not respond to HTTP/2 PINGs".into());
        }
        if has("Connection refused") {
            return Some("nothing listens there".into());
        }
        None
    }
}
