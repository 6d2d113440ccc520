//! `controlplane admin apply`, `diff` and `dump` against a running control plane.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use pki::ca::LeafSpec;
use serde_json::{Value, json};

use crate::admin_cli::{World, authority, site};

/// Everything that a dump can hold.
fn fill(world: &World) {
    let ca = authority();
    world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    let upstream = ca.issue(&LeafSpec::client("gateway")).unwrap();
    let tls = json!({"client_cert": upstream.chain_pem, "client_key": *upstream.key_pem});
    let upstream = json!({"nodes": {"127.0.0.1:1": 1}, "scheme": "https", "tls": tls});
    world.ok_with("put upstreams/u -f -", &upstream.to_string());
    let service = json!({"upstream_id": "u", "client_identity": {"allow": [{"dns": "alice"}]}});
    world.ok_with("put services/s -f -", &service.to_string());
    let plugins = r#"{"plugins": {"proxy-rewrite": {"uri": "/x"}}}"#;
    world.ok_with("put plugin_configs/p -f -", plugins);
    world.ok_with("put global_rules/g -f -", r#"{"plugins": {"prometheus": {}}}"#);
    let route = json!({"host": "a.test", "uri": "/*", "service_id": "s", "plugin_config_id": "p", "desc": "${{NOT_A_VARIABLE}} #END\n---\n"});
    world.ok_with("put routes/r -f -", &route.to_string());
}

#[test]
fn apply_of_a_dump_changes_nothing() {
    let world = World::start();
    fill(&world);
    let index = |world: &World| {
        ["ssls", "upstreams", "services", "plugin_configs", "routes", "global_rules"]
            .map(|kind| world.json(&format!("list {kind}"))["list"].clone())
    };
    let before = index(&world);
    let dump = world.run("dump");
    assert!(
        dump.code == Some(0) && dump.err.contains("private keys of ssls are not in the dump"),
        "{dump:?}"
    );
    assert!(!dump.out.contains("-----BEGIN PRIVATE KEY"), "{dump:?}");
    let yaml = world.file("all.yaml", &dump.out);
    let json = world.file("all.json", world.ok("dump -o json"));
    let folder = world.site.path("rules").display().to_string();
    assert!(world.ok(&format!("dump --to {folder}")).starts_with("6 resources in "));
    for path in [yaml, json, folder.clone()] {
        let out = world.ok(&format!("diff -f {path} --prune"));
        assert_eq!(out, "plan: 0 to create, 0 to update, 0 to delete, 6 unchanged\n", "{path}");
        world.ok(&format!("apply -f {path} --prune --yes"));
    }
    assert_eq!(index(&world), before, "modifiedIndex and all");
    world.fails(&format!("dump --to {folder}"), "--overwrite");
    world.ok(&format!("dump --to {folder} --overwrite"));
    let elsewhere = world.file("elsewhere/kept.yaml", "mine");
    let linked = std::path::Path::new(&folder).parent().unwrap().join("linked");
    std::fs::create_dir(&linked).unwrap();
    let target = std::path::Path::new(&elsewhere).parent().unwrap();
    std::os::unix::fs::symlink(target, linked.join("routes")).unwrap();
    world.fails(&format!("dump --to {} --overwrite", linked.display()), "is a symbolic link");
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "mine");
}

