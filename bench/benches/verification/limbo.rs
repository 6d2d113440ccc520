//! The pathological chains of x509-limbo, beside an ordinary accepted chain. `COUNTERSIGN_LIMBO`
//! names the collection.

use std::path::PathBuf;
use std::time::Duration;

use criterion::Criterion;
use pki::ca::KeyAlgorithm;
use pki::{
    CertificateDer, ClientAuth, ClientAuthInput, UnixTime, certificates_from_pem, crls_from_pem,
    verify_client,
};
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::{Chain, NOW, beside};

/// The depth of cases without one: beyond any of their chains, so that all certificates are
/// examined.
const NO_LIMIT: u32 = 255;

#[derive(Deserialize)]
struct Limbo {
    testcases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    trusted_certs: Vec<String>,
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    crls: Vec<String>,
    max_chain_depth: Option<u32>,
    validation_time_unix: Option<f64>,
}

/// One final line a case.
pub(crate) fn limbo(criterion: &mut Criterion) -> Vec<String> {
    let Some(named) = std::env::var_os("COUNTERSIGN_LIMBO") else {
        return vec![
            "x509-limbo: NOT MEASURED: COUNTERSIGN_LIMBO names no clients.json (or its folder)".into(),
        ];
    };
    let path = PathBuf::from(named);
    let file = if path.is_dir() { path.join("clients.json") } else { path };
    let read = std::fs::read(&file).map_err(|problem| problem.to_string());
    let limbo: Result<Limbo, _> =
        read.and_then(|text| serde_json::from_slice(&text).map_err(|problem| problem.to_string()));
    let limbo = match limbo {
        Ok(limbo) => limbo,
        Err(problem) => return vec![format!("x509-limbo: NOT MEASURED: {}: {problem}", file.display())],
    };
    let ordinary = Chain::generate(2, KeyAlgorithm::P256);
    let policy = ordinary.policy(Vec::new());
    let accepted = || {
        beside::timed(|| verify_client(&policy, &ordinary.leaf, &ordinary.sent, NOW).expect("a good chain"))
    };
    let mut group = criterion.benchmark_group("verify/limbo");
    let mut lines = Vec::new();
    for case in limbo.testcases.iter().filter(|case| case.id.starts_with("pathological::")) {
        let name = case.id.trim_start_matches("pathological::");
        let Some((policy, chain)) = case.policy().zip(case.chain()) else {
            lines.push(format!("limbo {name:<60} refused before any chain: no policy can be made of it"));
            continue;
        };
        let Some((leaf, sent)) = chain.split_first() else { continue };
        let now = case.now();
        let verdict = verify_client(&policy, leaf, sent, now);
        let judge = || beside::timed(|| verify_client(&policy, leaf, sent, now).is_ok());
        let Some(measured) = beside::bench(&mut group, name, Some(&accepted), &judge) else { continue };
        let verdict = verdict.map_or_else(|error| error.reason().to_string(), |_| "accepted".to_owned());
        lines.push(super::line(&format!("limbo {name}"), &measured) + &format!("  ({verdict})"));
    }
    lines
}

impl Case {
    /// The site's policy; none where the anchors or lists are invalid.
    fn policy(&self) -> Option<ClientAuth> {
        let anchors: Vec<_> =
            self.trusted_certs.iter().map(|pem| certificates_from_pem(pem)).collect::<Result<_, _>>().ok()?;
        let crls: Vec<_> = self
            .crls
            .iter()
            .map(|pem| crls_from_pem(pem).map(|(crls, _)| crls))
            .collect::<Result<_, _>>()
            .ok()?;
        let depth = self.max_chain_depth.unwrap_or(NO_LIMIT);
        let (anchors, crls) = (anchors.concat(), crls.concat());
        ClientAuth::new(ClientAuthInput { anchors, depth, crls, ..ClientAuthInput::default() }).ok()
    }

    /// Leaf first.
    fn chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        let all = std::iter::once(&self.peer_certificate).chain(&self.untrusted_intermediates);
        all.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok()).collect()
    }

    fn now(&self) -> UnixTime {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs_f64(seconds));
        self.validation_time_unix.map_or_else(UnixTime::now, at)
    }
}
