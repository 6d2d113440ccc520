//! The collection on disk: [`Limbo`] and its [`Case`]s, and which of them count.

use std::path::PathBuf;

use pki::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Limbo {
    pub testcases: Vec<Case>,
    pub extra_testcases: Vec<Case>,
}

/// One chain and its right verdict.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub id: String,
    /// The collection's own verdict.
    expected_result: String,
    /// The verdict on a client, where all implementations should agree.
    expected_result_client: Option<String>,
    pub trusted_certs: Vec<String>,
    pub untrusted_intermediates: Vec<String>,
    pub peer_certificate: String,
    /// The key of the peer's certificate, PEM.
    pub key: String,
    pub crls: Vec<String>,
    pub max_chain_depth: Option<u32>,
    /// Seconds since 1970; the real clock when absent.
    pub validation_time_unix: Option<f64>,
    /// `same` when today's clock leads to the same verdict.
    real_clock: Option<String>,
    /// Informational only.
    vacuous: Option<serde_json::Value>,
}

impl Limbo {
    /// The collection that `COUNTERSIGN_LIMBO` names; `None` when it is not set. Panics when there
    /// is no such file.
    pub(crate) fn find() -> Option<Self> {
        let path = PathBuf::from(std::env::var_os("COUNTERSIGN_LIMBO")?);
        let file = if path.is_dir() { path.join("clients.json") } else { path };
        let text = std::fs::read(&file)
            .unwrap_or_else(|problem| panic!("COUNTERSIGN_LIMBO: {}: {problem}", file.display()));
        let limbo = serde_json::from_slice(&text);
        Some(limbo.unwrap_or_else(|problem| panic!("COUNTERSIGN_LIMBO: {}: {problem}", file.display())))
    }

    /// The cases with a verdict on clients.
    pub(crate) fn scored(&self) -> impl Iterator<Item = &Case> {
        let counts = |case: &&Case| case.expected_result_client.is_some() && case.vacuous.is_none();
        self.testcases.iter().filter(counts)
    }

    /// The scored cases that need no clock of their own.
    pub(crate) fn of_today(&self) -> impl Iterator<Item = &Case> {
        self.scored().filter(|case| case.real_clock.as_deref() == Some("same"))
    }
}

impl Case {
    /// Whether this peer must be accepted. In doubt as in the collection: an expired root is
    /// rejected.
    pub(crate) fn is_to_be_accepted(&self) -> bool {
        self.expected_result_client.as_ref().unwrap_or(&self.expected_result) == "SUCCESS"
    }

    /// The peer's certificates as given: some are unreadable on purpose.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let der = |pem: &String| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .unwrap_or_else(|problem| panic!("{}: {problem}: {pem}", self.id))
        };
        std::iter::once(&self.peer_certificate).chain(&self.untrusted_intermediates).map(der).collect()
    }

    /// Prints the case when the verdict is wrong; `COUNTERSIGN_LIMBO_VERBOSE` prints every one.
    pub(crate) fn is_right(&self, verdict: &Result<String, String>, place: &str) -> bool {
        let right = verdict.is_ok() == self.is_to_be_accepted();
        if !right || std::env::var_os("COUNTERSIGN_LIMBO_VERBOSE").is_some() {
            let word = if right { "right" } else { "WRONG" };
            let expected = if self.is_to_be_accepted() { "accepted" } else { "refused" };
            println!("{word} {place}: {}: expected to be {expected}, got {verdict:?}", self.id);
        }
        right
    }
}
