//! Comparison with OpenSSL: the same chains, depths and times through `openssl verify` and
//! [`pki::verify_client`].
//!
//! APISIX verifies with OpenSSL, so a migration must accept the same clients. Needs the openssl
//! command line and fails without it. Two deliberate differences do not occur here: self-issued
//! intermediates do not count for depth, and notAfter is the last valid second (RFC 5280 4.1.2.5),
//! not the first invalid one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pki::ca::{Authority, AuthoritySpec, IssueError, KeyAlgorithm, LeafSpec, Usages};
use pki::{Certificate, ClientAuth, ClientAuthInput, UnixTime, verify_client};

/// 2025-01-01, within the default validity of issued certificates.
const NOW: u64 = 1_735_689_600;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

struct Comparison<'a> {
    anchors: &'a [&'a Certificate],
    chain: &'a [Certificate],
    depth: u32,
    now: u64,
}

impl Comparison<'_> {
    fn verify(&self) -> Result<(), String> {
        let anchors = self.anchors.iter().map(|anchor| (*anchor).clone()).collect();
        let input = ClientAuthInput { anchors, depth: self.depth, ..ClientAuthInput::default() };
        let policy = ClientAuth::new(input).map_err(|error| error.to_string())?;
        let ders: Vec<_> = self.chain.iter().map(|certificate| certificate.der().clone()).collect();
        let (leaf, sent) = ders.split_first().ok_or("an empty chain")?;
        verify_client(&policy, leaf, sent, at(self.now)).map(|_| ()).map_err(|error| error.to_string())
    }

    fn openssl(&self, folder: &Path) -> Result<(), String> {
        let file = |name: &str, certificates: &mut dyn Iterator<Item = &Certificate>| -> PathBuf {
            let path = folder.join(name);
            let written = fs::write(&path, certificates.map(Certificate::to_pem).collect::<String>());
            assert!(written.is_ok(), "{written:?}");
            path
        };
        let anchors = file("anchors", &mut self.anchors.iter().copied());
        let leaf = file("leaf", &mut self.chain.iter().take(1));
        let sent = file("sent", &mut self.chain.iter().skip(1));
        let mut command = Command::new("openssl");
        command.args(["verify", "-purpose", "sslclient", "-partial_chain", "-no-CApath", "-no-CAstore"]);
        command.args(["-verify_depth", &self.depth.to_string(), "-attime", &self.now.to_string()]);
        command.arg("-CAfile").arg(anchors);
        if self.chain.len() > 1 {
            command.arg("-untrusted").arg(sent);
        }
        let output = command.arg(leaf).output();
        assert!(output.is_ok(), "the openssl command line is needed for this test: {output:?}");
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Verifies with both and returns whether they accept.
    fn agree(&self, folder: &Path, what: &str) -> bool {
        let (ours, theirs) = (self.verify(), self.openssl(folder));
        assert_eq!(ours.is_ok(), theirs.is_ok(), "{what}: ours {ours:?}, OpenSSL {theirs:?}");
        ours.is_ok()
    }
}

/// Root -> CA 1 -> ... -> CA n.
fn line(length: usize, algorithm: KeyAlgorithm) -> Result<Vec<Authority>, IssueError> {
    let mut above = Vec::new();
    let mut last = Authority::root(&AuthoritySpec::new("Root").algorithm(algorithm))?;
    for number in 1..=length {
        let next = last.intermediate(&AuthoritySpec::new(format!("CA {number}")).algorithm(algorithm))?;
        above.push(std::mem::replace(&mut last, next));
    }
    above.push(last);
    Ok(above)
}

