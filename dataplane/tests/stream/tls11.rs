//! TLS 1.1 clients over the same scripted transport: what BoringSSL serves and rejects, and that
//! sites without TLSv1.1 never use it.

use boring::pkey::PKey;
use boring::ssl::{ErrorCode, Ssl as BoringSsl, SslContext, SslMethod, SslStream, SslVerifyMode, SslVersion};
use boring::x509::X509;
use dataplane::testing::tls::client_verifier::evaluate_client;
use dataplane::testing::tls::site_config::SiteConfig;
use model::admission::ClientVerification;
use model::{CacheSlot, Ssl as SiteSsl};
use pki::VerifyReason;
use pki::ca::{CrlSpec, KeyAlgorithm};
use rustls::pki_types::UnixTime;

use super::*;

/// The ciphertext of the TLS 1.1 client, in memory.
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

type BoringClient = SslStream<Wire>;

/// The configuration of a client.
struct ClientSpec<'a> {
    versions: [SslVersion; 2],
    ciphers: &'a str,
    identity: Option<&'a IssuedCertificate>,
}

impl ClientSpec<'_> {
    const TLS11: Self = ClientSpec { versions: [SslVersion::TLS1_1; 2], ciphers: "ALL", identity: None };

    fn start(&self, world: &World) -> BoringClient {
        let mut context = SslContext::builder(SslMethod::tls()).unwrap();
        context.set_min_proto_version(Some(self.versions[0])).unwrap();
        context.set_max_proto_version(Some(self.versions[1])).unwrap();
        context.set_cipher_list(self.ciphers).unwrap();
        let root = X509::from_der(world.authority.certificate().der()).unwrap();
        context.cert_store_mut().add_cert(&root).unwrap();
        context.set_verify(SslVerifyMode::PEER);
        if let Some(issued) = self.identity {
            let key = issued.key().unwrap();
            context.set_certificate(&X509::from_der(issued.certificate.der()).unwrap()).unwrap();
            context.set_private_key(&PKey::private_key_from_der(key.der().secret_der()).unwrap()).unwrap();
            for issuer in &issued.chain[1..] {
                context.add_extra_chain_cert(X509::from_der(issuer.der()).unwrap()).unwrap();
            }
        }
        let mut tls = BoringSsl::new(&context.build()).unwrap();
        tls.set_hostname("a.example").unwrap();
        SslStream::new(tls, Wire::default()).unwrap()
    }

    fn hello(&self, world: &World) -> Vec<u8> {
        let mut client = self.start(world);
        assert_eq!(client.connect().unwrap_err().code(), ErrorCode::WANT_READ);
        client.get_mut().output.clone()
    }
}

/// The client's side of a handshake; an error is BoringSSL's.
async fn connect_boring(mut client: BoringClient, socket: &mut TestSocket) -> Result<BoringClient, String> {
    loop {
        let step = client.connect();
        socket.write_buf().append(&mut client.get_mut().output);
        poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
        match step {
            Ok(()) => return Ok(client),
            Err(error) if error.code() == ErrorCode::WANT_READ => {}
            Err(error) => return Err(error.to_string()),
        }
        fill(&mut client, socket).await?;
    }
}

async fn fill(client: &mut BoringClient, socket: &mut TestSocket) -> Result<(), String> {
    let data = poll_fn(|cx| socket.poll_fill_buf(cx).map_ok(<[u8]>::to_vec)).await.unwrap();
    socket.consume(data.len());
    client.get_mut().input.extend(&data);
    if data.is_empty() { Err("the connection ended".to_owned()) } else { Ok(()) }
}

/// Both sides of a handshake.
async fn handshake_with(
    world: &World,
    spec: &ClientSpec<'_>,
    seed: u64,
) -> (Result<TestStream, HandshakeError>, Result<(BoringClient, TestSocket), String>) {
    let (near, mut far) = sockets(seed);
    let client = spec.start(world);
    futures_util::join!(world.accept(near), async move {
        connect_boring(client, &mut far).await.map(|client| (client, far))
    })
}

const TLS11_ONLY: &[TlsVersion] = &[TlsVersion::V11];
const ALL: &[TlsVersion] = &[TlsVersion::V11, TlsVersion::V12, TlsVersion::V13];

