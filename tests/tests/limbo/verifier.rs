//! The cases through `pki::verify_client`, each with its own clock and a time limit.

use std::time::{Duration, Instant};

use pki::{ClientAuth, ClientAuthInput, UnixTime, certificates_from_pem, crls_from_pem, verify_client};

use crate::Score;
use crate::cases::{Case, Limbo};

/// The depth of cases without one: beyond any of their chains, so that only the rules under test
/// can reject.
pub(crate) const NO_LIMIT: u32 = 255;
/// The limit of any verdict, however pathological the chain.
const SLOWEST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 });

/// The scored cases and the extra ones.
pub(crate) fn judge(limbo: &Limbo) -> (Score, Score) {
    // Cases without a verdict must still end in time.
    for case in limbo.testcases.iter().filter(|case| limbo.scored().all(|scored| scored.id != case.id)) {
        let _ = verdict(case);
    }
    let (mut scored, mut extra) = (Score::default(), Score::default());
    limbo.scored().for_each(|case| scored.count(case.is_right(&verdict(case), "verifier")));
    limbo.extra_testcases.iter().for_each(|case| extra.count(case.is_right(&verdict(case), "verifier")));
    (scored, extra)
}

/// The verifier's result: the accepted subject, or the reason. An invalid policy accepts no client.
fn verdict(case: &Case) -> Result<String, String> {
    let mut anchors = Vec::new();
    for pem in &case.trusted_certs {
        anchors.extend(certificates_from_pem(pem).map_err(|error| format!("anchor: {error}"))?);
    }
    let mut crls = Vec::new();
    for pem in &case.crls {
        crls.extend(crls_from_pem(pem).map_err(|error| format!("CRL: {error}"))?.0);
    }
    let depth = case.max_chain_depth.unwrap_or(NO_LIMIT);
    let input = ClientAuthInput { anchors, depth, crls, ..ClientAuthInput::default() };
    let policy = ClientAuth::new(input).map_err(|error| format!("policy: {error}"))?;
    let chain = case.chain();
    let (leaf, sent) = chain.split_first().expect("the peer's own certificate");
    // Verifiers count whole seconds: 23:59:59.9 is 23:59:59.
    let now = case
        .validation_time_unix
        .map_or_else(UnixTime::now, |seconds| UnixTime::since_unix_epoch(Duration::from_secs_f64(seconds)));
    let mut verdict = verify_client(&policy, leaf, sent, now);
    // The best of some tries: the machine may be busy.
    let took = (0..5).map(|_| {
        let started = Instant::now();
        verdict = verify_client(&policy, leaf, sent, now);
        started.elapsed()
    });
    let fastest = took.min().unwrap_or_default();
    assert!(fastest < SLOWEST, "{}: the verdict took {fastest:?}", case.id);
    match verdict {
        Ok(verified) => Ok(verified.identity().subject().to_owned()),
        Err(error) => Err(format!("{}: {error}", error.reason())),
    }
}