#[test]
fn depth_matches_openssl() {
    let folder = tempfile::tempdir().unwrap();
    let authorities = line(3, KeyAlgorithm::P256).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for (length, issuer) in authorities.iter().enumerate() {
        let client = issuer.issue(&LeafSpec::client("a")).unwrap();
        for anchor in &authorities[..=length] {
            for depth in 0..=3 {
                let anchors = [anchor.certificate()];
                let comparison = Comparison { anchors: &anchors, chain: &client.chain, depth, now: NOW };
                match comparison
                    .agree(folder.path(), &format!("{length} intermediates, depth {depth}, {anchor:?}"))
                {
                    true => accepted += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(accepted > 10 && refused > 5, "{accepted} accepted, {refused} refused");
}

#[test]
fn usages_versions_and_pins_match_openssl() {
    let folder = tempfile::tempdir().unwrap();
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let old_root = Authority::root_v1(&AuthoritySpec::new("Old root")).unwrap();
    for authority in [&root, &old_root] {
        for usages in [Usages::CLIENT, Usages::SERVER, Usages::BOTH, Usages::ANY] {
            for v1 in [false, true] {
                let spec = LeafSpec::client("a").usages(usages);
                let client = authority.issue(&if v1 { spec.v1() } else { spec }).unwrap();
                for anchor in [authority.certificate(), &client.certificate] {
                    let comparison =
                        Comparison { anchors: &[anchor], chain: &client.chain, depth: 0, now: NOW };
                    let accepted =
                        comparison.agree(folder.path(), &format!("{usages:?}, v1 {v1}, {anchor:?}"));
                    assert_eq!(accepted, v1 || usages != Usages::SERVER);
                }
            }
        }
        // A CA's own certificate as the leaf.
        let chain = [authority.certificate().clone()];
        let comparison =
            Comparison { anchors: &[authority.certificate()], chain: &chain, depth: 0, now: NOW };
        comparison.agree(folder.path(), "a CA as leaf");
    }
}

#[test]
fn dates_and_constraints_match_openssl() {
    let folder = tempfile::tempdir().unwrap();
    let window = |spec: AuthoritySpec, by: u64| spec.between(at(NOW - 1000 + by), at(NOW + 1000 - by));
    let root = Authority::root(&window(AuthoritySpec::new("Root"), 0)).unwrap();
    let narrow = window(AuthoritySpec::new("CA").permit_dns("example.com").path_length(0), 100);
    let middle = root.intermediate(&narrow).unwrap();
    let below = middle.intermediate(&window(AuthoritySpec::new("Below"), 100)).unwrap();
    let valid = |spec: LeafSpec| spec.between(at(NOW - 800), at(NOW + 800));
    for now in [-1001i64, -1000, -901, -900, -801, -800, 0, 799, 801, 899, 901, 999, 1001] {
        let now = NOW.saturating_add_signed(now);
        let client = middle.issue(&valid(LeafSpec::client("a").dns("a.example.com"))).unwrap();
        let comparison = Comparison { anchors: &[root.certificate()], chain: &client.chain, depth: 1, now };
        comparison.agree(folder.path(), &format!("at {now}"));
    }
    for (issuer, name, good) in [
        (&middle, "example.com", true),
        (&middle, "a.b.example.com", true),
        (&middle, "example.org", false),
        (&middle, "notexample.com", false),
        (&below, "example.com", false),
    ] {
        let client = issuer.issue(&valid(LeafSpec::client("a").dns(name))).unwrap();
        let comparison =
            Comparison { anchors: &[root.certificate()], chain: &client.chain, depth: 9, now: NOW };
        assert_eq!(comparison.agree(folder.path(), name), good, "{name}");
    }
}

#[test]
fn every_algorithm_matches_openssl() {
    let folder = tempfile::tempdir().unwrap();
    for algorithm in [
        KeyAlgorithm::P256,
        KeyAlgorithm::P384,
        KeyAlgorithm::P521,
        KeyAlgorithm::Ed25519,
        KeyAlgorithm::Rsa2048,
    ] {
        let authorities = line(1, algorithm).unwrap();
        let client = authorities[1].issue(&LeafSpec::client("a").algorithm(algorithm)).unwrap();
        let comparison =
            Comparison { anchors: &[authorities[0].certificate()], chain: &client.chain, depth: 1, now: NOW };
        assert!(comparison.agree(folder.path(), &format!("{algorithm:?}")));
    }
}

/// Only ours: OpenSSL's limit is configurable, and lower. `pki::ca` issues no such keys, so OpenSSL
/// does.
#[test]
fn rsa_below_2048_bits_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let read = |name: &str| {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        pki::certificates_from_pem(&text).unwrap().remove(0)
    };
    for (bits, good) in [("1024", false), ("2040", false), ("2048", true)] {
        for (weak_ca, weak_leaf) in [(true, false), (false, true)] {
            let kind = |weak| if weak { format!("rsa:{bits}") } else { "rsa:2048".to_owned() };
            openssl(&[
                "req",
                "-x509",
                "-newkey",
                &kind(weak_ca),
                "-noenc",
                "-keyout",
                "ca.key",
                "-out",
                "ca",
                "-subj",
                "/CN=ca",
                "-days",
                "9",
            ]);
            openssl(&[
                "req",
                "-newkey",
                &kind(weak_leaf),
                "-noenc",
                "-keyout",
                "leaf.key",
                "-out",
                "csr",
                "-subj",
                "/CN=leaf",
            ]);
            openssl(&[
                "x509",
                "-req",
                "-in",
                "csr",
                "-CA",
                "ca",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-out",
                "leaf",
                "-days",
                "9",
            ]);
            let (ca, chain) = (read("ca"), [read("leaf")]);
            let now = UnixTime::now().as_secs();
            let comparison = Comparison { anchors: &[&ca], chain: &chain, depth: 0, now };
            let verdict = comparison.verify();
            assert_eq!(verdict.is_ok(), good, "{bits} bits, CA {weak_ca}, leaf {weak_leaf}: {verdict:?}");
            if let Err(why) = verdict {
                assert!(why.contains("RSA of 2048 to 8192 bits"), "{why}");
            }
        }
    }
}
