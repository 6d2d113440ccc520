//! PEM files that the settings name: a certificate chain with its private key, and CA bundles.
//!
//! [`bounded`] reads one text file, bounded in size and without waiting for a FIFO; [`file`] names
//! the setting in its errors; [`pair`] reads a chain and its key; [`reload`] keeps both in use and
//! reads them again when they change; [`expiry`] tells `/status`, metrics, lint and the log when
//! they end. Both planes and all their TLS endpoints (Admin API, push, node, etcd) read their own
//! certificates here. Invariant: an error names the setting and the file, and a file that is named
//! is never taken for "none".

#![warn(missing_docs)]

pub mod bounded_read;
pub mod date;
pub mod expiry;
pub mod file;
pub mod pair;
pub mod reload;

pub use date::format_utc;
pub use expiry::{CertificateExpiry, CertificateMonitor};
pub use file::{ConfiguredFileRef, FileError};
pub use pair::CertKeyPair;
pub use reload::{CredentialFiles, Credentials, LoadedCredentials, Reloader};
