//! All that an operator does to a running pair, under load: upgrades, reloads, new certificates,
//! restarts of the control plane.

use e2e::steady_load::SteadyLoad;
use e2e::world::World;
use rustix::process::Signal;
use serde_json::json;

use crate::upgrade::exchangeable;

const UPGRADES: u64 = 20;
/// Operations of the clients, at least.
const OPERATIONS: u64 = 100_000;

/// Issues every certificate of the two programs and of the site anew, with new keys.
async fn rotate_certificates(world: &World) {
    let credentials = &world.credentials;
    world.write_credential("node-1", &credentials.node("node-1"));
    world.write_credential("push-server", &credentials.push.server(&["controlplane"]));
    world.write_credential("admin", &credentials.servers.server(&["admin.test"]));
    let site = credentials.servers.server(&["app.test"]);
    let mut document = world.protected_site();
    document["cert"] = json!(site.certificate_pem);
    document["key"] = json!(site.key_pem);
    world.apply(&[("ssls/app", document)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_operation_fails_while_everything_is_replaced() {
    let mut test = exchangeable(json!({})).await;
    let load = SteadyLoad::start(&test.loaded.targets);
    for round in 0..UPGRADES {
        load.more(OPERATIONS / UPGRADES).await;
        let (workers, driver) = match round % 4 {
            0 => (4, "io_uring"),
            1 => (1, "epoll"),
            2 => (3, "epoll"),
            _ => (2, "io_uring"),
        };
        test.replace_program(&format!("COUNTERSIGN_DRIVER={driver} exec \"$PROGRAM\" \"$@\""));
        let world = &mut test.loaded.world;
        world.change_settings(json!({"countersign": {"workers": workers}}));
        let successor = world.upgrade_node().await;
        let ready = successor.ready();
        assert_eq!((&ready["workers"], &ready["driver"]), (&json!(workers), &json!(driver)));

        let time_out = json!({"nginx_config": {"http": {"keepalive_timeout": format!("{}s", 60 + round)}}});
        world.change_settings(time_out);
        world.write_config("node-1");
        let mark = world.node_log().mark();
        world.node_successors().last().unwrap().signal(Signal::HUP);
        world.node_log().line_after(mark, &["reload"]).await;
        match round % 4 {
            1 => rotate_certificates(world).await,
            3 => {
                assert!(world.stop_control().await.success());
                world.start_control().await;
            }
            _ => {}
        }
        assert_eq!(load.failures(), [""; 0], "round {round}");
    }
    let report = load.stop().await;
    println!("{report:?}");
    report.assert_flawless();
    assert!(report.operations >= OPERATIONS, "{report:?}");
}
