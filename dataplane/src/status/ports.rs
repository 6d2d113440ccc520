//! The listeners for operators: their addresses, sockets and access rules.
//!
//! A port that the file names is bound before all others and released when they are, so that a
//! successor can start while this process drains. Invariant: a port that is only open by default
//! keeps no data plane from starting.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use conf::{DefaultListener, Settings};
use mtls::{ConfiguredFile, FileError, MutualTlsFiles, StatusAccessRules};
use process::handover::OfferedSocket;
use telemetry::status::{Pages, StatusAccessHandle, StatusEndpoint, StatusListener, StatusServer, serve};

use super::StatusContent;
use crate::proxy::listener::{self, BindError, BindRetry};

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorPort {
    Status,
    Control,
    Prometheus,
}

impl OperatorPort {
    /// The setting, and the name of the socket in a hand-over.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Status => conf::STATUS,
            Self::Control => conf::CONTROL,
            Self::Prometheus => conf::PROMETHEUS,
        }
    }
}

/// The listeners of the settings.
pub(crate) fn configured(settings: &Settings) -> Vec<(OperatorPort, DefaultListener)> {
    let status = settings.apisix.status.map(|address| DefaultListener { address, is_named: true });
    let all = [
        (OperatorPort::Status, status),
        (OperatorPort::Control, settings.apisix.control),
        (OperatorPort::Prometheus, settings.prometheus.as_ref().map(|prometheus| prometheus.listener)),
    ];
    all.into_iter().filter_map(|(port, listener)| Some((port, listener?))).collect()
}

/// Bound listeners.
#[derive(Debug, Default)]
pub(crate) struct BoundPorts(Vec<(OperatorPort, StatusListener)>);

impl BoundPorts {
    /// Takes over the inherited sockets of the ports that the file names, or binds them.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub(crate) fn bind_named(
        &mut self,
        settings: &Settings,
        retry: &BindRetry,
        inherited: &mut dyn FnMut(&'static str, SocketAddr) -> Option<TcpListener>,
    ) -> Result<(), BindError> {
        let named = configured(settings).into_iter().filter(|(_, listener)| listener.is_named);
        for (port, DefaultListener { address, .. }) in named {
            let socket = match inherited(port.key(), address) {
                Some(socket) => socket,
                None => listener::bind_exclusive(port.key(), address, retry)?,
            };
            self.add(port, address, socket)?;
        }
        Ok(())
    }

    /// The same for those that are open by default. After the listeners for clients: a process that
    /// stops has left its ports by then. A port in use is a warning.
    pub(crate) fn bind_defaults(
        &mut self,
        settings: &Settings,
        inherited: &mut dyn FnMut(&'static str, SocketAddr) -> Option<TcpListener>,
    ) {
        let defaults = configured(settings).into_iter().filter(|(_, listener)| !listener.is_named);
        for (port, DefaultListener { address, .. }) in defaults {
            let socket = match inherited(port.key(), address) {
                Some(socket) => Ok(socket),
                None => listener::try_bind(port.key(), address),
            };
            if let Err(error) = socket.and_then(|socket| self.add(port, address, socket)) {
                tracing::warn!("{error}; going on without this listener, which is open by default only");
            }
        }
    }

    fn add(&mut self, port: OperatorPort, addr: SocketAddr, socket: TcpListener) -> Result<(), BindError> {
        let failed = |error| BindError { key: port.key(), addr, error, stopped: false };
        self.0.push((port, StatusListener::from_std(socket).map_err(failed)?));
        Ok(())
    }

    /// Serves the pages.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub(crate) fn serve(
        self,
        settings: &Settings,
        access: StatusAccessHandle,
        content: &StatusContent<'_>,
    ) -> io::Result<OperatorPorts> {
        let mut ports = OperatorPorts { server: None, sockets: Vec::new(), addresses: Vec::new(), access };
        let mut endpoints = Vec::with_capacity(self.0.len());
        for (port, listener) in self.0 {
            ports.sockets.push((port, listener.try_clone()?));
            ports.addresses.push((port, listener.address()));
            let pages: Arc<dyn Pages> = match (port, &settings.prometheus) {
                (OperatorPort::Status, _) => Arc::new(content.status_page()),
                (OperatorPort::Control, _) => Arc::new(content.control_api()),
                (OperatorPort::Prometheus, Some(prometheus)) => Arc::new(content.apisix_metrics(prometheus)),
                // There is no such listener then.
                (OperatorPort::Prometheus, None) => continue,
            };
            endpoints.push(StatusEndpoint { listener, pages });
        }
        if !endpoints.is_empty() {
            ports.server = Some(serve(endpoints, &ports.access)?);
        }
        Ok(ports)
    }
}

/// The serving listeners.
#[derive(Debug)]
pub(crate) struct OperatorPorts {
    server: Option<StatusServer>,
    /// The sockets, for a successor.
    sockets: Vec<(OperatorPort, TcpListener)>,
    addresses: Vec<(OperatorPort, SocketAddr)>,
    access: StatusAccessHandle,
}

impl OperatorPorts {
    pub(crate) fn address(&self, port: OperatorPort) -> Option<SocketAddr> {
        self.addresses.iter().find(|(known, _)| *known == port).map(|(_, address)| *address)
    }

    /// The sockets, for a successor.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn offer(&self) -> io::Result<Vec<OfferedSocket>> {
        let offered = self
            .sockets
            .iter()
            .map(|(port, socket)| OfferedSocket::new(port.key(), socket.local_addr()?, socket));
        offered.collect()
    }

    /// Replaces the access rules.
    pub(crate) fn set_access(&self, rules: &StatusAccessRules) {
        self.access.replace(rules.access.clone());
    }

    /// Closes the listeners: another process can bind their addresses when this returns, unless a
    /// successor has the sockets.
    pub(crate) fn close(&mut self) {
        self.sockets.clear();
        if let Some(server) = self.server.take() {
            server.close();
        }
    }
}

/// The access rules of the settings, with their certificate files.
///
/// # Errors
/// Names the file and the problem.
pub(crate) fn access_rules(settings: &Settings) -> Result<StatusAccessRules, FileError> {
    let status = &settings.countersign.status;
    let tls = status.tls.as_ref().map(|tls| MutualTlsFiles {
        cert: ConfiguredFile::new(conf::STATUS_CERT, &tls.cert),
        key: ConfiguredFile::new(conf::STATUS_KEY, &tls.key),
        ca: ConfiguredFile::new(conf::STATUS_CA, &tls.ca),
    });
    StatusAccessRules::load(status.allow.clone(), tls)
}
