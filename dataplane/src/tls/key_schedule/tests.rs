use proptest::prelude::*;

use super::*;

/// aws-lc's suites, each with our replacement.
fn pairs() -> Vec<(&'static Tls13CipherSuite, &'static Tls13CipherSuite)> {
    let theirs = aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(SupportedCipherSuite::tls13);
    let ours =
        |theirs: &Tls13CipherSuite| SUITES.iter().find(|ours| ours.common.suite == theirs.common.suite);
    theirs.filter_map(|theirs| Some((theirs, ours(theirs)?))).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn expanded(secret: &dyn HkdfExpander, info: &[&[u8]], length: usize) -> Vec<u8> {
    let mut output = vec![0; length];
    secret.expand_slice(info, &mut output).unwrap();
    output
}

/// HKDF-Expand-Label of RFC 8446 section 7.1.
fn labelled(secret: &dyn HkdfExpander, label: &str, context: &[u8], length: u8) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let info: [&[u8]; 5] =
        [&[0, length], &[label.len() as u8], label.as_bytes(), &[context.len() as u8], context];
    expanded(secret, &info, length.into())
}

#[test]
fn only_the_sha256_suites_are_replaced() {
    let mut suites = aws_lc_rs::ALL_CIPHER_SUITES.to_vec();
    prefer_sha2(&mut suites);
    let of = |suite: &SupportedCipherSuite| {
        suite.tls13().map(|suite| std::ptr::from_ref(suite.hkdf_provider).addr())
    };
    let mut changed = Vec::new();
    for (before, after) in aws_lc_rs::ALL_CIPHER_SUITES.iter().zip(&suites) {
        assert_eq!(before.suite(), after.suite(), "the order is unchanged");
        if of(before) != of(after) {
            changed.push(format!("{:?}", after.suite()));
        }
    }
    changed.sort();
    let both = ["TLS13_AES_128_GCM_SHA256", "TLS13_CHACHA20_POLY1305_SHA256"];
    assert_eq!(changed, if has_sha_extensions() { &both[..] } else { &[] });
}

#[test]
fn aead_and_limits_stay_those_of_aws_lc() {
    assert_eq!(pairs().len(), 2);
    for (theirs, ours) in pairs() {
        assert!(std::ptr::eq(theirs.aead_alg, ours.aead_alg));
        assert_eq!(theirs.common.confidentiality_limit, ours.common.confidentiality_limit);
        assert_eq!(theirs.hkdf_provider.extract_from_zero_ikm(None).hash_len(), HASH);
    }
}

/// RFC 5869, appendices A.1 to A.3.
#[test]
fn hkdf_matches_the_rfc_test_vectors() {
    let long = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let cases = [
        (
            vec![0x0b; 22],
            Some(long(0, 12)),
            long(0xf0, 0xf9),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            long(0, 0x4f),
            Some(long(0x60, 0xaf)),
            long(0xb0, 0xff),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09\
             da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            vec![0x0b; 22],
            None,
            Vec::new(),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ];
    for (secret, salt, info, output) in cases {
        let extracted = Sha2Provider.extract_from_secret(salt.as_deref(), &secret);
        let output = bytes(output);
        assert_eq!(expanded(&*extracted, &[&info], output.len()), output);
    }
}

/// RFC 8448 section 3, "Simple 1-RTT Handshake", on the server.
#[test]
fn the_key_schedule_matches_the_rfc_test_vectors() {
    let empty = hash::Hash::hash(&Sha2Provider, b"");
    let early = Sha2Provider.extract_from_zero_ikm(None);
    let salt = labelled(&*early, "derived", empty.as_ref(), 32);
    assert_eq!(salt, bytes("6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba"));
    let shared_secret = bytes("8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d");
    let handshake = Sha2Provider.extract_from_secret(Some(&salt), &shared_secret);
    let hello_hash = bytes("860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8");
    let client = labelled(&*handshake, "c hs traffic", &hello_hash, 32);
    assert_eq!(client, bytes("b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21"));
    let server = labelled(&*handshake, "s hs traffic", &hello_hash, 32);
    assert_eq!(server, bytes("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"));
    let server = Sha2Provider.expander_for_okm(&OkmBlock::new(&server));
    assert_eq!(labelled(&*server, "key", &[], 16), bytes("3fce516009c21727d0f2e4e86ee403bc"));
    assert_eq!(labelled(&*server, "iv", &[], 12), bytes("5d313eb2671276ee13000b30"));
    let salt = labelled(&*handshake, "derived", empty.as_ref(), 32);
    assert_eq!(salt, bytes("43de77e0c77713859a944db9db2590b53190a65b3ee2e4f12dd7a0bb7ce254b4"));
}

#[test]
fn an_expansion_over_the_rfc_limit_fails() {
    let secret = Sha2Provider.extract_from_zero_ikm(None);
    assert!(secret.expand_slice(&[], &mut vec![0; 255 * HASH]).is_ok());
    assert!(secret.expand_slice(&[], &mut vec![0; 255 * HASH + 1]).is_err());
}

fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8)
}

