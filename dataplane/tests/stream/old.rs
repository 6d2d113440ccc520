//! TLS 1.1 clients, over the same scripted transport: what BoringSSL serves, whom it refuses, and
//! who never gets it.

use boring::pkey::PKey;
use boring::ssl::{ErrorCode, Ssl as BoringSsl, SslContext, SslMethod, SslStream, SslVerifyMode, SslVersion};
use boring::x509::X509;
use dataplane::testing::tls::engine::Engine;
use dataplane::testing::tls::site::SiteConfig;
use model::admission::Client;
use model::resource::Ssl as SiteSsl;
use pki::mint::{CrlSpec, KeyAlgorithm};
use rustls::pki_types::UnixTime;

use super::*;

/// The ciphertext of the old client, in memory.
#[derive(Default)]
struct Wire {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl io::Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.input.read(buf) }
    }
}

impl io::Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type OldClient = SslStream<Wire>;

/// What an old client is like.
struct Old<'a> {
    versions: [SslVersion; 2],
    ciphers: &'a str,
    identity: Option<&'a Minted>,
}

impl Old<'_> {
    const TLS11: Self = Old { versions: [SslVersion::TLS1_1; 2], ciphers: "ALL", identity: None };

    fn start(&self, world: &World) -> OldClient {
        let mut context = SslContext::builder(SslMethod::tls()).unwrap();
        context.set_min_proto_version(Some(self.versions[0])).unwrap();
        context.set_max_proto_version(Some(self.versions[1])).unwrap();
        context.set_cipher_list(self.ciphers).unwrap();
        let root = X509::from_der(world.authority.certificate().der()).unwrap();
        context.cert_store_mut().add_cert(&root).unwrap();
        context.set_verify(SslVerifyMode::PEER);
        if let Some(minted) = self.identity {
            let key = minted.key().unwrap();
            context.set_certificate(&X509::from_der(minted.certificate.der()).unwrap()).unwrap();
            context.set_private_key(&PKey::private_key_from_der(key.der().secret_der()).unwrap()).unwrap();
            for issuer in &minted.chain[1..] {
                context.add_extra_chain_cert(X509::from_der(issuer.der()).unwrap()).unwrap();
            }
        }
        let mut tls = BoringSsl::new(&context.build()).unwrap();
        tls.set_hostname("a.example").unwrap();
        SslStream::new(tls, Wire::default()).unwrap()
    }

    /// Its ClientHello.
    fn hello(&self, world: &World) -> Vec<u8> {
        let mut client = self.start(world);
        assert_eq!(client.connect().unwrap_err().code(), ErrorCode::WANT_READ);
        client.get_mut().output.clone()
    }
}

/// Shakes hands as a client; an error is what the client says about it.
async fn connect_old(mut client: OldClient, pump: &mut TestPump) -> Result<OldClient, String> {
    loop {
        let step = client.connect();
        pump.staged().append(&mut client.get_mut().output);
        poll_fn(|cx| pump.poll_drain(cx)).await.unwrap();
        match step {
            Ok(()) => return Ok(client),
            Err(error) if error.code() == ErrorCode::WANT_READ => {}
            Err(error) => return Err(error.to_string()),
        }
        fill(&mut client, pump).await?;
    }
}

async fn fill(client: &mut OldClient, pump: &mut TestPump) -> Result<(), String> {
    let data = poll_fn(|cx| pump.poll_fill(cx).map_ok(<[u8]>::to_vec)).await.unwrap();
    pump.consume(data.len());
    client.get_mut().input.extend(&data);
    if data.is_empty() { Err("ended".to_owned()) } else { Ok(()) }
}

/// Both sides, to the end of the handshake.
async fn shake(
    world: &World,
    old: &Old<'_>,
    seed: u64,
) -> (Result<TestStream, HandshakeError>, Result<(OldClient, TestPump), String>) {
    let (near, mut far) = pumps(seed);
    let client = old.start(world);
    futures_util::join!(world.accept(near), async move {
        connect_old(client, &mut far).await.map(|client| (client, far))
    })
}

