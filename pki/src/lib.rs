//! What a certificate means: parsing, keys, paths, revocation and policy. No IO and no TLS engine.
//!
//! Both planes use it: the control plane to judge documents before they are stored, the data plane
//! to judge peers. The clock is always a parameter. In the order in which a certificate meets them:
//!
//! - [`cert`] reads certificates, [`key`] private keys, which [`keyring`] opens;
//! - [`policy`] is what a site demands of its clients, with the lists of [`revocation`];
//! - [`chain`] decides whether a peer is accepted, [`verified`] remembers that it was, [`identity`]
//!   says who it is;
//! - [`mint`] makes certificates, for the command line, the demo and the tests.

#![warn(missing_docs)]

pub mod ca;
pub mod cert;
pub mod chain;
pub mod identity;
pub mod key;
pub mod keyring;
pub mod policy;
pub mod revocation;
pub mod verified_cache;

mod der;
mod name;
mod pem;
mod signature;
mod unix_time;

pub use cert::{CertError, Certificate, certificates_from_pem, subject_public_key_info};
pub use chain::{
    ChainPosition, VerifiedClient, VerifyError, VerifyReason, failing_certificate, required_depth, reverify,
    verify_client, verify_server, verify_server_at_depth,
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
