//! Replacing and breaking the files, by the system calls of editors, `cp`, `mv`, cert-manager and
//! Kubernetes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A folder with `tls.crt`, `tls.key` and `ca.crt`.
struct World {
    folder: TempDir,
    ca: Authority,
    next_ca: Authority,
}

impl World {
    fn new() -> Self {
        let authority = |name| Authority::root(&AuthoritySpec::new(name)).unwrap();
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            ca: authority("Present CA"),
            next_ca: authority("Next CA"),
        };
        world.write_pair(&world.issue("first.test"));
        world.write("ca.crt", &world.ca.certificate_pem());
        world
    }

    fn issue(&self, name: &str) -> IssuedCertificate {
        self.ca.issue(&LeafSpec::server(name)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn write_pair(&self, pair: &IssuedCertificate) {
        self.write("tls.crt", &pair.chain_pem);
        self.write("tls.key", &pair.key_pem);
    }

    fn files(&self) -> CredentialFiles {
        let file = |setting, name| ConfiguredFile::new(setting, &self.path(name));
        CredentialFiles {
            pair: Some((file("x.cert", "tls.crt"), file("x.key", "tls.key"))),
            ca: Some(file("x.ca", "ca.crt")),
            required_dns_name: None,
        }
    }

    fn reloader(&self) -> Reloader<String> {
        let reloader = self.unread();
        reloader.load().unwrap();
        reloader
    }

    /// `tls` is the subject of the certificate.
    fn unread(&self) -> Reloader<String> {
        Reloader::new("test", self.files(), |credentials| {
            Ok(credentials.leaf().map(|leaf| leaf.subject().to_owned()).unwrap_or_default())
        })
    }
}

fn subject(reloader: &Reloader<String>) -> String {
    reloader.refresh_blocking().unwrap().tls.clone()
}

/// The error of the current files, which must not change the credentials in use.
fn refused(reloader: &Reloader<String>) -> String {
    let current = reloader.in_use().unwrap();
    let problem = reloader.load().err().expect("files that cannot be used").to_string();
    assert!(Arc::ptr_eq(&current, &reloader.refresh_blocking().unwrap()), "what was held stays: {problem}");
    assert_eq!(reloader.problem().unwrap().to_string(), problem);
    problem
}

#[test]
fn a_pair_written_in_place_is_loaded() {
    let world = World::new();
    let reloader = world.reloader();
    world.write_pair(&world.issue("second.test"));
    assert_eq!(subject(&reloader), "CN=second.test");
    assert!(reloader.problem().is_none());
}

#[test]
fn a_pair_renamed_into_place_is_loaded() {
    let world = World::new();
    let reloader = world.reloader();
    let second = world.issue("second.test");
    world.write(".crt.tmp", &second.chain_pem);
    world.write(".key.tmp", &second.key_pem);
    fs::rename(world.path(".crt.tmp"), world.path("tls.crt")).unwrap();
    let problem = refused(&reloader);
    assert!(problem.contains("x.key") && problem.contains("It must be the key of"), "{problem}");
    fs::rename(world.path(".key.tmp"), world.path("tls.key")).unwrap();
    assert_eq!(subject(&reloader), "CN=second.test");
    assert!(reloader.problem().is_none());
}

#[test]
fn the_key_may_be_written_before_the_certificate() {
    let world = World::new();
    let reloader = world.reloader();
    let second = world.issue("second.test");
    world.write("tls.key", &second.key_pem);
    refused(&reloader);
    world.write("tls.crt", &second.chain_pem);
    assert_eq!(subject(&reloader), "CN=second.test");
}

/// As Kubernetes mounts a secret: `tls.crt -> ..data/tls.crt`, and `..data` is renamed over.
#[test]
fn a_swapped_symlink_to_a_folder_is_followed() {
    let world = World::new();
    let mount = |version: &str, pair: &IssuedCertificate| {
        fs::create_dir(world.path(version)).unwrap();
        fs::write(world.path(version).join("tls.crt"), &pair.chain_pem).unwrap();
        fs::write(world.path(version).join("tls.key"), &*pair.key_pem).unwrap();
        symlink(version, world.path("..data_tmp")).unwrap();
        fs::rename(world.path("..data_tmp"), world.path("..data")).unwrap();
    };
    mount("..v1", &world.issue("first.test"));
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(world.path(name)).unwrap();
        symlink(Path::new("..data").join(name), world.path(name)).unwrap();
    }
    let reloader = world.reloader();
    mount("..v2", &world.issue("second.test"));
    fs::remove_dir_all(world.path("..v1")).unwrap();
    assert_eq!(subject(&reloader), "CN=second.test");
    // A dangling link leaves the credentials in use.
    fs::remove_dir_all(world.path("..v2")).unwrap();
    assert!(refused(&reloader).contains("No such file"));
}

