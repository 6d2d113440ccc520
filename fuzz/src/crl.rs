//! CRLs: parsing and status queries of `pki`.

use std::sync::LazyLock;
use std::time::Duration;

use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
use pki::{
    Certificate, ClientAuth, ClientAuthInput, Crl, UnixTime, VerifyReason, crls_from_pem, verify_client,
};

/// 2025-01-01, within the default validity of issued certificates.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_735_689_600));

struct CrlWorld {
    root: Certificate,
    client: Certificate,
    /// The root's CRL that revokes the client, DER.
    revoking: Vec<u8>,
}

static WORLD: LazyLock<CrlWorld> = LazyLock::new(|| {
    let root = Authority::root(&AuthoritySpec::new("Fuzz Root")).expect("a root");
    let client = root.issue(&LeafSpec::client("fuzz")).expect("a leaf").certificate;
    let revoking = root.crl(&CrlSpec::new().revoke(&client)).expect("a list").to_vec();
    CrlWorld { root: root.certificate().clone(), client, revoking }
});

/// PEM when it is text with a block, DER otherwise.
pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok((lists, _)) = crls_from_pem(text)
    {
        lists.iter().for_each(|der| check_der(der));
        return;
    }
    check_der(data);
}

fn check_der(der: &[u8]) {
    let Ok(crl) = Crl::from_der(der) else { return };
    assert_eq!(crl.der(), der, "what is read is kept");
    assert!(crl.issuer().bytes().all(|byte| (b' '..=b'~').contains(&byte)), "a log line stays one");
    assert!(crl.entries() * 4 <= der.len(), "an entry takes more than that");
    assert!(!crl.is_signed_by(&WORLD.root), "a forged list");
    let verdict = |crls: Vec<Vec<u8>>, crl_prefer| {
        let crls = crls.into_iter().map(Into::into).collect();
        let anchors = vec![WORLD.root.clone()];
        let input = ClientAuthInput { anchors, crls, crl_prefer, ..ClientAuthInput::default() };
        let policy = ClientAuth::new(input).expect("the list was read before");
        verify_client(&policy, WORLD.client.der(), &[], NOW).map(drop).map_err(|error| error.reason())
    };
    // An unsigned CRL neither changes a status nor hides that of a valid CRL.
    assert_eq!(verdict(vec![der.to_vec()], true), Ok(()));
    assert_eq!(verdict(vec![der.to_vec()], false), Err(VerifyReason::UnknownRevocationStatus));
    assert_eq!(verdict(vec![der.to_vec(), WORLD.revoking.clone()], true), Err(VerifyReason::Revoked));
}
