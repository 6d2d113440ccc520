//! A steady load on a data plane while it is upgraded, reloaded and given new certificates: no
//! operation of any client fails.

use e2e::client::HttpClient;
use e2e::steady_load::{LoadTargets, SteadyLoad};
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::{World, WorldBuilder};
use serde_json::{Value, json};

use crate::stream;

/// What a loaded world needs to stay alive.
pub(crate) struct LoadedWorld {
    pub world: World,
    pub targets: LoadTargets,
    _upstreams: (Upstream, TcpUpstream),
}

/// A world whose site needs a client certificate, with a stream listener before an echo.
pub(crate) async fn loaded_world(more: Value) -> LoadedWorld {
    loaded_world_of(World::builder(), more).await
}

/// The same, of this builder.
pub(crate) async fn loaded_world_of(builder: WorldBuilder, more: Value) -> LoadedWorld {
    let upstreams = (Upstream::plain("plain").await, TcpUpstream::plain("echo", Script::Echo).await);
    let mut settings = stream::streaming();
    e2e::settings::merge(&mut settings, more);
    let world = builder.settings(settings).protected(upstreams.0.address()).start().await;
    let revision =
        world.apply(&[("stream_routes/1", json!({"upstream": stream::to(&[upstreams.1.address()])}))]).await;
    world.wait_persisted(revision).await;
    let identified = |client: HttpClient| client.identity(&world.credentials.client);
    let stream = Some(identified(world.tcp_client("app.test")));
    let targets = LoadTargets { https: world.verified_client("app.test"), stream };
    LoadedWorld { world, targets, _upstreams: upstreams }
}

#[tokio::test]
async fn a_steady_load_sees_a_restart() {
    let LoadedWorld { mut world, targets, _upstreams } = loaded_world(json!({})).await;
    let load = SteadyLoad::start(&targets);
    load.more(2000).await;
    load.stop().await.assert_flawless();

    let load = SteadyLoad::start(&targets);
    load.more(100).await;
    world.kill_node().await;
    world.start_node().await;
    load.more(100).await;
    let report = load.stop().await;
    assert!(!report.failures.is_empty(), "{report:?}");
}
