//! Describes a world before it starts.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use super::plane::{Plane, Program};
use super::{Placement, World};
use crate::credentials::Credentials;
use crate::documents::route;
use crate::etcd::Access;
use crate::settings::{default_settings, merge};

pub struct WorldBuilder {
    settings: Value,
    etcd: Option<Access>,
    control_planes: usize,
    control: bool,
    nodes: Vec<String>,
    control_environment: Vec<(String, String)>,
    node_environment: Vec<(String, String)>,
    script: Option<String>,
    placement: Placement,
    files: Vec<(String, String)>,
    app: Option<App>,
}

/// The upstream of `app.test`.
struct App {
    upstream: SocketAddr,
    path: &'static str,
    protected: bool,
}

impl WorldBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: default_settings(),
            etcd: None,
            control_planes: 1,
            control: true,
            nodes: vec!["node-1".to_owned()],
            control_environment: Vec::new(),
            node_environment: Vec::new(),
            script: None,
            placement: Placement::default(),
            files: Vec::new(),
            app: None,
        }
    }

    /// Merges `more` over the settings of both planes: objects merge, everything else replaces.
    pub fn settings(mut self, more: Value) -> Self {
        merge(&mut self.settings, more);
        self
    }

    /// Uses this etcd as the store. Settings that differ from those of the etcd come later.
    pub fn etcd(mut self, access: impl Into<Access>) -> Self {
        let access = access.into();
        merge(&mut self.settings, access.settings());
        self.etcd = Some(access);
        self
    }

    /// Starts so many control planes on the same store; data planes try them in this order.
    pub fn control_planes(mut self, count: usize) -> Self {
        self.control_planes = count;
        self
    }

    /// Starts these data planes instead of the one named `node-1`.
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub fn control_environment(mut self, name: &str, value: &str) -> Self {
        self.control_environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn node_environment(mut self, name: &str, value: &str) -> Self {
        self.node_environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts programs through a bash script that ends with `exec "$@"`, for redirections for
    /// example. `$NAME` is the name of the control plane or node.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Runs the programs of this folder, the control planes on one core and the data planes on
    /// another.
    pub fn placed(mut self, programs: &Path, control_cpu: usize, node_cpu: usize) -> Self {
        self.placement = Placement {
            programs: Some(programs.to_owned()),
            control_cpu: Some(control_cpu),
            node_cpu: Some(node_cpu),
        };
        self
    }

    /// Runs the programs of this folder.
    pub fn programs(mut self, folder: &Path) -> Self {
        self.placement.programs = Some(folder.to_owned());
        self
    }

    /// Serves `app.test` by this upstream, without client certificates.
    pub fn open(self, upstream: SocketAddr) -> Self {
        Self { app: Some(App { upstream, path: "/*", protected: false }), ..self }
    }

    /// Serves `app.test` by this upstream, requiring client certificates.
    pub fn protected(self, upstream: SocketAddr) -> Self {
        Self { app: Some(App { upstream, path: "/*", protected: true }), ..self }
    }

    /// Serves only this path of `app.test`.
    pub fn path(mut self, path: &'static str) -> Self {
        self.app.as_mut().expect("`open` or `protected` comes first").path = path;
        self
    }

    /// Writes a file beside the settings.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Reserves the control planes' ports without starting them: connections are refused.
    pub fn without_control(mut self) -> Self {
        self.control = false;
        self
    }

    /// Starts everything and waits until it is ready.
    pub async fn start(self) -> World {
        let folder =
            tempfile::Builder::new().prefix("countersign-test-").tempdir().expect("a temporary folder");
        let control_name =
            |index| if index == 0 { "control".to_owned() } else { format!("control-{}", index + 1) };
        let names = (0..self.control_planes).map(control_name);
        let mut world = World {
            folder,
            credentials: Credentials::generate(),
            settings: self.settings,
            controls: names.map(|name| Plane::new(Program::Control, &name)).collect(),
            nodes: Vec::new(),
            control_environment: self.control_environment,
            node_environment: self.node_environment,
            script: self.script,
            placement: self.placement,
        };
        world.write_credentials();
        for (name, text) in &self.files {
            world.write(name, text);
        }
        if let Some(access) = &self.etcd {
            world.write_access(access);
        }
        for index in 0..self.control_planes {
            if self.control {
                world.start_control_at(index).await;
            } else {
                world.controls[index].reserve();
            }
        }
        for name in self.nodes {
            world.add_node(&name).await;
        }
        if let Some(App { upstream, path, protected }) = self.app {
            let site = if protected { world.protected_site() } else { world.open_site() };
            let route = route("app.test", path, &[upstream]);
            world.apply(&[("ssls/app", site), ("routes/app", route)]).await;
        }
        world
    }
}