const OLD_ONLY: &[TlsVersion] = &[TlsVersion::V11];
const ALL: &[TlsVersion] = &[TlsVersion::V11, TlsVersion::V12, TlsVersion::V13];

#[test]
fn an_old_client_is_verified_and_served_however_the_transport_splits_its_bytes() {
    for versions in [OLD_ONLY, ALL] {
        let world = World::new(versions);
        let minted = world.authority.issue(&LeafSpec::client("client")).unwrap();
        let old = Old { identity: Some(&minted), ..Old::TLS11 };
        for seed in [0, 1, 7, 1234] {
            let up = pattern(if seed == 0 { 3_000 } else { 100_000 }, seed);
            run(|| async {
                let (server, client) = shake(&world, &old, seed).await;
                let (mut server, (mut client, mut far)) = (server.unwrap(), client.unwrap());
                assert_eq!(client.ssl().version_str(), "TLSv1.1");
                assert_eq!(client.ssl().current_cipher().unwrap().name(), "ECDHE-ECDSA-AES128-SHA");
                client.ssl_write(&up).unwrap();
                far.staged().append(&mut client.get_mut().output);
                let sending = async { poll_fn(|cx| far.poll_drain(cx)).await.unwrap() };
                let (got, ()) = futures_util::join!(receive(&mut server, up.len()), sending);
                assert!(got.unwrap() == up, "seed {seed} up");
                let answering = async { send(&mut server, &up).await.unwrap() };
                let reading = async {
                    let mut got = Vec::new();
                    let mut room = [0; 5000];
                    while got.len() < up.len() {
                        match client.ssl_read(&mut room) {
                            Ok(n) => got.extend_from_slice(&room[..n]),
                            Err(error) => {
                                assert_eq!(error.code(), ErrorCode::WANT_READ, "{error}");
                                fill(&mut client, &mut far).await.unwrap();
                            }
                        }
                    }
                    got
                };
                let ((), got) = futures_util::join!(answering, reading);
                assert!(got == up, "seed {seed} down");
            });
        }
    }
}

/// Engine and hello, without a pump between them: what was agreed, in the end.
fn agreed(world: &World, old: &Old<'_>) -> Result<(Engine, OldClient), String> {
    run(|| async {
        let (near, mut far) = pumps(3);
        let client = old.start(world);
        let server = async {
            let mut pump = near;
            let hello = hello::read(&mut pump).await.map_err(|error| error.to_string())?;
            let config = world.sites.config(&world.site, Purpose::Http).unwrap();
            let mut tls = match hello.begin(config, pump.staged()) {
                Ok(tls) => tls,
                Err(error) => {
                    poll_fn(|cx| pump.poll_drain(cx)).await.unwrap();
                    return Err(error.to_string());
                }
            };
            let driven = handshake::drive(&mut tls, &mut pump).await;
            poll_fn(|cx| pump.poll_drain(cx)).await.unwrap();
            driven.map(|()| tls).map_err(|error| error.to_string())
        };
        let (server, client) = futures_util::join!(server, connect_old(client, &mut far));
        Ok((server?, client?))
    })
}

#[test]
fn the_client_is_who_pki_says_and_facts_are_told() {
    let world = World::new(ALL);
    let minted = world.authority.issue(&LeafSpec::client("client")).unwrap();
    let (engine, _client) = agreed(&world, &Old { identity: Some(&minted), ..Old::TLS11 }).unwrap();
    assert_eq!(engine.version(), Some(TlsVersion::V11));
    assert_eq!(engine.cipher(), Some("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"));
    assert!(!engine.is_resumed());
    let chain = engine.peer_chain();
    let shown: Vec<_> = minted.chain.iter().map(|certificate| certificate.der().clone()).collect();
    assert_eq!(chain[..1], shown[..1]);
    match verify::client_of(world.site.client.as_deref(), Some(&chain), UnixTime::now()) {
        Client::Verified(verified) => assert!(verified.identity().subject().contains("client")),
        other => panic!("{other:?}"),
    }
}

