use futures_util::FutureExt;
use model::Snapshot;
use serde_json::json;

use super::lag::BEHIND_MAX;
use super::*;
use crate::publish::fleet::ConnectedNode;

fn node(name: &str, acknowledged: impl Into<Option<u64>>) -> ConnectedNode {
    ConnectedNode { name: name.into(), instance: format!("{name}-1"), acknowledged: acknowledged.into() }
}

fn entry(push: &str, nodes: usize, oldest: &[ConnectedNode]) -> ControlPlaneEntry {
    let report = FleetReport {
        host: "h".into(),
        push: push.into(),
        version: "1".into(),
        revision: 9,
        nodes,
        oldest: oldest.to_vec(),
        written_at: 0,
        place: None,
    };
    // Round trip through the stored form.
    let text = serde_json::to_string(&report).unwrap();
    let report = Some(serde_json::from_str(&text).map_err(|error| error.to_string()));
    let names = oldest.iter().map(|node| node.name.clone()).collect();
    let nodes = Some(NodeNames { host: "h".into(), push: push.into(), names, more: false, place: None });
    ControlPlaneEntry { process: push.into(), report, nodes }
}

/// Control plane and node of those that are behind revision 7.
fn late(own: &[ConnectedNode], others: Vec<ControlPlaneEntry>) -> Vec<(Option<String>, Option<String>)> {
    let behind = behind(7, own, own.len(), &Ok(Arc::new(others)));
    behind.into_iter().map(|view| (view.control_plane, view.node)).collect()
}

fn at(control_plane: &str, node: &str) -> (Option<String>, Option<String>) {
    (Some(format!("h ({control_plane})")), Some(node.to_owned()))
}

#[test]
fn nodes_of_every_control_plane_count() {
    let here = [node("a", 7)];
    assert!(late(&here, vec![]).is_empty());
    assert!(late(&here, vec![entry("b", 1, &[node("b1", 8)]), entry("c", 0, &[])]).is_empty());
    assert!(late(&[], vec![entry("b", 1, &[node("b1", 7)])]).is_empty(), "one node anywhere is enough");
    assert_eq!(late(&here, vec![entry("b", 2, &[node("b1", 6), node("b2", 7)])]), [at("b", "b1")]);
    assert_eq!(late(&here, vec![entry("b", 1, &[node("b1", None)])]), [at("b", "b1")]);
    assert_eq!(late(&[node("a", 6)], vec![]), [(None, Some("a".to_owned()))]);
    assert_eq!(late(&[], vec![entry("b", 0, &[])]), [(None, None)], "no node at all is not everybody");
}

#[test]
fn a_node_counts_where_it_is_connected() {
    let gone = entry("b", 1, &[node("a", 5)]);
    assert_eq!(late(&[], vec![gone.clone()]), [at("b", "a")]);
    assert!(late(&[node("a", 7)], vec![gone.clone()]).is_empty());
    assert!(late(&[], vec![gone.clone(), entry("c", 1, &[node("a", 8)])]).is_empty());
    assert_eq!(late(&[node("a", 6)], vec![gone.clone()]).len(), 2, "it is behind there, too");
    let restarted = ConnectedNode { instance: "a-2".into(), ..node("a", 7) };
    assert_eq!(late(&[restarted], vec![gone]), [at("b", "a")], "another process");
}

#[test]
fn nodes_of_a_silent_control_plane_are_behind() {
    let here = [node("a", 7)];
    let silent =
        |nodes: &[ConnectedNode]| ControlPlaneEntry { report: None, ..entry("b", nodes.len(), nodes) };
    // It had acknowledged everything then; whether it has later changes is unknown.
    let one = silent(&[node("b1", 7)]);
    assert_eq!(late(&here, vec![one.clone()]), [at("b", "b1")]);
    assert!(late(&here, vec![silent(&[])]).is_empty());
    // Restarted or not, it counts where it is connected now.
    assert!(late(&[node("b1", 7)], vec![one.clone()]).is_empty());
    assert!(late(&here, vec![one.clone(), entry("c", 1, &[node("b1", 8)])]).is_empty());
    assert_eq!(late(&here, vec![one.clone(), entry("c", 1, &[node("b1", 6)])]), [at("c", "b1")]);
    let also_silent = ControlPlaneEntry { process: "c".into(), ..one.clone() };
    assert_eq!(late(&here, vec![one.clone(), also_silent]).len(), 2, "neither knows");
    let mut many = one;
    many.nodes.as_mut().unwrap().more = true;
    assert_eq!(late(&[node("b1", 7)], vec![many]), [(Some("h (b)".into()), None)]);
}

#[test]
fn unreadable_reports_are_behind() {
    let here = [node("a", 7)];
    let unreadable =
        ControlPlaneEntry { process: "x".into(), report: Some(Err("garbage".into())), nodes: None };
    assert_eq!(late(&here, vec![unreadable]), [(Some("x".into()), None)]);
    let lagging = behind(7, &here, 1, &Err("down".into()));
    assert!(lagging.len() == 1 && lagging[0].problem.contains("down"), "{lagging:?}");
    // An entry lists the oldest revisions: when its last node has reached the revision, so have
    // those it does not list.
    assert!(late(&here, vec![entry("b", 90, &[node("b1", 7), node("b2", 8)])]).is_empty());
    assert_eq!(
        late(&here, vec![entry("b", 90, &[node("b1", 6)])]),
        [at("b", "b1"), (Some("h (b)".into()), None)]
    );
    assert_eq!(late(&here, vec![entry("b", 90, &[])]), [(Some("h (b)".into()), None)]);
}

#[test]
fn the_list_of_lagging_nodes_is_bounded() {
    let many: Vec<_> = (0..1000).map(|n| node(&format!("n{n}"), 1)).collect();
    assert_eq!(late(&many, vec![]).len(), BEHIND_MAX);
}

#[tokio::test]
async fn a_single_control_plane_has_no_reports() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> =
        Arc::new(crate::store::EmbeddedStore::open(&folder.path().join("store.redb")).unwrap());
    let (_sender, latest) = watch::channel(Arc::new(Snapshot::empty()));
    let identity = ControlPlaneIdentity {
        host: "h".into(),
        push: "p".into(),
        version: "1",
        place: None,
        generations: Generations::first(),
    };
    let (stop, stopping) = watch::channel(false);
    let reports = Reports::new(Arc::new(Fleet::new(latest)), store, identity, stopping);
    let expected = json!({"list": [], "total": 0, "revision": 0});
    assert_eq!(serde_json::to_value(reports.view().await).unwrap(), expected);
    let late = reports.wait_acknowledged(0, Duration::ZERO).await.unwrap_err();
    let late = serde_json::to_value(late).unwrap();
    assert_eq!(late["behind"][0]["problem"], "no data plane is connected");
    assert_eq!((&late["list"], &late["revision"]), (&expected["list"], &expected["revision"]));

    // A stop ends the wait with a response.
    let waiting = reports.wait_acknowledged(0, Duration::from_secs(60));
    tokio::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none());
    stop.send_replace(true);
    let stopped = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    let stopped = stopped.expect("a stop ends the wait").unwrap_err();
    assert!(serde_json::to_value(stopped).unwrap()["behind"].is_array());
}
