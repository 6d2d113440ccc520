//! Sends the spans of recorded requests to a collector, by OTLP over gRPC.
//!
//! It runs on the push client's thread: [`exporter`] takes requests from the workers' queues,
//! [`otlp`] makes spans of them, [`collector`] connects. Invariant: no worker waits for it, and
//! what it cannot send is dropped and counted.

mod collector;
mod exporter;
mod otlp;

use std::sync::Arc;
use std::time::Duration;

use conf::{CollectorTlsSettings, Settings};
use mtls::{ConfiguredFile, CredentialFiles, FileError, Reloader};
use opentelemetry_proto::tonic::resource::v1::Resource;
use rustls::pki_types::ServerName;

use self::collector::CollectorTls;
pub(crate) use self::exporter::TraceExporter;

/// Where spans are sent.
#[derive(Debug)]
pub(crate) struct ExportSettings {
    /// `host:port`
    address: String,
    tls: Option<ExportTls>,
    resource: Resource,
    /// Of one export.
    timeout: Duration,
}

#[derive(Debug)]
struct ExportTls {
    files: Reloader<CollectorTls>,
    server_name: ServerName<'static>,
}

/// `countersign.tracing` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("countersign.tracing.endpoint: {host:?} is no host name: {problem}")]
    Host { host: String, problem: String },
}

impl ExportSettings {
    /// Reads the files of TLS towards the collector. `None`: requests are not traced.
    ///
    /// # Errors
    /// [`ExportError`].
    pub(crate) fn load(settings: &Settings) -> Result<Option<Arc<Self>>, ExportError> {
        let tracing = &settings.countersign.tracing;
        let Some(collector) = &tracing.collector else { return Ok(None) };
        let tls = collector.tls.as_ref().map(|tls| export_tls(tls, collector.host())).transpose()?;
        let resource = otlp::resource(tracing, &settings.countersign.node.name);
        Ok(Some(Arc::new(Self {
            address: collector.address.clone(),
            tls,
            resource,
            timeout: tracing.timeout,
        })))
    }

    /// The files of TLS towards the collector, for the monitor of certificates.
    pub(crate) fn files(&self) -> Option<&Reloader<CollectorTls>> {
        self.tls.as_ref().map(|tls| &tls.files)
    }
}

fn export_tls(tls: &CollectorTlsSettings, host: &str) -> Result<ExportTls, ExportError> {
    let server_name = ServerName::try_from(host.to_owned())
        .map_err(|error| ExportError::Host { host: host.to_owned(), problem: error.to_string() })?;
    let ca = ConfiguredFile::new("countersign.tracing.tls.ca", &tls.ca);
    let pair = tls.pair.as_ref().map(|(cert, key)| {
        let file = ConfiguredFile::new;
        (file("countersign.tracing.tls.cert", cert), file("countersign.tracing.tls.key", key))
    });
    let files = CredentialFiles { pair, ca: Some(ca.clone()), required_dns_name: None };
    let files = Reloader::new("collector", files, move |contents| CollectorTls::new(&ca, contents));
    files.load()?;
    Ok(ExportTls { files, server_name })
}
