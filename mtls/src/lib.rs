//! What both planes need of rustls for mutual TLS.
//!
//! `signature` verifies handshake signatures and `verifier` certificates (by `pki`), for both
//! sides of a connection; `credentials` reads the own certificates and keys that settings name,
//! `reload` keeps them in use and reloads them when they change. `expiry` reports when they expire,
//! and `snapshot_expiry` when the certificates and CRLs of resources do. `status_access` makes the
//! rules of the listeners for operators.

#![warn(missing_docs)]

mod credentials;
mod expiry;
mod reload;
mod signature;
mod snapshot_expiry;
mod status_access;
mod verifier;

pub use credentials::{
    CertKeyPair, ConfiguredFile, ConfiguredFileRef, FileError, certified_key, signing_key,
};
pub use expiry::{
    CertificateExpiry, CertificateMonitor, EXPIRY_WARNING_DAYS, OPERATOR_BUNDLE_MAX, days_left,
};
pub use reload::{CredentialFiles, Credentials, LoadedCredentials, Reloader, WebPkiCredentials};
pub use snapshot_expiry::SnapshotExpiry;
pub use status_access::{MutualTlsFiles, StatusAccessRules};
pub use verifier::{AcceptServer, ClientVerifier, ServerNames, ServerTrust, ServerVerifier, VerifyClient};
