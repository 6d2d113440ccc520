//! One program of a world: its process while it runs, its ports while it does not, and its log over
//! all starts.

use std::net::SocketAddr;
use std::process::ExitStatus;

use serde_json::Value;

use crate::ports::Reservation;
use crate::process::{Launch, Log, Process, Successor};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Control,
    Node,
}

impl Program {
    fn listeners(self) -> &'static [&'static str] {
        match self {
            Self::Control => &["admin", "push", "status"],
            Self::Node => &["http", "https", "status", "prometheus", "control"],
        }
    }
}

pub(super) struct Plane {
    program: Program,
    pub(super) name: String,
    process: Option<Process>,
    /// The processes that took over from it, the newest last.
    successors: Vec<Successor>,
    /// The addresses of its first start, which later ones use again.
    addresses: Option<Value>,
    /// Reserve its ports while it is down.
    held: Vec<Reservation>,
    pub(super) log: Log,
}

impl Plane {
    pub(super) fn new(program: Program, name: &str) -> Self {
        let name = name.to_owned();
        Self {
            program,
            name,
            process: None,
            successors: Vec::new(),
            addresses: None,
            held: Vec::new(),
            log: Log::default(),
        }
    }

    /// The n-th address of one kind of listener.
    pub(super) fn address(&self, listener: &str, index: usize) -> SocketAddr {
        let addresses = self.addresses.as_ref().unwrap_or_else(|| panic!("{} never ran", self.name));
        let value = &addresses[listener];
        let text = value.as_str().or_else(|| value[index].as_str());
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            panic!("no {listener} address in the ready line of {}: {addresses}", self.name)
        })
    }

    /// 0 before its first start, and for a listener that it does not have.
    pub(super) fn known_port(&self, listener: &str) -> u16 {
        let is_known = self.addresses.as_ref().is_some_and(|addresses| !addresses[listener].is_null());
        if is_known { self.address(listener, 0).port() } else { 0 }
    }

    pub(super) fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    pub(super) fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    /// Hands the process over.
    pub(super) fn take(&mut self) -> Process {
        self.process.take().unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    /// Reserves ports before the first start.
    pub(super) fn reserve(&mut self) {
        let listeners = self.program.listeners();
        self.held = listeners.iter().map(|_| Reservation::any()).collect();
        let addresses = listeners
            .iter()
            .zip(&self.held)
            .map(|(listener, held)| ((*listener).to_owned(), held.address().to_string().into()));
        self.addresses = Some(Value::Object(addresses.collect()));
    }

    pub(super) async fn start(&mut self, launch: Launch<'_>, script: Option<&str>) {
        let launcher = script.map(|script| ["bash", "-c", script, "bash"]);
        let launcher = launcher.as_ref().map_or(&[][..], |launcher| launcher);
        let process = launch.through(launcher).start(&self.log).await;
        self.addresses.get_or_insert_with(|| process.ready().clone());
        self.process = Some(process);
        self.held.clear();
    }

    /// Waits for the ready line of the next successor.
    pub(super) async fn succeeded(&mut self) {
        let next = self.process().successor(self.successors.len() + 1).await;
        self.successors.push(next);
    }

    /// The processes that took over from the first one, the newest last.
    pub(super) fn successors(&self) -> &[Successor] {
        &self.successors
    }

    pub(super) async fn kill_9(&mut self) {
        self.take().kill_9().await;
        self.hold();
    }

    pub(super) async fn stop(&mut self) -> ExitStatus {
        let status = self.take().stop().await;
        self.hold();
        status
    }

    /// Reserves its ports until the next start.
    fn hold(&mut self) {
        let listeners = self.program.listeners().iter().filter(|listener| self.known_port(listener) != 0);
        self.held = listeners.map(|listener| Reservation::of(self.address(listener, 0))).collect();
    }

    pub(super) fn print_log(&self) {
        self.log.print(&self.name);
    }
}