/// A policy of depth 1 under the world's authority, with a list of the revoked.
fn policy_with_crl(world: &World, revoked: &Minted) -> ClientAuth {
    let crl = world.authority.crl(&CrlSpec::new().revoke(&revoked.certificate)).unwrap();
    ClientAuth::new(ClientAuthInput {
        anchors: vec![world.authority.certificate().clone()],
        depth: 1,
        skip_uri_patterns: vec![],
        crls: vec![crl],
        crl_prefer: true,
    })
    .unwrap()
}

#[test]
fn every_version_of_both_engines_has_the_same_verdicts_and_alerts() {
    let mut world = World::new(ALL);
    let below = |name: &str| LeafSpec::client(name);
    let good = world.authority.issue(&below("good")).unwrap();
    let revoked = world.authority.issue(&below("revoked")).unwrap();
    let long_ago = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_000_000_000));
    let expired = world.authority.issue(&below("expired").valid(long_ago, 9)).unwrap();
    let server = world.authority.issue(&LeafSpec::server("server")).unwrap();
    let one = world.authority.intermediate(&AuthoritySpec::new("one")).unwrap();
    let two = one.intermediate(&AuthoritySpec::new("two")).unwrap();
    let deep = two.issue(&below("deep")).unwrap();
    let stranger = Authority::root(&AuthoritySpec::new("other CA")).unwrap();
    let stranger = stranger.issue(&below("stranger")).unwrap();
    world.site.client = Some(Arc::new(policy_with_crl(&world, &revoked)));
    let cases: [(Option<&Minted>, Option<&str>, &str); 7] = [
        (Some(&good), None, ""),
        (Some(&stranger), Some("unknown_issuer"), "UNKNOWN_CA"),
        (Some(&expired), Some("expired"), "CERTIFICATE_EXPIRED"),
        (Some(&revoked), Some("revoked"), "CERTIFICATE_REVOKED"),
        (Some(&deep), Some("depth"), "UNKNOWN_CA"),
        (Some(&server), Some("wrong_usage"), "UNSUPPORTED_CERTIFICATE"),
        (None, None, ""),
    ];
    let [v11, v12, v13] = [SslVersion::TLS1_1, SslVersion::TLS1_2, SslVersion::TLS1_3];
    for (served, versions) in [(ALL, &[v11, v12, v13][..]), (&ALL[1..], &[v12, v13])] {
        world.site.versions = Some(served.to_vec());
        world.site.cache = Slot::new();
        for version in versions {
            for (identity, rule, alert) in cases {
                let old = Old { versions: [*version; 2], identity, ..Old::TLS11 };
                run(|| async {
                    let (server, client) = shake(&world, &old, 5).await;
                    let case = format!("{served:?} {version} {rule:?}");
                    let refusal = verify::take_refusal().map(|refusal| refusal.error.reason().as_str());
                    assert_eq!(refusal, rule, "{case}");
                    let accepted = identity.is_some() && rule.is_none();
                    assert_eq!(server.is_ok(), accepted, "{case}");
                    // A TLS 1.3 client is done before it hears what the server thinks of its certificate.
                    let told = match client {
                        Ok(_) if accepted => return,
                        Ok((mut client, mut far)) => loop {
                            match client.ssl_read(&mut [0; 1]) {
                                Err(error) if error.code() == ErrorCode::WANT_READ => {
                                    fill(&mut client, &mut far).await.unwrap();
                                }
                                other => break other.unwrap_err().to_string(),
                            }
                        },
                        Err(told) => told,
                    };
                    let alert = match (identity, *version == v13) {
                        (Some(_), _) => alert,
                        (None, true) => "CERTIFICATE_REQUIRED",
                        (None, false) if served.contains(&TlsVersion::V11) => "HANDSHAKE_FAILURE",
                        // rustls has but one alert for it.
                        (None, false) => "ALERT",
                    };
                    assert!(told.contains(alert), "{case}: {told}");
                });
            }
        }
    }
}

