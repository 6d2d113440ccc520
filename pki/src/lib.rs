//! X.509 certificates: parsing, keys, path building, revocation and client policies. No IO, no TLS.
//!
//! Both planes use this crate: the control plane validates documents with it, the data plane
//! verifies peers. The clock is always a parameter. The modules, in the order in which a
//! certificate passes them:
//!
//! - `cert` parses certificates, `key` private keys, which `keyring` decrypts;
//! - `policy` holds the client policy of a site, with the CRLs of `revocation`;
//! - `chain` verifies a peer's chain, `verified_cache` caches the result, `identity` names
//!   the client;
//! - [`ca`] issues certificates for the command line, the demo and the tests.

#![warn(missing_docs)]

pub mod ca;

mod cert;
mod chain;
mod der;
mod identity;
mod key;
mod keyring;
mod name;
mod pem;
mod policy;
mod revocation;
mod signature;
mod unix_time;
mod verified_cache;

pub use cert::{CertError, Certificate, certificates_from_pem, subject_public_key_info};
pub use chain::{
    ChainPosition, SERVER_DEPTH, VerifiedClient, VerifyError, VerifyReason, failing_certificate,
    required_depth, reverify, verify_client, verify_server, verify_server_at_depth, verify_server_chain,
};
pub use identity::Identity;
pub use key::{KeyError, KeyFormat, PrivateKey};
pub use keyring::{Keyring, KeyringError};
pub use name::{DistinguishedName, NameError};
pub use policy::{ClientAuth, ClientAuthInput, PolicyDigest, PolicyError, TrustAnchors};
pub use revocation::{Crl, CrlError, crls_from_pem};
pub use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
pub use unix_time::format_utc;
pub use verified_cache::VerifiedCache;
