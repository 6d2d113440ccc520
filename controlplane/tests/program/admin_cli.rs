//! `controlplane admin ...` against a running control plane: every command, every form of output,
//! and every way in which a connection fails.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use e2e::ports::Reservation;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};

use crate::site::{Running, Site, program};

/// A control plane whose configuration names its port.
pub(crate) struct World {
    pub site: Site,
    running: Running,
    _port: Reservation,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Value)) -> Self {
        let (mut site, port) = (Site::new(), Reservation::any());
        let admin = &mut site.settings["deployment"]["admin"];
        admin["admin_listen"]["port"] = port.address().port().into();
        change(admin);
        let running = site.start();
        Self { site, running, _port: port }
    }

    fn address(&self) -> SocketAddr {
        self.running.ready["admin"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = program();
        command.arg("admin").args(words.split(' ')).arg("-c").arg(self.site.config());
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &str) -> Ran {
        self.run_with(words, "")
    }

    /// With this standard input.
    #[track_caller]
    pub(crate) fn run_with(&self, words: &str, stdin: &str) -> Ran {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }

    /// A success.
    #[track_caller]
    pub(crate) fn ok(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
        ran.out
    }

    #[track_caller]
    pub(crate) fn ok_with(&self, words: &str, stdin: &str) -> String {
        let ran = self.run_with(words, stdin);
        assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
        ran.out
    }

    /// A failure with this in its message.
    #[track_caller]
    pub(crate) fn fails(&self, words: &str, expected: &str) {
        let ran = self.run(words);
        assert!(ran.code == Some(1) && ran.err.contains(expected), "{words}: {ran:?}");
        assert_eq!(ran.out, "", "{words}");
    }

    #[track_caller]
    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{words} -o json"))).unwrap()
    }

    pub(crate) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.site.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// An ssl with raw line breaks in its strings, as a shell pastes them.
pub(crate) fn site(name: &str, ca: &Authority) -> String {
    let leaf = ca.issue(&LeafSpec::server(name)).unwrap();
    format!(
        r#"{{"snis": ["{name}"], "cert": "{}", "key": "{}", "client": {{"ca": "{}"}}}}"#,
        leaf.chain_pem,
        *leaf.key_pem,
        ca.certificate_pem()
    )
}

pub(crate) fn authority() -> Authority {
    Authority::root(&AuthoritySpec::new("site ca")).unwrap()
}