#[test]
fn a_site_that_does_not_ask_for_it_is_not_served_to_an_old_client() {
    for versions in [&[TlsVersion::V12][..], &[TlsVersion::V13], &[TlsVersion::V12, TlsVersion::V13]] {
        let world = World::new(versions);
        assert!(matches!(world.sites.config(&world.site, Purpose::Http), Ok(SiteConfig::Rustls(_))));
        let refused = agreed(&world, &Old::TLS11).err().unwrap();
        assert!(refused.contains("SignatureAlgorithmsExtensionRequired"), "{refused}");
        // Its own list wins over the listener's, both ways.
        let mut world = World::new(ALL);
        world.site.versions = Some(versions.to_vec());
        assert!(matches!(world.sites.config(&world.site, Purpose::Http), Ok(SiteConfig::Rustls(_))));
    }
}

#[test]
fn versions_are_exactly_the_sites() {
    use SslVersion as V;
    let [v11, v12, v13] = [V::TLS1_1, V::TLS1_2, V::TLS1_3];
    let cases: [(&[TlsVersion], [SslVersion; 2], Option<TlsVersion>); 11] = [
        (OLD_ONLY, [v11, v13], Some(TlsVersion::V11)),
        (OLD_ONLY, [V::TLS1, v11], Some(TlsVersion::V11)),
        (OLD_ONLY, [v12, v13], None),
        (OLD_ONLY, [V::TLS1, V::TLS1], None),
        (&[TlsVersion::V11, TlsVersion::V12], [v11, v13], Some(TlsVersion::V12)),
        (&[TlsVersion::V11, TlsVersion::V12], [v13, v13], None),
        (&[TlsVersion::V11, TlsVersion::V13], [v11, v13], Some(TlsVersion::V13)),
        (&[TlsVersion::V11, TlsVersion::V13], [v11, v12], Some(TlsVersion::V11)),
        (&[TlsVersion::V11, TlsVersion::V13], [v12, v12], None),
        (ALL, [v11, v13], Some(TlsVersion::V13)),
        (ALL, [v11, v12], Some(TlsVersion::V12)),
    ];
    for (served, offered, expected) in cases {
        let mut world = World::new(&[TlsVersion::V13]);
        world.site.versions = Some(served.to_vec());
        world.site.client = None;
        let found = agreed(&world, &Old { versions: offered, ..Old::TLS11 });
        let version = found.as_ref().map(|(engine, _)| engine.version());
        assert_eq!(version.ok().flatten(), expected, "{served:?} {offered:?} {:?}", found.as_ref().err());
        if let Err(error) = found {
            // From the server; or from the client, where it did not say that it has no TLS 1.1.
            assert!(error.contains("_PROTOCOL"), "{served:?} {offered:?} {error}");
        }
    }
}

fn with_pairs(world: &World, kinds: &[KeyAlgorithm]) -> SiteSsl {
    let pairs = kinds.iter().map(|kind| {
        let minted = world.authority.issue(&LeafSpec::server("a.example").algorithm(*kind)).unwrap();
        KeyPair { chain: minted.chain.clone(), key: Arc::new(minted.key().unwrap()) }
    });
    SiteSsl { pairs: pairs.collect(), client: None, cache: Slot::new(), ..world.site.clone() }
}

#[test]
fn each_client_gets_the_first_certificate_it_can_use() {
    let mut world = World::new(ALL);
    world.site = with_pairs(&world, &[KeyAlgorithm::Rsa2048, KeyAlgorithm::P256]);
    let [leaf_of_rsa, leaf_of_ecdsa] = [0, 1].map(|index| world.site.pairs[index].chain[0].der().to_vec());
    for version in [SslVersion::TLS1_1, SslVersion::TLS1_2] {
        for (ciphers, leaf) in [("ALL", &leaf_of_ecdsa), ("aRSA", &leaf_of_rsa), ("aECDSA", &leaf_of_ecdsa)] {
            let old = Old { versions: [version; 2], ciphers, identity: None };
            let (_engine, client) = agreed(&world, &old).unwrap();
            let shown = client.ssl().peer_certificate().unwrap().to_der().unwrap();
            assert!(&shown == leaf, "{version} {ciphers}");
        }
    }
    // No RSA key exchange: what was recorded today is not read with a key that leaks tomorrow.
    let refused = agreed(&world, &Old { ciphers: "kRSA", ..Old::TLS11 }).err().unwrap();
    assert!(refused.contains("NO_SHARED_CIPHER"), "{refused}");
}

