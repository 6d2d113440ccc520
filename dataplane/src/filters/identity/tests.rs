use http::HeaderName;
use model::ClientIdentity;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput, UnixTime};
use serde_json::json;

use super::*;
use crate::filters::headers::PeerTrust;
use crate::filters::untrusted_headers;
use crate::tls::client_verifier;

fn client() -> ClientVerification {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let intermediate = root.intermediate(&AuthoritySpec::new("Middle")).unwrap();
    let anchors = vec![root.certificate().clone()];
    let policy =
        ClientAuth::new(ClientAuthInput { anchors, depth: 1, ..ClientAuthInput::default() }).unwrap();
    let leaf = LeafSpec::client("a\"b").uri("spiffe://a.example/x").dns("a.example");
    let leaf = intermediate.issue(&leaf).unwrap();
    let chain: Vec<_> = leaf.chain.iter().map(|certificate| certificate.der().clone()).collect();
    client_verifier::evaluate_client(Some(&policy), Some(&chain), UnixTime::now())
}

/// The headers of a block that forwards these.
fn headers(forward: &[&str], client: &ClientVerification) -> HeaderMap {
    let block = ClientIdentity::compile(&json!({"forward": forward})).unwrap();
    let mut headers = HeaderMap::new();
    IdentityHeaderCache::default().set_headers(&mut headers, &block, client, None);
    headers
}

const ALL: [&str; 6] =
    ["client_cert", "client_cert_chain", "xfcc", "xfcc_cert", "xfcc_chain", "x_ssl_client"];

#[test]
fn every_identity_header_is_an_untrusted_header() {
    let mut headers = headers(&ALL, &client());
    assert_eq!(headers.len(), 3 + 8, "{headers:?}");
    // In CGI's spelling, too.
    let spellings: Vec<HeaderName> = headers
        .keys()
        .map(|name| HeaderName::from_bytes(name.as_str().replace('-', "_").as_bytes()).unwrap())
        .collect();
    for name in spellings {
        headers.append(name, "forged".parse().unwrap());
    }
    // From a peer that is trusted with everything else, too.
    let trust = PeerTrust { forwarded: true, address: true };
    untrusted_headers::remove_untrusted(&mut headers, trust, None);
    assert!(headers.is_empty(), "{headers:?}");
}

#[test]
fn an_unverified_client_has_no_identity_headers() {
    let rejected = ClientVerification::Rejected(pki::VerifyReason::Expired);
    for unverified in [ClientVerification::NotRequested, ClientVerification::NoCertificate, rejected] {
        let all = headers(&ALL, &unverified);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all["x-ssl-client-verify"], "NONE");
        assert!(headers(&ALL[..5], &unverified).is_empty());
        let block = ClientIdentity::compile(&json!({"allow": [{"dns": "a.example"}]})).unwrap();
        assert_eq!(check_allow_list(Some(&block), &unverified), Err(Reason::NotAllowed));
        assert_eq!(check_allow_list(None, &unverified), Ok(()));
    }
}

#[test]
fn identity_headers_are_made_once_a_client() {
    let (cache, one, other) = (IdentityHeaderCache::default(), client(), client());
    let (ClientVerification::Verified(one), ClientVerification::Verified(other)) = (one, other) else {
        panic!("not verified")
    };
    let first = cache.get_or_insert(&one);
    assert!(Rc::ptr_eq(&first, &cache.get_or_insert(&one)));
    assert!(!Rc::ptr_eq(&first, &cache.get_or_insert(&other)), "of another client");
}

#[test]
fn only_the_configured_headers_are_sent() {
    let client = client();
    assert_eq!(headers(&["client_cert"], &client).len(), 1);
    let xfcc = headers(&["xfcc"], &client);
    let text = xfcc["x-forwarded-client-cert"].to_str().unwrap();
    assert!(text.starts_with("Hash=") && !text.contains("Cert=") && !text.contains("Chain="), "{text}");
    assert!(text.ends_with("Subject=\"CN=a\\22b\";URI=spiffe://a.example/x;DNS=a.example"), "{text}");
}
