//! `make demo-check`, as CI and a newcomer run it, on ports of its own.

use std::path::Path;

use e2e::ports::Reservation;
use e2e::process::run_to_end;

#[tokio::test]
async fn every_scenario_of_the_demo_passes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let options =
        ["--http", "--https", "--admin", "--push", "--status", "--upstream", "--strict-upstream", "--etcd"];
    // Kept while the demo runs, so that no other test is given them.
    let kept = options.map(|_| Reservation::any());
    let ports = kept.each_ref().map(|kept| kept.address().port().to_string());
    let mut arguments = vec!["--check", "--dir", dir.to_str().unwrap()];
    for (option, port) in options.iter().zip(&ports) {
        arguments.extend([*option, port.as_str()]);
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let ended = run_to_end("demo", &arguments, repository).await;
    let logs = ["controlplane.log", "dataplane.log"]
        .map(|log| std::fs::read_to_string(dir.join(log)).unwrap_or_default())
        .join("\n----\n");
    assert!(ended.status.success(), "{}\n{}\n{logs}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout.lines().last(), Some("5 scenarios passed, 0 failed"), "{}", ended.stdout);
}