#[test]
fn a_plan_is_shown_and_made() {
    let world = World::start();
    fill(&world);
    let rules = world.file("rules.yaml", world.ok("dump"));
    let text = fs::read_to_string(&rules).unwrap();
    let changed = text
        .replace("127.0.0.1:1", "127.0.0.1:2")
        .replace("services:\n", "services:\n  - {id: new, upstream_id: u}\n");
    let changed = world.file("rules.yaml", changed);
    let diff = world.run(&format!("diff -f {changed}"));
    assert_eq!(diff.code, Some(1), "{diff:?}");
    assert!(diff.out.starts_with("~ upstreams/u\n    nodes.127.0.0.1:2: (absent) -> 1\n"), "{diff:?}");
    assert!(diff.out.contains("+ services/new"), "{diff:?}");
    assert!(diff.out.ends_with("plan: 1 to create, 1 to update, 0 to delete, 5 unchanged\n"), "{diff:?}");

    let asked = world.run(&format!("apply -f {changed}"));
    assert!(asked.code == Some(1) && asked.err.contains("--yes"), "{asked:?}");
    let checked = world.ok(&format!("apply -f {changed} --dry-run"));
    assert!(
        checked.ends_with("checked: 1 created, 1 updated, 0 deleted; nothing was written (--dry-run)\n"),
        "{checked}"
    );
    assert_eq!(world.run(&format!("diff -f {changed}")).code, Some(1), "nothing was written");
    let applied = world.ok(&format!("apply -f {changed} --yes"));
    assert!(applied.contains("applied: 1 created, 1 updated, 0 deleted (revision "), "{applied}");
    assert_eq!(world.run(&format!("diff -f {changed}")).code, Some(0));

    let small = world.file("small.json", r#"{"services": [], "routes": []}"#);
    assert_eq!(world.run(&format!("diff -f {small}")).code, Some(0), "nothing is deleted without --prune");
    let pruned = world.ok_with("apply -f - --prune --yes", &fs::read_to_string(&small).unwrap());
    assert!(pruned.starts_with("- routes/r  a.test /*\n- services/"), "{pruned}");
    assert_eq!(world.json("list ssls")["total"], json!(1), "the file does not name ssls");
    assert_eq!(world.json("list services")["total"], json!(0));
}

#[test]
fn a_renewed_certificate_needs_its_key() {
    let (world, ca) = (World::start(), authority());
    world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    let leaf = ca.issue(&LeafSpec::server("a.test")).unwrap();
    let mut renewed = json!({"id": "1", "snis": ["a.test"], "cert": leaf.chain_pem, "client": {"ca": ca.certificate_pem()}});
    let file = |site: &Value| world.file("rules.json", json!({"ssls": [site]}).to_string());
    let missing = world.run(&format!("apply -f {} --yes", file(&renewed)));
    assert!(missing.code == Some(1) && missing.err.contains("ssls/1: "), "{missing:?}");
    renewed["key"] = json!(*leaf.key_pem);
    let applied = world.ok(&format!("apply -f {} --yes", file(&renewed)));
    assert!(applied.contains("key: (absent) -> (private key)"), "{applied}");
    assert_eq!(world.run(&format!("diff -f {}", file(&renewed))).code, Some(0));
}

#[test]
fn an_invalid_resource_keeps_its_batch_from_being_written() {
    let world = World::start();
    let rules = json!({"routes": [{"id": "1", "uri": "/a", "plugins": {}}, {"id": "2", "uri": "/b", "service_id": "none"}]});
    let rules = world.file("rules.json", rules.to_string());
    let failed = world.run(&format!("apply -f {rules} --yes"));
    assert!(failed.code == Some(1) && failed.err.contains("routes/2: "), "{failed:?}");
    assert_eq!(world.json("list routes")["total"], json!(0));
    let trouble = world.run("diff -f /nowhere");
    assert!(trouble.code == Some(2) && trouble.err.contains("/nowhere"), "{trouble:?}");
}

#[test]
fn many_resources_are_written_in_several_batches() {
    let world = World::start();
    let routes = |count: usize| -> Vec<Value> {
        (0..count).map(|n| json!({"id": n.to_string(), "uri": format!("/{n}"), "upstream_id": "u"})).collect()
    };
    let upstream = json!({"id": "u", "nodes": {"127.0.0.1:1": 1}});
    let rules = json!({"routes": routes(300), "upstreams": [upstream]});
    let file = world.file("rules.json", rules.to_string());
    let checked = world.ok(&format!("apply -f {file} --dry-run"));
    assert!(
        checked.contains("checked: 301 created"),
        "routes beside the upstream of another step: {checked}"
    );
    let mut wrong = rules.clone();
    wrong["routes"][299]["upstream_id"] = json!("none");
    let wrong = world.file("wrong.json", wrong.to_string());
    let refused = world.run(&format!("apply -f {wrong} --dry-run"));
    assert!(refused.code == Some(1) && refused.err.contains("routes/299: "), "{refused:?}");
    assert_eq!(world.json("list upstreams")["total"], json!(0));
    let applied = world.ok(&format!("apply -f {file} --yes"));
    assert!(
        applied.contains("\n... and 201 more\n") && applied.contains("applied: 301 created"),
        "{applied}"
    );
    assert_eq!(world.json("list routes")["total"], json!(300));
    // The second of three batches fails: the first is written, and a second run writes the rest.
    let mut rules =
        json!({"services": (0..300).map(|n| json!({"id": format!("{n:03}")})).collect::<Vec<_>>()});
    rules["services"][200]["upstream_id"] = json!("none");
    let file = world.file("services.json", rules.to_string());
    let failed = world.run(&format!("apply -f {file} --yes"));
    assert!(failed.code == Some(1) && failed.err.contains("128 of 300 changes are written"), "{failed:?}");
    rules["services"][200]["upstream_id"] = json!("u");
    let file = world.file("services.json", rules.to_string());
    assert!(
        world
            .ok(&format!("apply -f {file} --yes"))
            .contains("plan: 172 to create, 0 to update, 0 to delete, 128 unchanged")
    );
    let none = world.file("none.json", r#"{"routes": [], "services": [], "upstreams": []}"#);
    let checked = world.ok(&format!("apply -f {none} --prune --dry-run"));
    assert!(checked.contains("checked: 0 created, 0 updated, 601 deleted"), "{checked}");
    assert!(
        world
            .ok(&format!("apply -f {none} --prune --yes"))
            .contains("applied: 0 created, 0 updated, 601 deleted")
    );
}

#[test]
fn single_writes_take_if_match_and_dry_run() {
    let world = World::start();
    world.ok(r#"put routes/1 --json {"uri":"/a","plugins":{}}"#);
    let index = world.json("get routes/1")["modifiedIndex"].to_string();
    let dry = world.ok(r#"put routes/1 --json {"uri":"/b","plugins":{}} --dry-run"#);
    assert!(dry.contains("replace /uri \"/b\"\n") && dry.contains("nothing was written"), "{dry}");
    assert_eq!(world.json("get routes/1")["value"]["uri"], json!("/a"));
    world.ok(&format!(r#"put routes/1 --json {{"uri":"/c","plugins":{{}}}} --if-match {index}"#));
    world.fails(
        &format!(r#"put routes/1 --json {{"uri":"/d","plugins":{{}}}} --if-match {index}"#),
        "routes/1 was changed meanwhile",
    );
    world.fails(&format!("delete routes/1 --if-match {index}"), "changed meanwhile");
    let ran = world.run(r#"put routes/1 --json {"uri":"/d","plugins":{}} --wait 1"#);
    assert!(ran.code == Some(3) && ran.err.contains("no data plane is connected"), "{ran:?}");
}

#[test]
fn a_protected_policy_needs_weaken() {
    let world = World::with(|admin| admin["protect_client_auth"] = json!(true));
    let ca = authority();
    world.ok_with("put ssls/1 -f -", &site("a.test", &ca));
    let refused = world.run_with("patch ssls/1 -f -", r#"{"client": null}"#);
    assert!(
        refused.code == Some(1) && refused.err.contains("--weaken writes it all the same"),
        "{refused:?}"
    );
    world.ok_with("patch ssls/1 --weaken -f -", r#"{"client": null}"#);
}

#[test]
fn a_change_after_the_plan_stops_it() {
    let world = World::start();
    let upstreams = |labels: &Value| -> Vec<Value> {
        let upstream = |n| json!({"id": format!("u{n}"), "nodes": {"127.0.0.1:1": 1}, "labels": labels});
        (0..100).map(upstream).collect()
    };
    let labels: Value = (0..16)
        .map(|n| (format!("label-{n}"), json!("x".repeat(64))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let first = world.file("first.json", json!({"upstreams": upstreams(&json!({}))}).to_string());
    world.ok(&format!("apply -f {first} --yes"));
    let second = world.file("second.json", json!({"upstreams": upstreams(&labels)}).to_string());
    let mut applying = world.command(&format!("apply -f {second} --yes"));
    let mut applying = applying.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It is writing its plan, which is larger than the pipe.
    let mut plan = BufReader::new(applying.stdout.take().unwrap());
    let mut line = String::new();
    plan.read_line(&mut line).unwrap();
    assert_eq!(line, "~ upstreams/u0\n");
    world.ok(r#"patch upstreams/u42 --json {"name":"mine"}"#);
    let mut rest = String::new();
    plan.read_to_string(&mut rest).unwrap();
    assert!(rest.len() > 64 << 10, "{}", rest.len());
    let failed = applying.wait_with_output().unwrap();
    let message = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{message}");
    assert!(message.contains("upstreams/u42 was changed meanwhile, and nothing was written"), "{message}");
    assert_eq!(world.json("get upstreams/u0")["value"]["labels"], json!({}));
    // The next plan has seen it.
    world.ok(&format!("apply -f {second} --yes"));
    assert_eq!(world.json("get upstreams/u42")["value"]["name"], Value::Null);
}
