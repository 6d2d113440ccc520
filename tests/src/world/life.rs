//! Starting, killing and stopping the programs of a world. Without a number it is the first control plane or node.

use std::process::ExitStatus;

use super::World;
use super::plane::{Plane, Program};
use crate::credentials::Credential;
use crate::process::{Launch, Process};

impl World {
    /// Writes the current settings and starts (or restarts, at the same ports) the control plane.
    pub async fn start_control(&mut self) {
        self.start_control_at(0).await;
    }

    /// The same for the n-th control plane.
    pub async fn start_control_at(&mut self, index: usize) {
        let config = self.write_config(&self.controls[index].name);
        let environment = environment(&self.control_environment, &self.controls[index]);
        let launch = Launch::new("controlplane", &config)
            .programs(self.placement.programs.as_deref())
            .cpu(self.placement.control_cpu)
            .environment(&environment);
        self.controls[index].start(launch, self.script.as_deref()).await;
    }

    /// `kill -9` of the control plane.
    pub async fn kill_control(&mut self) {
        self.kill_control_at(0).await;
    }

    /// `kill -9` of the n-th control plane.
    pub async fn kill_control_at(&mut self, index: usize) {
        self.controls[index].kill_9().await;
    }

    /// SIGTERM to the control plane, and its end.
    pub async fn stop_control(&mut self) -> ExitStatus {
        self.stop_control_at(0).await
    }

    /// SIGTERM to the n-th control plane, and its end.
    pub async fn stop_control_at(&mut self, index: usize) -> ExitStatus {
        self.controls[index].stop().await
    }

    /// Adds a data plane with its own certificate and last-good file.
    pub async fn add_node(&mut self, name: &str) {
        let credential = self.credentials.node(name);
        self.add_node_with(name, &credential).await;
    }

    /// Adds a data plane that shows this certificate to the control plane.
    pub async fn add_node_with(&mut self, name: &str, credential: &Credential) {
        self.write_credential(name, credential);
        self.nodes.push(Plane::new(Program::Node, name));
        self.start_node_at(self.nodes.len() - 1, &[]).await;
    }

    /// The first node, again, at the same ports.
    pub async fn start_node(&mut self) {
        self.start_node_with(&[]).await;
    }

    /// The first node, again, with these arguments.
    pub async fn start_node_with(&mut self, arguments: &[&str]) {
        self.start_node_at(0, arguments).await;
    }

    async fn start_node_at(&mut self, index: usize, arguments: &[&str]) {
        let config = self.write_config(&self.nodes[index].name);
        let environment = environment(&self.node_environment, &self.nodes[index]);
        let launch = Launch::new("dataplane", &config)
            .programs(self.placement.programs.as_deref())
            .cpu(self.placement.node_cpu)
            .arguments(arguments)
            .environment(&environment);
        self.nodes[index].start(launch, self.script.as_deref()).await;
    }

    /// `kill -9` of the first node.
    pub async fn kill_node(&mut self) {
        self.nodes[0].kill_9().await;
    }

    /// SIGTERM to the first node, and its end.
    pub async fn stop_node(&mut self) -> ExitStatus {
        self.nodes[0].stop().await
    }

    /// The first node's process, to be signalled and waited for by the test itself.
    pub fn take_node(&mut self) -> Process {
        self.nodes[0].take()
    }

    /// The first control plane's process, to be signalled and waited for by the test itself.
    pub fn take_control(&mut self) -> Process {
        self.controls[0].take()
    }
}

/// The variables of a program, with its name for the world's script.
fn environment(variables: &[(String, String)], plane: &Plane) -> Vec<(String, String)> {
    let mut all = variables.to_vec();
    all.push(("NAME".to_owned(), plane.name.clone()));
    all
}
