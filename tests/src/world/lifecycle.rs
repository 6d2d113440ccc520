//! Starts, kills and stops the programs of a world.

use std::process::ExitStatus;

use serde_json::json;

use super::World;
use super::plane::{Plane, Program};
use crate::credentials::Credential;
use crate::process::{ExitOutput, Launch, Process, Successor, run_to_end};

impl World {
    /// Writes the current settings and starts the control plane, at the same ports as before.
    pub async fn start_control(&mut self) {
        self.start_control_at(0).await;
    }

    pub async fn start_control_at(&mut self, index: usize) {
        let config = self.write_config(&self.controls[index].name);
        let environment = environment(&self.control_environment, &self.controls[index]);
        let launch = Launch::new("controlplane", &config)
            .programs(self.placement.programs.as_deref())
            .cpu(self.placement.control_cpu)
            .environment(&environment);
        self.controls[index].start(launch, self.script.as_deref()).await;
    }

    /// `controlplane reload` with the current settings; the exit status and what it prints.
    pub async fn reload_control_at(&self, index: usize) -> ExitOutput {
        self.command_control(index, "reload").await
    }

    /// `controlplane upgrade` with the current settings. The successor ends with the returned
    /// value.
    pub async fn upgrade_control_at(&self, index: usize) -> Successor {
        let output = self.command_control(index, "upgrade").await;
        let pid = output
            .stdout
            .strip_prefix("the control plane is process ")
            .and_then(|text| text.split(' ').next()?.parse::<u32>().ok());
        match pid {
            Some(pid) if output.status.success() => Successor::new(json!({"pid": pid})),
            _ => panic!("{output:?}"),
        }
    }

    async fn command_control(&self, index: usize, verb: &str) -> ExitOutput {
        let config = self.write_config(&self.controls[index].name);
        run_to_end("controlplane", &[verb, "-c", &config.to_string_lossy()], self.folder()).await
    }

    /// `kill -9`.
    pub async fn kill_control(&mut self) {
        self.kill_control_at(0).await;
    }

    pub async fn kill_control_at(&mut self, index: usize) {
        self.controls[index].kill_9().await;
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop_control(&mut self) -> ExitStatus {
        self.stop_control_at(0).await
    }

    pub async fn stop_control_at(&mut self, index: usize) -> ExitStatus {
        self.controls[index].stop().await
    }

    /// Starts another data plane, with its own certificate and last-good file.
    pub async fn add_node(&mut self, name: &str) {
        let credential = self.credentials.node(name);
        self.add_node_with(name, &credential).await;
    }

    /// The same with this push certificate.
    pub async fn add_node_with(&mut self, name: &str, credential: &Credential) {
        self.write_credential(name, credential);
        self.nodes.push(Plane::new(Program::Node, name));
        self.start_node_at(self.nodes.len() - 1, &[]).await;
    }

    /// Restarts the first node at the same ports.
    pub async fn start_node(&mut self) {
        self.start_node_with(&[]).await;
    }

    /// The same with these arguments.
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

    /// `kill -9`.
    pub async fn kill_node(&mut self) {
        self.nodes[0].kill_9().await;
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop_node(&mut self) -> ExitStatus {
        self.nodes[0].stop().await
    }

    /// Runs `dataplane upgrade` for the first node, with the current settings.
    pub async fn try_upgrade_node(&self) -> ExitOutput {
        let config = self.write_config(&self.nodes[0].name);
        let config = config.to_str().expect("a path in UTF-8");
        run_to_end("dataplane", &["upgrade", "-c", config], self.folder()).await
    }

    /// The same, and waits until the successor is ready.
    pub async fn upgrade_node(&mut self) -> &Successor {
        let output = self.try_upgrade_node().await;
        assert!(output.status.success(), "{output:?}\n{}", self.node_log().text());
        self.nodes[0].succeeded().await;
        self.node_successors().last().expect("there is one now")
    }

    /// The processes that took over from the first node, the newest last.
    pub fn node_successors(&self) -> &[Successor] {
        self.nodes[0].successors()
    }

    /// Waits for the ready line of the first node's next successor.
    pub async fn node_succeeded(&mut self) -> &Successor {
        self.nodes[0].succeeded().await;
        self.node_successors().last().expect("there is one now")
    }

    /// The first process of the first node, which may drain.
    pub fn node_process(&mut self) -> &mut Process {
        self.nodes[0].process_mut()
    }

    /// Changes the environment of the node for its next start.
    pub fn change_node_environment(&mut self, name: &str, value: &str) {
        self.node_environment.retain(|(known, _)| known != name);
        self.node_environment.push((name.to_owned(), value.to_owned()));
    }

    /// Hands the process over to the test, which signals it and waits.
    pub fn take_node(&mut self) -> Process {
        self.nodes[0].take()
    }

    /// Hands the process over to the test, which signals it and waits.
    pub fn take_control(&mut self) -> Process {
        self.controls[0].take()
    }
}

/// The environment of a program, with its name for the world's script.
fn environment(variables: &[(String, String)], plane: &Plane) -> Vec<(String, String)> {
    let mut all = variables.to_vec();
    all.push(("NAME".to_owned(), plane.name.clone()));
    all
}