#[test]
fn tls_1_1_data_arrives_in_any_fragmentation() {
    for versions in [TLS11_ONLY, ALL] {
        let world = World::new(versions);
        let issued = world.authority.issue(&LeafSpec::client("client")).unwrap();
        let spec = ClientSpec { identity: Some(&issued), ..ClientSpec::TLS11 };
        for seed in [0, 1, 7, 1234] {
            let up = pattern(if seed == 0 { 3_000 } else { 100_000 }, seed);
            run(|| async {
                let (server, client) = handshake_with(&world, &spec, seed).await;
                let (mut server, (mut client, mut far)) = (server.unwrap(), client.unwrap());
                assert_eq!(client.ssl().version_str(), "TLSv1.1");
                assert_eq!(client.ssl().current_cipher().unwrap().name(), "ECDHE-ECDSA-AES128-SHA");
                client.ssl_write(&up).unwrap();
                far.write_buf().append(&mut client.get_mut().output);
                let sending = async { poll_fn(|cx| far.poll_flush(cx)).await.unwrap() };
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

/// Both sides after a handshake, before the server's becomes a transport.
fn negotiate(world: &World, spec: &ClientSpec<'_>) -> Result<(TlsHandshake, BoringClient), String> {
    run(|| async {
        let (near, mut far) = sockets(3);
        let client = spec.start(world);
        let server = async {
            let mut socket = near;
            let hello = client_hello::read(&mut socket).await.map_err(|error| error.to_string())?;
            let config = world.factory.config(&world.site, Subsystem::Http).unwrap();
            let mut tls = match hello.start_handshake(config, socket.write_buf()) {
                Ok(tls) => tls,
                Err(error) => {
                    poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
                    return Err(error.to_string());
                }
            };
            let result = handshake::drive(&mut tls, &mut socket).await;
            poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
            result.map(|()| tls).map_err(|error| error.to_string())
        };
        let (server, client) = futures_util::join!(server, connect_boring(client, &mut far));
        Ok((server?, client?))
    })
}

#[test]
fn the_client_is_verified_and_parameters_are_exposed() {
    let world = World::new(ALL);
    let issued = world.authority.issue(&LeafSpec::client("client")).unwrap();
    let (handshake, _client) =
        negotiate(&world, &ClientSpec { identity: Some(&issued), ..ClientSpec::TLS11 }).unwrap();
    assert_eq!(handshake.version(), Some(TlsVersion::V11));
    assert_eq!(handshake.cipher_suite(), Some("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"));
    assert!(!handshake.is_resumed());
    let chain = handshake.peer_chain();
    let expected: Vec<_> = issued.chain.iter().map(|certificate| certificate.der().clone()).collect();
    assert_eq!(chain[..1], expected[..1]);
    match evaluate_client(world.site.client.as_deref(), Some(&chain), UnixTime::now()) {
        ClientVerification::Verified(verified) => assert!(verified.identity().subject().contains("client")),
        other => panic!("{other:?}"),
    }
}

/// A policy of depth 1 with the world's authority and a CRL.
fn policy_with_crl(world: &World, revoked: &IssuedCertificate) -> ClientAuth {
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
fn all_versions_and_engines_have_the_same_alerts() {
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
    let other = Authority::root(&AuthoritySpec::new("other CA")).unwrap();
    let other = other.issue(&below("other")).unwrap();
    world.site.client = Some(Arc::new(policy_with_crl(&world, &revoked)));
    let cases: [(Option<&IssuedCertificate>, Option<VerifyReason>, &str); 7] = [
        (Some(&good), None, ""),
        (Some(&other), Some(VerifyReason::UnknownIssuer), "UNKNOWN_CA"),
        (Some(&expired), Some(VerifyReason::Expired), "CERTIFICATE_EXPIRED"),
        (Some(&revoked), Some(VerifyReason::Revoked), "CERTIFICATE_REVOKED"),
        (Some(&deep), Some(VerifyReason::DepthExceeded), "UNKNOWN_CA"),
        (Some(&server), Some(VerifyReason::InvalidPurpose), "UNSUPPORTED_CERTIFICATE"),
        (None, None, ""),
    ];
    let [v11, v12, v13] = [SslVersion::TLS1_1, SslVersion::TLS1_2, SslVersion::TLS1_3];
    for (served, versions) in [(ALL, &[v11, v12, v13][..]), (&ALL[1..], &[v12, v13])] {
        world.site.versions = Some(served.to_vec());
        world.site.cache = CacheSlot::new();
        for version in versions {
            for (identity, reason, alert) in cases {
                let spec = ClientSpec { versions: [*version; 2], identity, ..ClientSpec::TLS11 };
                run(|| async {
                    let (near, mut far) = sockets(5);
                    let client = connect_boring(spec.start(&world), &mut far);
                    let ((server, rejected, _near), client) =
                        futures_util::join!(world.handshake(near), client);
                    let case = format!("{served:?} {version} {reason:?}");
                    let rejected = rejected.map(|rejected| rejected.error.reason());
                    assert_eq!(rejected, reason, "{case}");
                    let accepted = identity.is_some() && reason.is_none();
                    assert_eq!(server.is_ok(), accepted, "{case}");
                    // A TLS 1.3 client completes its handshake before the server verifies it.
                    let error = match client {
                        Ok(_) if accepted => return,
                        Ok(mut client) => loop {
                            match client.ssl_read(&mut [0; 1]) {
                                Err(error) if error.code() == ErrorCode::WANT_READ => {
                                    fill(&mut client, &mut far).await.unwrap();
                                }
                                other => break other.unwrap_err().to_string(),
                            }
                        },
                        Err(error) => error,
                    };
                    let alert = match (identity, *version == v13) {
                        (Some(_), _) => alert,
                        (None, true) => "CERTIFICATE_REQUIRED",
                        (None, false) if served.contains(&TlsVersion::V11) => "HANDSHAKE_FAILURE",
                        // rustls sends a general alert.
                        (None, false) => "ALERT",
                    };
                    assert!(error.contains(alert), "{case}: {error}");
                });
            }
        }
    }
}

#[test]
fn a_site_without_tls_1_1_does_not_serve_it() {
    for versions in [&[TlsVersion::V12][..], &[TlsVersion::V13], &[TlsVersion::V12, TlsVersion::V13]] {
        let world = World::new(versions);
        assert!(matches!(world.factory.config(&world.site, Subsystem::Http), Ok(SiteConfig::Rustls(_))));
        let error = negotiate(&world, &ClientSpec::TLS11).err().unwrap();
        assert!(error.contains("SignatureAlgorithmsExtensionRequired"), "{error}");
        // The site's versions override the default ones.
        let mut world = World::new(ALL);
        world.site.versions = Some(versions.to_vec());
        assert!(matches!(world.factory.config(&world.site, Subsystem::Http), Ok(SiteConfig::Rustls(_))));
    }
}

#[test]
fn only_the_versions_of_the_site_are_served() {
    use SslVersion as V;
    let [v11, v12, v13] = [V::TLS1_1, V::TLS1_2, V::TLS1_3];
    let cases: [(&[TlsVersion], [SslVersion; 2], Option<TlsVersion>); 11] = [
        (TLS11_ONLY, [v11, v13], Some(TlsVersion::V11)),
        (TLS11_ONLY, [V::TLS1, v11], Some(TlsVersion::V11)),
        (TLS11_ONLY, [v12, v13], None),
        (TLS11_ONLY, [V::TLS1, V::TLS1], None),
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
        let result = negotiate(&world, &ClientSpec { versions: offered, ..ClientSpec::TLS11 });
        let version = result.as_ref().map(|(handshake, _)| handshake.version());
        assert_eq!(version.ok().flatten(), expected, "{served:?} {offered:?} {:?}", result.as_ref().err());
        if let Err(error) = result {
            // From the server; or from a client that did not announce its lack of TLS 1.1.
            assert!(error.contains("_PROTOCOL"), "{served:?} {offered:?} {error}");
        }
    }
}

fn with_pairs(world: &World, kinds: &[KeyAlgorithm]) -> SiteSsl {
    let pairs = kinds.iter().map(|kind| {
        let issued = world.authority.issue(&LeafSpec::server("a.example").algorithm(*kind)).unwrap();
        KeyPair { chain: issued.chain.clone(), key: Arc::new(issued.key().unwrap()) }
    });
    SiteSsl { pairs: pairs.collect(), client: None, cache: CacheSlot::new(), ..world.site.clone() }
}

#[test]
fn each_client_gets_the_first_certificate_it_supports() {
    let mut world = World::new(ALL);
    world.site = with_pairs(&world, &[KeyAlgorithm::Rsa2048, KeyAlgorithm::P256]);
    let [rsa_leaf, ecdsa_leaf] = [0, 1].map(|index| world.site.pairs[index].chain[0].der().to_vec());
    for version in [SslVersion::TLS1_1, SslVersion::TLS1_2] {
        for (ciphers, leaf) in [("ALL", &ecdsa_leaf), ("aRSA", &rsa_leaf), ("aECDSA", &ecdsa_leaf)] {
            let spec = ClientSpec { versions: [version; 2], ciphers, identity: None };
            let (_handshake, client) = negotiate(&world, &spec).unwrap();
            let leaf_der = client.ssl().peer_certificate().unwrap().to_der().unwrap();
            assert!(&leaf_der == leaf, "{version} {ciphers}");
        }
    }
    // No RSA key exchange, which lacks forward secrecy.
    let error = negotiate(&world, &ClientSpec { ciphers: "kRSA", ..ClientSpec::TLS11 }).err().unwrap();
    assert!(error.contains("NO_SHARED_CIPHER"), "{error}");
}

#[test]
fn alpn_selects_no_http2_below_tls_1_2() {
    let mut world = World::new(ALL);
    world.site.client = None;
    for (version, expected) in [(SslVersion::TLS1_1, "http/1.1"), (SslVersion::TLS1_2, "h2")] {
        let spec = ClientSpec { versions: [version; 2], ..ClientSpec::TLS11 };
        let mut client = spec.start(&world);
        client.ssl_mut().set_alpn_protos(b"\x02h2\x08http/1.1").unwrap();
        run(|| async {
            let (near, mut far) = sockets(3);
            let (server, client) = futures_util::join!(world.accept(near), connect_boring(client, &mut far));
            server.unwrap();
            let client = client.unwrap();
            assert_eq!(client.ssl().selected_alpn_protocol(), Some(expected.as_bytes()));
        });
    }
}

#[test]
fn no_session_is_resumed() {
    for versions in EVERY_ENGINE {
        let mut world = World::new(versions);
        world.site.client = None;
        let mut roots = RootCertStore::empty();
        roots.add(world.authority.certificate().der().clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(site_config::crypto_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        run(|| async {
            for _ in 0..3 {
                let (near, mut far) = sockets(3);
                let name = "a.example".try_into().unwrap();
                let mut tls = TlsHandshake::from(ClientConnection::new(Arc::clone(&config), name).unwrap());
                let client = async {
                    handshake::drive(&mut tls, &mut far).await.unwrap();
                    poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
                };
                let (server, ()) = futures_util::join!(world.accept(near), client);
                server.unwrap();
                assert!(!tls.is_resumed(), "{versions:?}");
            }
        });
    }
}

/// The server name and the error of a handshake that ends after these bytes.
async fn read_all(world: &World, bytes: &[u8]) -> Result<(Option<HostName>, String), String> {
    let (mut near, mut far) = sockets(3);
    far.write_buf().extend_from_slice(bytes);
    poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
    drop(far);
    let hello = client_hello::read(&mut near).await.map_err(|error| error.to_string())?;
    let name = hello.server_name(None);
    let config = world.factory.config(&world.site, Subsystem::Http).unwrap();
    let mut tls = hello.start_handshake(config, near.write_buf()).map_err(|error| error.to_string())?;
    let ended = handshake::drive(&mut tls, &mut near).await.unwrap_err();
    Ok((name, ended.to_string()))
}

#[test]
fn a_truncated_or_changed_client_hello_fails() {
    let world = World::new(ALL);
    let hellos = [
        ClientSpec::TLS11,
        ClientSpec { versions: [SslVersion::TLS1_1, SslVersion::TLS1_3], ..ClientSpec::TLS11 },
    ];
    // One runtime for all: the kernel frees the memory of a ring with a delay.
    run(|| async {
        for whole in hellos.map(|spec| spec.hello(&world)) {
            let ended = "the peer ended the connection during the handshake".to_owned();
            assert_eq!(read_all(&world, &whole).await, Ok((HostName::from_sni("a.example"), ended)));
            for at in 0..whole.len() {
                assert!(read_all(&world, &whole[..at]).await.is_err(), "truncated to {at}");
            }
            // In two records.
            for at in 6..whole.len() {
                let record = |body: &[u8]| {
                    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
                    [&whole[..3], &length[..], body].concat()
                };
                let split = [record(&whole[5..at]), record(&whole[at..])].concat();
                let name = read_all(&world, &split).await.map(|(name, _)| name);
                assert_eq!(name, Ok(HostName::from_sni("a.example")), "records split at {at}");
            }
            let mut seed = 4711;
            for _ in 0..2_000 {
                let mut changed = whole.clone();
                for _ in 0..=next(&mut seed) % 3 {
                    let at = usize::try_from(next(&mut seed)).unwrap() % changed.len();
                    changed[at] = next(&mut seed).to_le_bytes()[0];
                }
                // Neither panics nor waits for more bytes.
                let _result = read_all(&world, &changed).await;
            }
        }
    });
}
