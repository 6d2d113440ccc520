use http::HeaderName;
use model::ClientIdentity;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput, UnixTime};
use serde_json::json;

use super::*;
use crate::filters::untrusted_headers;
use crate::filters::untrusted_headers::PeerTrust;
use crate::tls::client_verifier;

fn client() -> ClientVerification {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let middle = root.intermediate(&AuthoritySpec::new("Middle")).unwrap();
    let anchors = vec![root.certificate().clone()];
    let policy =
        ClientAuth::new(ClientAuthInput { anchors, depth: 1, ..ClientAuthInput::default() }).unwrap();
    let leaf = middle.issue(&LeafSpec::client("a\"b").uri("spiffe://a.example/x").dns("a.example")).unwrap();
    let chain: Vec<_> = leaf.chain.iter().map(|certificate| certificate.der().clone()).collect();
    client_verifier::evaluate_client(Some(&policy), Some(&chain), UnixTime::now())
}

fn told(forward: &[&str], client: &ClientVerification) -> HeaderMap {
    let block = ClientIdentity::compile(&json!({"forward": forward})).unwrap();
    let mut headers = HeaderMap::new();
    IdentityHeaderCache::default().set_headers(&mut headers, &block, client, None);
    headers
}

const ALL: [&str; 6] =
    ["client_cert", "client_cert_chain", "xfcc", "xfcc_cert", "xfcc_chain", "x_ssl_client"];

#[test]
fn every_header_we_set_is_one_we_scrub() {
    let mut headers = told(&ALL, &client());
    assert_eq!(headers.len(), 3 + 8, "{headers:?}");
    // As CGI would spell them, beside the spelling we set.
    let spelt: Vec<HeaderName> = headers
        .keys()
        .map(|name| HeaderName::from_bytes(name.as_str().replace('-', "_").as_bytes()).unwrap())
        .collect();
    for name in spelt {
        headers.append(name, "forged".parse().unwrap());
    }
    // Also from a peer that is trusted with everything else.
    untrusted_headers::remove_untrusted(&mut headers, PeerTrust { forwarded: true, address: true }, None);
    assert!(headers.is_empty(), "{headers:?}");
}

#[test]
fn an_unverified_client_is_told_by_no_form() {
    for unverified in [
        ClientVerification::NotRequested,
        ClientVerification::NoCertificate,
        ClientVerification::Rejected(pki::VerifyReason::Expired),
    ] {
        let headers = told(&ALL, &unverified);
        assert_eq!(headers.len(), 1, "{headers:?}");
        assert_eq!(headers["x-ssl-client-verify"], "NONE");
        assert!(told(&ALL[..5], &unverified).is_empty());
        let block = ClientIdentity::compile(&json!({"allow": [{"dns": "a.example"}]})).unwrap();
        assert_eq!(check_allow_list(Some(&block), &unverified), Err(Reason::NotAllowed));
        assert_eq!(check_allow_list(None, &unverified), Ok(()));
    }
}

#[test]
fn forms_are_made_once_a_client() {
    let (forms, one, other) = (IdentityHeaderCache::default(), client(), client());
    let (ClientVerification::Verified(one), ClientVerification::Verified(other)) = (one, other) else {
        panic!("not verified")
    };
    let first = forms.rendered(&one);
    assert!(Rc::ptr_eq(&first, &forms.rendered(&one)));
    assert!(!Rc::ptr_eq(&first, &forms.rendered(&other)), "another client, other forms");
}

#[test]
fn only_the_chosen_forms_are_sent() {
    let client = client();
    assert_eq!(told(&["client_cert"], &client).len(), 1);
    let xfcc = told(&["xfcc"], &client);
    let text = xfcc["x-forwarded-client-cert"].to_str().unwrap();
    assert!(text.starts_with("Hash=") && !text.contains("Cert=") && !text.contains("Chain="), "{text}");
    assert!(text.ends_with("Subject=\"CN=a\\22b\";URI=spiffe://a.example/x;DNS=a.example"), "{text}");
}