proptest! {
    #[test]
    fn secrets_equal_aws_lcs(
        secret in prop::collection::vec(any::<u8>(), 0..200),
        salt in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        info in parts(),
        length in 0usize..300,
    ) {
        let info: Vec<&[u8]> = info.iter().map(Vec::as_slice).collect();
        for (theirs, ours) in pairs() {
            let extracted = |suite: &Tls13CipherSuite| match &secret[..] {
                [] => suite.hkdf_provider.extract_from_zero_ikm(salt.as_deref()),
                secret => suite.hkdf_provider.extract_from_secret(salt.as_deref(), secret),
            };
            let (theirs, ours) = (extracted(theirs), extracted(ours));
            prop_assert_eq!(expanded(&*theirs, &info, length), expanded(&*ours, &info, length));
            let (theirs, ours) = (theirs.expand_block(&info), ours.expand_block(&info));
            prop_assert_eq!(theirs.as_ref(), ours.as_ref());
        }
    }

    #[test]
    fn expansions_and_signatures_equal_aws_lcs(
        key in prop::collection::vec(any::<u8>(), 32..=64),
        message in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let key = OkmBlock::new(&key);
        for (theirs, ours) in pairs() {
            let expand = |suite: &Tls13CipherSuite| {
                let expander = suite.hkdf_provider.expander_for_okm(&key);
                [expanded(&*expander, &[&message], 12), expanded(&*expander, &[&message], 32)]
            };
            // aws-lc accepts only secrets of the length of a hash.
            if key.as_ref().len() == HASH {
                prop_assert_eq!(expand(theirs), expand(ours));
            }
            let sign = |suite: &Tls13CipherSuite| suite.hkdf_provider.hmac_sign(&key, &message).as_ref().to_vec();
            prop_assert_eq!(sign(theirs), sign(ours));
        }
    }

    #[test]
    fn transcripts_equal_aws_lcs(messages in parts(), fork_at in 0usize..8, more in prop::collection::vec(any::<u8>(), 0..200)) {
        for (theirs, ours) in pairs() {
            let run = |suite: &Tls13CipherSuite| {
                let hash = suite.common.hash_provider;
                let (mut running, mut forks) = (hash.start(), Vec::new());
                for (index, message) in messages.iter().enumerate() {
                    running.update(message);
                    if index == fork_at {
                        let mut fork = running.fork();
                        fork.update(&more);
                        forks.push(fork.finish().as_ref().to_vec());
                        forks.push(running.fork_finish().as_ref().to_vec());
                    }
                }
                forks.push(running.finish().as_ref().to_vec());
                forks.push(hash.hash(&more).as_ref().to_vec());
                forks
            };
            prop_assert_eq!(run(theirs), run(ours));
        }
    }
}
