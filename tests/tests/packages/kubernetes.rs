//! Manifests and chart: the schemas of Kubernetes accept them, Helm renders the chart, the programs
//! accept the settings in them, and the times for a stop fit.

use std::collections::BTreeSet;
use std::fs;

use conf::Settings;
use e2e::peers;
use serde_json::{Value, json};

use super::packaging;

/// The script's documents; `None`, with a line that says so, where its libraries are absent.
async fn check(arguments: &[&str]) -> Option<Result<Vec<Value>, String>> {
    let folder = tempfile::tempdir().unwrap();
    let output = peers::run_python(folder.path(), "kubernetes_check.py", arguments).await?;
    Some(match output.status.success() {
        true => Ok(peers::json_lines(&output)),
        false => Err(output.stderr),
    })
}

fn of_kind<'a>(documents: &'a [Value], kind: &str, name_end: &str) -> &'a Value {
    let is_it = |document: &&Value| {
        document["kind"] == kind && document["metadata"]["name"].as_str().unwrap().ends_with(name_end)
    };
    documents.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name_end}"))
}

/// The settings of the ConfigMap, as the programs read them.
fn settings(documents: &[Value]) -> Settings {
    let text = of_kind(documents, "ConfigMap", "countersign")["data"]["config.yaml"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, ca) = (folder.path().join("config.yaml"), folder.path().join("etcd-ca.crt"));
    // The one file that has to be there when the settings are read.
    fs::write(&ca, "").unwrap();
    fs::write(&file, text.replace("/etc/countersign/etcd/etcd-ca.crt", ca.to_str().unwrap())).unwrap();
    conf::load(&file).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// What a cluster would find out only when it runs.
fn check_documents(documents: &[Value]) -> Settings {
    let settings = settings(documents);
    for (kind, name) in [("StatefulSet", "controlplane"), ("Deployment", "dataplane")] {
        let pod = &of_kind(documents, kind, name)["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(pod["securityContext"]["runAsUser"], 65532, "the user of the image");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        let names = |list: &Value, key: &str| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect()
        };
        let ports = names(&container["ports"], "name");
        for probe in ["readinessProbe", "livenessProbe"] {
            assert!(ports.contains(container[probe]["httpGet"]["port"].as_str().unwrap()));
        }
        let mut volumes = names(&pod["volumes"], "name");
        volumes.insert("data".to_owned());
        assert_eq!(names(&container["volumeMounts"], "name"), volumes);
        // A file that is mounted by subPath never changes: a reload would read the old one.
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|mount| mount["subPath"].is_null()), "{mounts:?}");
        let config = mounts.iter().find(|mount| mount["name"] == "config").unwrap()["mountPath"].as_str();
        assert_eq!(container["args"], json!(["-c", format!("{}/config.yaml", config.unwrap())]));
    }
    let pod = &of_kind(documents, "Deployment", "dataplane")["spec"]["template"]["spec"];
    let pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let drain = settings.countersign.drain_delay + settings.http.worker_shutdown_timeout;
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= pre_stop + drain.as_secs() + 10);
    let spread = &pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
    let deployment = &of_kind(documents, "Deployment", "dataplane")["spec"];
    assert_eq!(spread, &deployment["selector"]["matchLabels"]);
    let budget = &of_kind(documents, "PodDisruptionBudget", "dataplane")["spec"];
    assert_eq!(budget["selector"], deployment["selector"]);
    settings
}