#[test]
fn http2_is_not_chosen_below_tls_1_2() {
    let mut world = World::new(ALL);
    world.site.client = None;
    for (version, expected) in [(SslVersion::TLS1_1, "http/1.1"), (SslVersion::TLS1_2, "h2")] {
        let old = Old { versions: [version; 2], ..Old::TLS11 };
        let mut client = old.start(&world);
        client.ssl_mut().set_alpn_protos(b"\x02h2\x08http/1.1").unwrap();
        run(|| async {
            let (near, mut far) = pumps(3);
            let (server, client) = futures_util::join!(world.accept(near), connect_old(client, &mut far));
            server.unwrap();
            let client = client.unwrap();
            assert_eq!(client.ssl().selected_alpn_protocol(), Some(expected.as_bytes()));
        });
    }
}

#[test]
fn nothing_is_resumed() {
    for versions in EVERY_ENGINE {
        let mut world = World::new(versions);
        world.site.client = None;
        let mut roots = RootCertStore::empty();
        roots.add(world.authority.certificate().der().clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(site::provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        run(|| async {
            for _ in 0..3 {
                let (near, mut far) = pumps(3);
                let name = "a.example".try_into().unwrap();
                let mut tls = Engine::from(ClientConnection::new(Arc::clone(&config), name).unwrap());
                let client = async {
                    handshake::drive(&mut tls, &mut far).await.unwrap();
                    poll_fn(|cx| far.poll_drain(cx)).await.unwrap();
                };
                let (server, ()) = futures_util::join!(world.accept(near), client);
                server.unwrap();
                assert!(!tls.is_resumed(), "{versions:?}");
            }
        });
    }
}

/// What comes of these bytes, when nothing follows them.
async fn read(world: &World, bytes: &[u8]) -> Result<(Option<Name>, String), String> {
    let (mut near, mut far) = pumps(3);
    far.staged().extend_from_slice(bytes);
    poll_fn(|cx| far.poll_drain(cx)).await.unwrap();
    drop(far);
    let hello = hello::read(&mut near).await.map_err(|error| error.to_string())?;
    let name = hello.server_name(None);
    let config = world.sites.config(&world.site, Purpose::Http).unwrap();
    let mut tls = hello.begin(config, near.staged()).map_err(|error| error.to_string())?;
    let ended = handshake::drive(&mut tls, &mut near).await.unwrap_err();
    Ok((name, ended.to_string()))
}

#[test]
fn a_client_hello_may_be_cut_anywhere_and_bent_anyhow() {
    let world = World::new(ALL);
    let hellos = [Old::TLS11, Old { versions: [SslVersion::TLS1_1, SslVersion::TLS1_3], ..Old::TLS11 }];
    // One runtime for all: each takes memory that the kernel gives back in its own time.
    run(|| async {
        for whole in hellos.map(|old| old.hello(&world)) {
            let ended = "the peer ended the connection during the handshake".to_owned();
            assert_eq!(read(&world, &whole).await, Ok((Name::from_sni("a.example"), ended)));
            for cut in 0..whole.len() {
                assert!(read(&world, &whole[..cut]).await.is_err(), "cut at {cut}");
            }
            // Split into two records anywhere: the same ClientHello.
            for cut in 6..whole.len() {
                let record = |body: &[u8]| {
                    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
                    [&whole[..3], &length[..], body].concat()
                };
                let split = [record(&whole[5..cut]), record(&whole[cut..])].concat();
                let name = read(&world, &split).await.map(|(name, _)| name);
                assert_eq!(name, Ok(Name::from_sni("a.example")), "records split at {cut}");
            }
            let mut seed = 4711;
            for _ in 0..2_000 {
                let mut bent = whole.clone();
                for _ in 0..=next(&mut seed) % 3 {
                    let at = usize::try_from(next(&mut seed)).unwrap() % bent.len();
                    bent[at] = next(&mut seed).to_le_bytes()[0];
                }
                // Whatever comes of it, it comes without a panic, and ends with the bytes.
                let _answer = read(&world, &bent).await;
            }
        }
    });
}
