//! The alert rules: a parser of PromQL reads them, every metric and label that they use is one of a
//! running pair, and their conditions become true with their facts.

use std::process::Command;

use e2e::client::bounded;
use e2e::exposition::Exposition;
use e2e::world::World;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/prometheus/countersign.rules.yml");

/// Prints each rule with the selectors of its expression.
const READ: &str = r#"
import json, re, sys, yaml, promql_parser
def selectors(node):
    if isinstance(node, promql_parser.VectorSelector):
        return [{"name": node.name, "labels": [m.name for m in node.matchers.matchers]}]
    if isinstance(node, promql_parser.MatrixSelector):
        return selectors(node.vector_selector)
    inner = [getattr(node, name, None) for name in ("lhs", "rhs", "expr")] + list(getattr(node, "args", []))
    return [found for part in inner if part is not None for found in selectors(part)]
rules = [rule for group in yaml.safe_load(open(sys.argv[1]))["groups"] for rule in group["rules"]]
for rule in rules:
    texts = " ".join(rule["annotations"].values())
    print(json.dumps({
        "alert": rule["alert"], "expr": rule["expr"], "severity": rule["labels"]["severity"],
        "annotations": sorted(rule["annotations"]), "used": re.findall(r"\$labels\.(\w+)", texts),
        "selectors": selectors(promql_parser.parse(rule["expr"])),
    }))
"#;

/// `None`: the parser is not installed, which is printed.
fn rules() -> Option<Vec<Value>> {
    let python = crate::api_tools::installed("python")?;
    let output = Command::new(python).args(["-c", READ, RULES]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("No module named") {
        use std::io::Write as _;
        std::io::stderr()
            .write_all(b"skipped: promql_parser: `scripts/setup.sh test` installs it\n")
            .unwrap();
        return None;
    }
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

async fn scrape(world: &World) -> [Exposition; 2] {
    [world.status("/metrics").await.text(), world.control_status("/metrics").await.text()]
        .map(|text| Exposition::parse(&text))
}

#[tokio::test]
async fn the_rules_use_what_a_pair_exports() {
    let Some(rules) = rules() else { return };
    let (world, _upstream) = World::protected(json!({})).await;
    world.verified_client("app.test").get("/").await.unwrap();
    let pair = scrape(&world).await;
    for rule in &rules {
        let alert = rule["alert"].as_str().unwrap();
        assert!(alert.starts_with("Countersign"), "{alert}");
        assert!(["info", "warning", "critical"].contains(&rule["severity"].as_str().unwrap()), "{alert}");
        assert_eq!(rule["annotations"], json!(["description", "summary"]), "{alert}");
        let selectors = rule["selectors"].as_array().unwrap();
        assert!(!selectors.is_empty(), "{alert}");
        for selector in selectors {
            let name = selector["name"].as_str().unwrap();
            let family = name.strip_suffix("_total").unwrap_or(name);
            let found: Vec<_> = pair.iter().filter_map(|program| program.0.get(family)).collect();
            assert!(!found.is_empty(), "{alert}: neither program exports {name}");
            assert!(found.iter().any(|family| !family.samples.is_empty()), "{alert}: {name} has no series");
            let has = |label: &str| found.iter().any(|family| family.labels().contains(label));
            for label in selector["labels"].as_array().unwrap().iter().chain(rule["used"].as_array().unwrap())
            {
                let label = label.as_str().unwrap();
                assert!(label == "instance" || has(label), "{alert}: {name} has no label {label}");
            }
        }
    }
}

#[tokio::test]
async fn reasons_in_the_rules_are_known() {
    let Some(rules) = rules() else { return };
    let (world, _upstream) = World::open(json!({})).await;
    let pair = scrape(&world).await;
    let known = |reason: &str| {
        let sample = format!("countersign_errors_total{{reason=\"{reason}\"}}");
        pair.iter().any(|program| program.value(&sample).is_some())
    };
    let mut seen = 0;
    for rule in &rules {
        let Some((_, rest)) = rule["expr"].as_str().unwrap().split_once("reason=~\"") else { continue };
        for reason in rest.split('"').next().unwrap().split('|') {
            assert!(known(reason), "{}: no reason {reason}", rule["alert"]);
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[tokio::test]
async fn conditions_become_true_with_their_facts() {
    let (mut world, _upstream) = World::open(json!({})).await;
    let value = async |world: &World, sample: &str| {
        Exposition::parse(&world.status("/metrics").await.text()).value(sample)
    };
    let reload = "countersign_reload_success";
    let connected = "countersign_control_plane_connected";
    assert_eq!((value(&world, reload).await, value(&world, connected).await), (Some(1.0), Some(1.0)));
    world.change_settings(json!({"nginx_config": {"error_log_level": "loud"}}));
    world.write_config("node-1");
    world.node_process().signal(Signal::SIGHUP);
    bounded("CountersignReloadFailed", async { while value(&world, reload).await != Some(0.0) {} }).await;
    world.kill_control().await;
    bounded("CountersignControlPlaneOutOfContact", async {
        while value(&world, connected).await != Some(0.0) {}
    })
    .await;
}