#[tokio::test]
async fn the_manifests_are_valid() {
    let mut files: Vec<_> = fs::read_dir(packaging("kubernetes"))
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let arguments: Vec<_> = ["manifests"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let Some(documents) = check(&arguments).await else { return };
    check_documents(&documents.unwrap());
}

async fn render(values: &Value) -> Option<Result<Vec<Value>, String>> {
    check(&["chart", packaging("helm").to_str().unwrap(), &values.to_string()]).await
}

fn with_secrets(more: Value) -> Value {
    let secrets = ["admin", "push", "node", "keyring", "etcd"]
        .map(|name| (name.to_owned(), json!({"existingSecret": format!("countersign-{name}")})));
    let mut values = json!({"certificates": Value::Object(secrets.into_iter().collect())});
    e2e::settings::merge(&mut values, more);
    values
}

#[tokio::test]
async fn the_chart_renders_as_its_values_say() {
    let Some(documents) = render(&with_secrets(json!({}))).await else { return };
    let settings = check_documents(&documents.unwrap());
    assert_eq!(settings.countersign.node.control_planes.len(), 1);

    // As values of APISIX's chart.
    let values = with_secrets(json!({
        "image": {"repository": "registry.example/dataplane", "tag": "9"}, "replicaCount": 3,
        "service": {"type": "LoadBalancer", "http": {"enabled": true}},
        "apisix": {"admin": {"credentials": {"secretName": "keys"}, "allow": {"ipList": ["10.0.0.0/8"]}}},
        "etcd": {"host": ["https://etcd-0:2379", "https://etcd-1:2379"]},
        "controlPlane": {"replicaCount": 2}, "shutdown": {"workerShutdownTimeout": 20},
        "podDisruptionBudget": {"minAvailable": "90%"}, "podAnnotations": {"a": "b"},
        "extraEnvVars": [{"name": "RUST_LOG", "value": "debug"}],
    }));
    let documents = render(&values).await.unwrap().unwrap();
    let settings = check_documents(&documents);
    assert_eq!(settings.deployment.etcd.hosts.len(), 2);
    let deployment = &of_kind(&documents, "Deployment", "dataplane")["spec"];
    let pod = &deployment["template"]["spec"];
    assert_eq!(deployment["replicas"], 3);
    assert_eq!(pod["containers"][0]["image"], "registry.example/dataplane:9");
    assert_eq!(pod["terminationGracePeriodSeconds"], 40);
    assert_eq!(of_kind(&documents, "PodDisruptionBudget", "")["spec"]["minAvailable"], "90%");
    assert_eq!(of_kind(&documents, "Service", "gateway")["spec"]["ports"].as_array().unwrap().len(), 2);
    let control = &of_kind(&documents, "StatefulSet", "")["spec"];
    assert_eq!(control["template"]["spec"]["containers"][0]["env"][0]["name"], "COUNTERSIGN_ADMIN_KEY");
}

#[tokio::test]
async fn pods_have_the_service_account_of_the_chart() {
    for (account, expected) in [
        (json!({"create": true}), json!("test-countersign")),
        (json!({"create": true, "name": "gateway"}), json!("gateway")),
        (json!({"name": "existing"}), json!("existing")),
        (json!({}), Value::Null),
    ] {
        let values = with_secrets(json!({"serviceAccount": account}));
        let Some(documents) = render(&values).await else { return };
        let documents = documents.unwrap();
        for (kind, name) in [("StatefulSet", "controlplane"), ("Deployment", "dataplane")] {
            let pod = &of_kind(&documents, kind, name)["spec"]["template"]["spec"];
            assert_eq!(pod["serviceAccountName"], expected, "{account}");
        }
        if account["create"] == true {
            assert_eq!(of_kind(&documents, "ServiceAccount", "")["metadata"]["name"], expected);
        }
    }
}

#[tokio::test]
async fn values_that_cannot_work_are_named() {
    let Some(missing) = render(&json!({})).await else { return };
    let missing = missing.unwrap_err();
    assert!(missing.contains("existingSecret") && missing.contains("pki init"), "{missing}");
    let several = render(&with_secrets(json!({"controlPlane": {"replicaCount": 2}}))).await.unwrap();
    assert!(several.unwrap_err().contains("set etcd.host"));
    let no_key = with_secrets(json!({"etcd": {"host": ["https://etcd:2379"]}}));
    let no_key = render(&no_key).await.unwrap().unwrap_err();
    assert!(no_key.contains("apisix.admin.credentials.secretName: with etcd"), "{no_key}");
}
