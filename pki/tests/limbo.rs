//! The client direction of x509-limbo, judged by [`pki::verify_client`] with the clock of each case.
//!
//! The project keeps no copy of the cases: `COUNTERSIGN_LIMBO` names the file (or the folder that holds `clients.json`). Without it nothing is
//! judged, and the test says so on stderr, loudly, instead of looking like a success. Cases without an opinion on clients
//! (`expected_result_client` null) and vacuous ones are not scored.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pki::{ClientAuth, ClientAuthInput, UnixTime, certificates_from_pem, crls_from_pem, verify_client};
use serde::Deserialize;

/// Depth when a case names none: more than any of its chains, so that only the rules under test can refuse.
const NO_LIMIT: u32 = 255;
/// No verdict may take longer, however pathological the chain.
const SLOWEST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 150 } else { 10 });

#[derive(Deserialize)]
struct Limbo {
    testcases: Vec<Case>,
    extra_testcases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    /// The collection's own verdict.
    expected_result: String,
    /// The verdict on a client, where it is not a matter of taste.
    expected_result_client: Option<String>,
    trusted_certs: Vec<String>,
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    crls: Vec<String>,
    max_chain_depth: Option<u32>,
    /// Seconds since 1970; the real clock when there is none.
    validation_time_unix: Option<f64>,
    vacuous: Option<serde_json::Value>,
}

impl Case {
    /// What our verifier says: the subject it accepts, or why not. A policy that cannot be made accepts nobody.
    fn verdict(&self) -> Result<String, String> {
        let mut anchors = Vec::new();
        for pem in &self.trusted_certs {
            anchors.extend(certificates_from_pem(pem).map_err(|error| format!("anchor: {error}"))?);
        }
        let mut crls = Vec::new();
        for pem in &self.crls {
            crls.extend(crls_from_pem(pem).map_err(|error| format!("CRL: {error}"))?);
        }
        let depth = self.max_chain_depth.unwrap_or(NO_LIMIT);
        let input = ClientAuthInput { anchors, depth, crls, ..ClientAuthInput::default() };
        let policy = ClientAuth::new(input).map_err(|error| format!("policy: {error}"))?;
        let leaf = der(&self.peer_certificate);
        let sent: Vec<_> = self.untrusted_intermediates.iter().map(|pem| der(pem)).collect();
        // a verifier's clock counts whole seconds: 23:59:59.9 is still 23:59:59
        let now = self.validation_time_unix.map_or_else(UnixTime::now, |seconds| {
            UnixTime::since_unix_epoch(Duration::from_secs_f64(seconds))
        });
        let mut verdict = verify_client(&policy, &leaf, &sent, now);
        // the best of some tries: the machine may be busy, the verifier may not
        let took = (0..5).map(|_| {
            let started = Instant::now();
            verdict = verify_client(&policy, &leaf, &sent, now);
            started.elapsed()
        });
        let fastest = took.min().unwrap_or_default();
        assert!(fastest < SLOWEST, "{}: the verdict took {fastest:?}", self.id);
        match verdict {
            Ok(verified) => Ok(verified.identity().subject().to_owned()),
            Err(error) => Err(format!("{}: {error}", error.reason())),
        }
    }

    fn is_scored(&self) -> bool {
        self.expected_result_client.is_some() && self.vacuous.is_none()
    }

    /// Whether the verdict is right. In doubt it is the collection's: an expired root, which some accept, is refused here.
    fn is_right(&self) -> bool {
        let expected = self.expected_result_client.as_ref().unwrap_or(&self.expected_result).as_str();
        let verdict = self.verdict();
        let right = verdict.is_ok() == (expected == "SUCCESS");
        if !right || std::env::var_os("COUNTERSIGN_LIMBO_VERBOSE").is_some() {
            say(&format!(
                "{} {}: expected {expected}, got {verdict:?}",
                if right { "right" } else { "WRONG" },
                self.id
            ));
        }
        right
    }
}

/// The DER in a PEM block, without a look at what it is: some peers' certificates are meant to be unreadable.
fn der(pem: &str) -> pki::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject as _;
    let read = pki::CertificateDer::from_pem_slice(pem.as_bytes());
    assert!(read.is_ok(), "no PEM block in the case: {pem}");
    read.unwrap_or_else(|_| Vec::new().into())
}

/// Straight to stderr: the test harness swallows what `eprintln!` writes when a test passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}"); // nobody to tell when stderr is gone
}

/// How many are right, of how many.
fn score<'a>(cases: impl Iterator<Item = &'a Case>) -> (usize, usize) {
    let verdicts: Vec<bool> = cases.map(Case::is_right).collect();
    (verdicts.iter().filter(|right| **right).count(), verdicts.len())
}

#[test]
fn every_scored_case_is_right() {
    let Some(path) = std::env::var_os("COUNTERSIGN_LIMBO").map(PathBuf::from) else {
        say("\n*** limbo: NOT RUN. Set COUNTERSIGN_LIMBO to the file clients.json to judge the cases. ***\n");
        return;
    };
    let file = if path.is_dir() { path.join("clients.json") } else { path };
    let text =
        std::fs::read(&file).unwrap_or_else(|error| panic!("COUNTERSIGN_LIMBO: {}: {error}", file.display()));
    let limbo: Limbo = serde_json::from_slice(&text).expect("the structure of clients.json");
    // What nobody has an opinion on must still end in an answer, in time.
    for case in limbo.testcases.iter().chain(&limbo.extra_testcases) {
        let _ = case.verdict();
    }
    let (right, all) = score(limbo.testcases.iter().filter(|case| case.is_scored()));
    let (extra_right, extra_all) = score(limbo.extra_testcases.iter());
    say(&format!("limbo: {right} of {all} right, {extra_right} of {extra_all} extra right"));
    assert!(all >= 100, "only {all} scored cases: is this the right file?");
    assert_eq!((right, extra_right), (all, extra_all), "the wrong ones are named above");
}