#[test]
fn every_broken_file_keeps_the_credentials_in_use() {
    let world = World::new();
    let reloader = world.reloader();
    let good = |name: &str| fs::read_to_string(world.path(name)).unwrap();
    for (name, setting) in [("tls.crt", "x.cert"), ("tls.key", "x.key"), ("ca.crt", "x.ca")] {
        let text = good(name);
        let path = world.path(name);
        let half = &text[..text.len() / 2];
        for broken in ["", "hello", half, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            world.write(name, broken);
            let problem = refused(&reloader);
            assert!(problem.contains(setting) && problem.contains(name), "{problem}");
        }
        fs::remove_file(&path).unwrap();
        assert!(refused(&reloader).contains("No such file"));
        fs::create_dir(&path).unwrap();
        assert!(refused(&reloader).contains("a directory"));
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refused(&reloader).contains("a FIFO"));
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(refused(&reloader).contains("MiB"));
        symlink(&path, world.path("loop")).unwrap();
        fs::rename(world.path("loop"), &path).unwrap();
        refused(&reloader);
        fs::remove_file(&path).unwrap();
        world.write(name, &text);
        assert_eq!(subject(&reloader), "CN=first.test");
        assert!(reloader.problem().is_none(), "mended");
    }
}

#[test]
fn an_unreadable_file_keeps_the_credentials_in_use() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let reloader = world.reloader();
    fs::set_permissions(world.path("tls.key"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(world.path("tls.key")).is_ok() {
        eprintln!("skipped: root may read every file");
        return;
    }
    assert!(refused(&reloader).contains("Permission denied"));
    fs::set_permissions(world.path("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(subject(&reloader), "CN=first.test");
}

fn at(days: i64) -> UnixTime {
    let now = UnixTime::now().as_secs();
    UnixTime::since_unix_epoch(Duration::from_secs(now.saturating_add_signed(days * 86_400)))
}

#[test]
fn an_invalid_pair_does_not_replace_a_valid_one() {
    let world = World::new();
    let reloader = world.reloader();
    for (from, until) in [(-20, -1), (1, 20)] {
        let spec = LeafSpec::server("second.test").between(at(from), at(until));
        world.write_pair(&world.ca.issue(&spec).unwrap());
        let problem = refused(&reloader);
        assert!(problem.contains("x.cert") && problem.contains("is not valid now"), "{problem}");
    }
}

#[test]
fn an_expired_pair_is_replaced_by_any_other() {
    let world = World::new();
    let expired = |name| LeafSpec::server(name).between(at(-20), at(-1));
    world.write_pair(&world.ca.issue(&expired("first.test")).unwrap());
    let reloader = world.reloader();
    world.write_pair(&world.ca.issue(&expired("second.test")).unwrap());
    assert_eq!(subject(&reloader), "CN=second.test");
}

#[test]
fn an_expired_ca_bundle_does_not_replace_a_valid_one() {
    let world = World::new();
    let reloader = world.reloader();
    let ended = AuthoritySpec::new("Ended CA").between(at(-20), at(-1));
    let ended = Authority::root(&ended).unwrap().certificate_pem();
    world.write("ca.crt", &ended);
    assert!(refused(&reloader).contains("x.ca"));
    // Together with a valid one it is accepted.
    world.write("ca.crt", &format!("{ended}{}", world.next_ca.certificate_pem()));
    assert_eq!(reloader.load().unwrap().credentials.ca.len(), 2);
}

#[test]
fn a_chain_without_the_required_name_is_not_loaded() {
    let world = World::new();
    let files = CredentialFiles { required_dns_name: Some("First.test".to_owned()), ..world.files() };
    let reloader = Reloader::new("test", files, |credentials| {
        Ok(credentials.leaf().map(|leaf| leaf.subject().to_owned()).unwrap_or_default())
    });
    reloader.load().unwrap();
    world.write_pair(&world.issue("elsewhere.test"));
    assert!(refused(&reloader).contains("does not carry the name"));
    world.write_pair(&world.ca.issue(&LeafSpec::server("renewed").dns("first.test")).unwrap());
    assert_eq!(subject(&reloader), "CN=renewed");
}

#[test]
fn unchanged_contents_are_no_change() {
    let world = World::new();
    let reloader = world.reloader();
    let (current, changes) = (reloader.in_use().unwrap(), reloader.subscribe());
    let again = fs::read_to_string(world.path("tls.crt")).unwrap();
    world.write("tls.crt", &again);
    reloader.force_next_read();
    assert!(Arc::ptr_eq(&current, &reloader.load().unwrap()));
    assert!(!changes.has_changed().unwrap());
    let with_issuer = again + &world.ca.certificate_pem();
    world.write("tls.crt", &with_issuer);
    assert!(!Arc::ptr_eq(&current, &reloader.load().unwrap()), "another intermediate is a change");
    assert!(changes.has_changed().unwrap());
}

/// Two writes of the same size within a tick of the clock differ only in their content.
#[test]
fn a_file_replaced_within_one_tick_is_detected() {
    let world = World::new();
    let reloader = world.reloader();
    let times = fs::metadata(world.path("ca.crt")).unwrap().modified().unwrap();
    for round in 0..20 {
        let ca = if round % 2 == 0 { &world.next_ca } else { &world.ca };
        world.write("ca.crt", &ca.certificate_pem());
        let file = fs::File::options().write(true).open(world.path("ca.crt")).unwrap();
        file.set_modified(times).unwrap();
        let current = reloader.load().unwrap();
        assert_eq!(current.credentials.ca[0].subject(), ca.certificate().subject(), "round {round}");
    }
}

#[test]
fn files_that_never_matched_are_an_error() {
    let world = World::new();
    let reloader = world.unread();
    world.write("tls.crt", "");
    assert!(
        reloader.refresh_blocking().is_err() && reloader.in_use().is_none(),
        "there is nothing to go on with"
    );
    world.write_pair(&world.issue("second.test"));
    assert_eq!(subject(&reloader), "CN=second.test");
}

#[test]
fn credentials_rejected_by_tls_are_not_used() {
    let world = World::new();
    let reloader =
        Reloader::new("test", world.files(), |credentials| match credentials.leaf() {
            Some(leaf) if leaf.subject() == "CN=first.test" => Ok(leaf.subject().to_owned()),
            _ => Err(ConfiguredFileRef { setting: "x.key", path: Path::new("tls.key") }
                .error("an unknown algorithm")),
        });
    reloader.load().unwrap();
    world.write_pair(&world.issue("second.test"));
    assert!(refused(&reloader).contains("an unknown algorithm"));
}

#[test]
fn a_hanging_file_system_does_not_stop_connections() {
    let world = World::new();
    let reloader = world.reloader();
    let current = reloader.in_use().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // Reading the files takes this lock.
    let hanging = lock(&reloader.0.last_read);
    let (one, two) = runtime.block_on(async { tokio::join!(reloader.refresh(), reloader.refresh()) });
    assert!(Arc::ptr_eq(&current, &one.unwrap()) && Arc::ptr_eq(&current, &two.unwrap()));
    assert!(reloader.problem().unwrap().to_string().contains("did not respond"));
    drop(hanging);
    world.write_pair(&world.issue("second.test"));
    assert_eq!(runtime.block_on(reloader.refresh()).unwrap().tls, "CN=second.test");
    assert!(reloader.problem().is_none());
}

/// The content of a file in the property below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Pair(usize),
    Garbage,
    Nothing,
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        6 => (0..3_usize).prop_map(Content::Pair),
        1 => Just(Content::Garbage),
        1 => Just(Content::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any order of writes, the newest pair that matched at a check is in use.
    #[test]
    fn the_newest_matching_pair_is_in_use(
        writes in prop::collection::vec((any::<bool>(), content(), any::<bool>()), 1..24)
    ) {
        let world = World::new();
        let pairs: Vec<_> = (0..3).map(|nth| world.issue(&format!("{nth}.test"))).collect();
        world.write_pair(&pairs[0]);
        let reloader = world.reloader();
        let (mut cert, mut key, mut expected) = (Content::Pair(0), Content::Pair(0), 0);
        for (certificate, content, rename) in writes {
            let name = if certificate { "tls.crt" } else { "tls.key" };
            let text = match content {
                Content::Pair(nth) if certificate => Some(pairs[nth].chain_pem.clone()),
                Content::Pair(nth) => Some(pairs[nth].key_pem.to_string()),
                Content::Garbage => Some("-----BEGIN".to_owned()),
                Content::Nothing => None,
            };
            match text {
                Some(text) if rename => {
                    world.write("tmp", &text);
                    fs::rename(world.path("tmp"), world.path(name)).unwrap();
                }
                Some(text) => world.write(name, &text),
                None => drop(fs::remove_file(world.path(name))),
            }
            *(if certificate { &mut cert } else { &mut key }) = content;
            if let (Content::Pair(one), Content::Pair(other)) = (cert, key) && one == other {
                expected = one;
            }
            prop_assert_eq!(subject(&reloader), format!("CN={expected}.test"));
        }
    }
}

#[test]
fn a_ca_is_replaced_despite_a_mismatched_pair() {
    let world = World::new();
    let reloader = world.reloader();
    world.write("tls.crt", &world.issue("second.test").chain_pem);
    world.write("ca.crt", &world.next_ca.certificate_pem());
    let problem = reloader.load().err().expect("a pair that does not fit").to_string();
    assert!(problem.contains("x.key"), "{problem}");
    let current = reloader.in_use().unwrap();
    assert_eq!((current.credentials.ca.len(), current.credentials.ca[0].subject()), (1, "CN=Next CA"));
    assert_eq!(current.tls, "CN=first.test");
    // Unchanged files are not built again.
    reloader.force_next_read();
    refused(&reloader);
}

#[test]
fn a_pair_is_replaced_despite_a_broken_ca() {
    let world = World::new();
    let reloader = world.reloader();
    world.write_pair(&world.issue("second.test"));
    world.write("ca.crt", "hello");
    let problem = reloader.load().err().expect("a broken CA bundle").to_string();
    assert!(problem.contains("x.ca"), "{problem}");
    let current = reloader.in_use().unwrap();
    assert_eq!(
        (current.tls.as_str(), current.credentials.ca[0].subject()),
        ("CN=second.test", "CN=Present CA")
    );
}

#[test]
fn a_rejected_pair_does_not_block_the_ca() {
    let world = World::new();
    let reloader = Reloader::new("test", world.files(), |credentials| {
        let leaf = credentials.leaf().map(|leaf| leaf.subject().to_owned()).unwrap_or_default();
        if leaf == "CN=weak.test" {
            Err(ConfiguredFileRef { setting: "x.cert", path: Path::new("") }.error("weak"))
        } else {
            Ok(leaf)
        }
    });
    reloader.load().unwrap();
    world.write_pair(&world.issue("weak.test"));
    world.write("ca.crt", &world.next_ca.certificate_pem());
    assert!(reloader.load().err().unwrap().to_string().contains("weak"));
    let current = reloader.in_use().unwrap();
    assert_eq!((current.tls.as_str(), current.credentials.ca[0].subject()), ("CN=first.test", "CN=Next CA"));
}