#[test]
fn resources_are_written_read_and_deleted() {
    let (world, ca) = (World::start(), authority());
    let out = world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    assert!(out.starts_with("ssls/1 created (revision "), "{out}");
    let out = world.ok_with("put ssls 1 -f -", &site("a.test", &ca));
    assert!(out.starts_with("ssls/1 replaced"), "{out}");
    let route = world.file("route.yaml", "uri: /*\nhost: a.test\nupstream:\n  nodes: {\"127.0.0.1:1\": 1}\n");
    assert!(world.ok(&format!("put route r -f {route}")).starts_with("routes/r created"));
    assert!(world.ok_with("post upstreams -f -", r#"{"nodes": {"127.0.0.1:2": 1}}"#).contains("upstreams/0"));
    let out = world.ok_with("put services -f -", "id: s\nname: shop\n");
    assert!(out.starts_with("services/s created"), "{out}");

    let table = world.ok("list ssls");
    assert!(table.starts_with("ID  NAMES   STATUS   EXPIRES"), "{table}");
    assert!(table.contains("1   a.test  enabled") && table.contains("required"), "{table}");
    assert_eq!(world.ok("get ssls/1"), table);
    assert!(world.ok("get routes").contains("127.0.0.1:1"), "a kind alone is its list");
    assert_eq!(world.json("get routes r")["value"]["uri"], json!("/*"));
    assert!(world.ok("get routes/r -o yaml").contains("\n  uri: \"/*\"\n"));
    assert_eq!(world.json("list routes --uri ^/x")["total"], json!(0));
    assert_eq!(world.json("list services --name ^shop$")["total"], json!(1));
    let paged = world.run("list services --page 1 --page-size 10");
    assert!(paged.err.contains("page 1 of 1, 1 in all"), "{paged:?}");
    assert!(world.ok("get dataplanes").starts_with("NAME  ADDRESS  REVISION"));

    assert!(world.ok_with("patch routes r -f -", r#"{"status": 0}"#).starts_with("routes/r patched"));
    world.ok(r#"patch routes r/uri --json "/b""#);
    let value = world.json("get routes r")["value"].clone();
    assert_eq!((&value["status"], &value["uri"]), (&json!(0), &json!("/b")));
    assert!(world.ok("delete routes r").starts_with("routes/r deleted"));
    world.fails("get routes/r", "routes/r is not there");
    world.fails("delete routes r", "routes/r is not there");
    assert_eq!(world.running.stop().0, Some(0));
}

#[test]
fn a_weakening_is_a_warning_on_standard_error() {
    let (world, ca) = (World::start(), authority());
    world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    let ran = world.run_with("patch ssls/1 -f -", r#"{"client": null}"#);
    assert!(ran.code == Some(0) && ran.err.contains("warning: client"), "{ran:?}");
}

#[test]
fn invalid_documents_are_errors_with_their_hint() {
    let world = World::start();
    let ran = world.run_with("put routes/1 -f -", r#"{"uri": "/*", "nonsense": 1}"#);
    assert!(ran.code == Some(1) && ran.err.contains("400: ") && ran.err.contains("nonsense"), "{ran:?}");
    world.fails("put routes/1 -f /nowhere.json", "/nowhere.json: ");
    world.fails("put routes/1", "-f FILE");
    world.fails("put routes/1 --json {", "--json: ");
    world.fails("put routes/../ssls --json {}", "expected a kind");
    world.fails("get nonsense/1", "Unsupported resource type: nonsense");
    world.fails("delete routes", "expected KIND ID");
    assert_eq!(world.run("put routes/1 --nonsense").code, Some(2));
}

#[test]
fn plain_http_on_loopback_works() {
    let world = World::with(|admin| admin["https_admin"] = json!(false));
    assert!(world.ok("list routes").starts_with("ID  NAME"));
    let url = format!("--url http://localhost:{}", world.address().port());
    world.ok(&format!("{url} list routes"));
    world.ok(&format!("list routes {url}"));
    let url = format!("--url https://{}", world.address());
    world.fails(
        &format!("list routes {url} --ca {}", world.site.path("pki/admin-ca.crt").display()),
        "write http://",
    );
}

#[test]
fn the_first_listener_that_can_be_used_is() {
    let plain = Reservation::any();
    let port = plain.address().port();
    let world = World::with(|admin| {
        let first = admin["admin_listen"].clone();
        admin["admin_listen"] = json!([first, {"ip": "127.0.0.1", "port": port, "https_admin": false}]);
    });
    let watched = || {
        let mut child = world.command("watch").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut first).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        first
    };
    assert!(watched().starts_with("watching https://127.0.0.1:"));
    fs::remove_file(world.site.path("pki/admin-client.crt")).unwrap();
    assert!(watched().starts_with(&format!("watching http://127.0.0.1:{port} ")));
}

#[test]
fn a_certificate_without_loopback_names_is_verified() {
    let mut site = Site::new();
    let (ca, port) = (Authority::root(&AuthoritySpec::new("admin ca")).unwrap(), Reservation::any());
    let server = ca.issue(&LeafSpec::server("admin.far.test")).unwrap();
    let client = ca.issue(&LeafSpec::client("me")).unwrap();
    for (name, text) in [
        ("own/server.crt", server.chain_pem.as_str()),
        ("own/server.key", &server.key_pem),
        ("own/ca.crt", &ca.certificate_pem()),
        ("own/admin-client.crt", &client.chain_pem),
        ("own/admin-client.key", &client.key_pem),
    ] {
        fs::create_dir_all(site.path("own")).unwrap();
        fs::write(site.path(name), text).unwrap();
    }
    let admin = &mut site.settings["deployment"]["admin"];
    admin["admin_listen"]["port"] = port.address().port().into();
    admin["admin_api_mtls"] = json!({
        "admin_ssl_cert": "own/server.crt", "admin_ssl_cert_key": "own/server.key", "admin_ssl_ca_cert": "own/ca.crt",
    });
    let world = World { running: site.start(), site, _port: port };
    world.ok("list routes");
    // By a URL the host is expected, unless a flag names another.
    let url = format!("--url https://{}", world.address());
    world.fails(&format!("list routes {url}"), "--server-name NAME");
    world.ok(&format!("list routes {url} --server-name admin.far.test"));
}

#[test]
fn each_failed_connection_says_what_to_do() {
    let world = World::start();
    let refused = Reservation::any();
    world.fails(&format!("list routes --url https://{}", refused.address()), "does the control plane run");
    let other = Authority::root(&AuthoritySpec::new("other")).unwrap();
    let leaf = other.issue(&LeafSpec::client("mallory")).unwrap();
    let ca = world.file("other/ca.crt", other.certificate_pem());
    let (cert, key) =
        (world.file("other/me.crt", leaf.chain_pem), world.file("other/me.key", &*leaf.key_pem));
    world.fails(&format!("list routes --ca {ca}"), "the server's certificate is not trusted");
    world.fails(&format!("list routes --cert {cert} --cert-key {key}"), "rejects the client certificate");
    world.fails(&format!("list routes --cert {cert}"), "--cert is given and --cert-key is not");
    world.fails("list routes --ca /nowhere.crt", "--ca /nowhere.crt");
    world.fails(&format!("list routes --url http://{}", world.address()), "write https:// in the URL");
    let wrong = world.file("wrong.key", "wrong\n");
    world.fails(&format!("list routes --key-file {wrong}"), "is not one of this control plane");
    let two = world.file("two.key", "two words\n");
    world.fails(&format!("list routes --key-file {two}"), "one line with the key");
    world.fails("list routes --url nonsense", "https://HOST:PORT");

    // Without a configuration there is no key, and without its folder no certificate.
    let ca = world.site.path("pki/admin-ca.crt").display().to_string();
    let elsewhere = |words: &str| {
        let line =
            format!("admin list routes --url https://{} --ca {ca} -c /nowhere.yaml{words}", world.address());
        ran(program().args(line.split(' ')).output().unwrap())
    };
    let no_certificate = elsewhere("");
    assert!(
        no_certificate.code == Some(1) && no_certificate.err.contains("--cert FILE"),
        "{no_certificate:?}"
    );
    let pair = ["admin-client.crt", "admin-client.key"].map(|name| world.site.path("pki").join(name));
    let pair = format!(" --cert {} --cert-key {}", pair[0].display(), pair[1].display());
    let no_key = elsewhere(&pair);
    assert!(no_key.code == Some(1) && no_key.err.contains("no admin key was sent"), "{no_key:?}");
    let key_file = format!("{pair} --key-file {}", world.site.path("data/admin.key").display());
    assert_eq!(elsewhere(&key_file).code, Some(0));
    let unset = program().args(["admin", "list", "routes", "-c", "/nowhere.yaml"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unset.stderr).contains("COUNTERSIGN_ADMIN_URL"), "{unset:?}");
}

#[test]
fn the_environment_gives_what_flags_do_not() {
    let world = World::start();
    let path = |name: &str| world.site.path(name).display().to_string();
    let key = fs::read_to_string(world.site.path("data/admin.key")).unwrap();
    let run = |key: &str, more: &[&str]| {
        let mut command = program();
        command
            .args(["admin", "list", "routes", "-c", "/nowhere.yaml"])
            .args(more)
            .env("COUNTERSIGN_ADMIN_URL", format!("https://{}", world.address()))
            .env("COUNTERSIGN_ADMIN_CA", path("pki/admin-ca.crt"))
            .env("COUNTERSIGN_ADMIN_CERT", path("pki/admin-client.crt"))
            .env("COUNTERSIGN_ADMIN_CERT_KEY", path("pki/admin-client.key"))
            .env("COUNTERSIGN_ADMIN_KEY", key);
        ran(command.output().unwrap())
    };
    assert_eq!(run(key.trim(), &[]).code, Some(0));
    let wrong = run("wrong", &[]);
    assert!(wrong.code == Some(1) && wrong.err.contains("the key of COUNTERSIGN_ADMIN_KEY"), "{wrong:?}");
    assert!(!wrong.err.contains("wrong apikey: wrong"), "no key is repeated: {wrong:?}");
    assert_eq!(run("wrong", &["--key-file", &path("data/admin.key")]).code, Some(0), "flags win");
}

#[test]
fn denied_addresses_and_viewers_are_told_apart() {
    let world = World::with(|admin| admin["allow_admin"] = json!(["192.0.2.0/24"]));
    world.fails("list routes", "allow_admin");
    let world = World::with(|admin| {
        admin["admin_key"] = json!([{"name": "admin", "key": "the-admins", "role": "admin"},
            {"name": "eye", "key": "the-viewers", "role": "viewer"}]);
    });
    world.ok("list routes");
    let viewer = world.file("viewer.key", "the-viewers\n");
    world.ok(&format!("list routes --key-file {viewer}"));
    world.fails(&format!("put routes/1 --json {{}} --key-file {viewer}"), "may only read");
}

#[test]
fn explain_and_lint_print_for_people() {
    let (world, ca) = (World::start(), authority());
    world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    world.ok_with(
        "put routes/1 -f -",
        r#"{"host": "a.test", "uri": "/*", "upstream": {"nodes": {"127.0.0.1:1": 1}}}"#,
    );
    let leaf = ca.issue(&LeafSpec::client("alice")).unwrap();
    let alice = world.file("alice.crt", leaf.chain_pem);
    let out = world.ok(&format!("explain --sni a.test --client-cert {alice} --uri /x"));
    assert!(
        out.contains("CN=alice, verified up to CN=site ca") && out.contains("outcome     forwarded"),
        "{out}"
    );
    assert!(out.contains("to          route 1"), "{out}");
    let out = world.ok("explain --sni a.test");
    assert!(out.contains("handshake rejected") && out.contains("\nfix "), "{out}");
    assert_eq!(world.json("explain --sni b.test")["outcome"]["reason"], json!("no_site"));
    world.fails("explain --sni *", "not a name that a ClientHello may carry");
    world.fails("explain --client-cert /nowhere.crt", "--client-cert /nowhere.crt");

    assert!(world.ok("lint").ends_with(" findings\n"));
    let expired = ca.issue(
        &LeafSpec::server("b.test")
            .valid(pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1)), 1),
    );
    let expired = expired.unwrap();
    let body = json!({"snis": ["b.test"], "cert": expired.chain_pem, "key": *expired.key_pem});
    let ran = world.run_with("put ssls/2 -f -", &body.to_string());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = world.run("lint");
    assert!(ran.code == Some(1) && ran.out.contains("error    ssls/2"), "{ran:?}");
    assert!(ran.out.contains("\n         -> "), "{ran:?}");
    assert_eq!(world.run("lint -o json").code, Some(1));
}

#[test]
fn watch_prints_changes_and_waits_for_a_restart() {
    let world = World::start();
    let mut child =
        world.command("watch routes").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(notes.next().unwrap().starts_with("watching https://"));
    world.ok(r#"put routes/1 --json {"uri":"/a","plugins":{}}"#);
    assert!(lines.next().unwrap().ends_with("created  routes/1  /a"));
    world.ok(r#"put upstreams/1 --json {"nodes":{"a:1":1}}"#);
    world.ok(r#"put routes/1 --json {"uri":"/b","plugins":{}}"#);
    assert!(lines.next().unwrap().ends_with("updated  routes/1  /b"), "no other kind");
    let World { site, running, _port } = world;
    assert_eq!(running.stop().0, Some(0));
    assert!(notes.next().unwrap().starts_with("lost, reconnecting: cannot connect"));
    let world = World { running: site.start(), site, _port };
    assert_eq!(notes.next().unwrap(), "connected again");
    world.ok("delete routes/1");
    assert!(lines.next().unwrap().ends_with("deleted  routes/1  /b"));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert!(!child.wait().unwrap().success());
    let closed = world.command("watch nonsense").output().unwrap();
    assert_eq!(closed.status.code(), Some(1), "{closed:?}");
}

#[test]
fn a_closed_pipe_ends_every_command_quietly() {
    let world = World::start();
    world.ok(r#"put upstreams/1 --json {"nodes":{"127.0.0.1:1":1}}"#);
    world.ok(r#"put routes/1 --json {"uri":"/a","upstream_id":"1"}"#);
    for words in [
        "list routes",
        "get routes/1 -o yaml",
        "dump",
        "lint",
        "explain --sni a",
        "put routes/2 --json {\"uri\":\"/b\",\"upstream_id\":\"1\"}",
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = world.command(words).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
            (Some(0), ""),
            "{words}"
        );
    }
    world.ok("get routes/2");
    // One without an end stops at its next line.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = world.command("watch").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(notes.next().unwrap().starts_with("watching"));
    world.ok("delete routes/2");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn completions_are_printed_for_each_shell() {
    // clap_complete's script for fish knows the values of flags alone.
    for (shell, expected) in [
        ("bash", ["_controlplane()", "stream_routes", "dataplanes"].as_slice()),
        ("zsh", &["#compdef controlplane", "stream_routes", "dataplanes"]),
        ("fish", &["complete -c controlplane"]),
    ] {
        let output = program().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shell}");
        for word in expected.iter().chain(&["admin", "OPTIONS"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
