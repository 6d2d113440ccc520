//! Expiry of the process's own certificates and CA bundles: for `/status`, metrics, lint and the
//! log.
//!
//! [`CertificateMonitor`] lists the certificates of one process and refreshes their files.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pki::{Certificate, UnixTime, format_utc};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::credentials::ConfiguredFileRef;
use crate::reload::Reloader;

/// A certificate with fewer days left gets a warning.
pub const EXPIRY_WARNING_DAYS: i64 = 30;
/// Each certificate of a bundle up to this size is monitored. The system's bundle is larger, and
/// always has expired certificates.
pub const OPERATOR_BUNDLE_MAX: usize = 16;

const DAY: Duration = Duration::from_secs(86_400);
/// How often files are checked when no connection is made.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The expiry of an own certificate, or of the first certificate of a CA bundle to expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateExpiry {
    /// The setting that names the file.
    pub setting: &'static str,
    /// The file.
    pub path: String,
    /// The certificate's subject.
    pub subject: String,
    /// The serial number, upper-case hexadecimal.
    pub serial: String,
    /// notBefore in Unix seconds.
    pub not_before: u64,
    /// notAfter in Unix seconds.
    pub not_after: u64,
    /// Whole days until notAfter; negative after it.
    pub days_left: i64,
}

impl CertificateExpiry {
    /// The expiry of a certificate in `file`.
    pub fn new(file: ConfiguredFileRef<'_>, certificate: &Certificate, now: UnixTime) -> Self {
        let not_after = certificate.not_after().as_secs();
        Self {
            setting: file.setting,
            path: file.path.display().to_string(),
            subject: certificate.subject().to_owned(),
            serial: certificate.serial_hex(),
            not_before: certificate.not_before().as_secs(),
            not_after,
            days_left: days_left(not_after, now),
        }
    }

    /// Whether the certificate has expired.
    pub fn is_expired(&self) -> bool {
        self.days_left < 0
    }

    /// Whether the certificate has expired or expires within [`EXPIRY_WARNING_DAYS`].
    pub(crate) fn expires_soon(&self) -> bool {
        self.days_left < EXPIRY_WARNING_DAYS
    }

    /// A warning about the dates for operators; `None` when the certificate is valid for 30 more
    /// days.
    pub fn warning(&self) -> Option<String> {
        let at = |seconds| format_utc(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        let (path, subject, until) = (&self.path, &self.subject, at(self.not_after));
        let problem = if self.is_expired() {
            format!("is expired since {until}, so that peers reject it: replace it")
        } else if self.not_before > UnixTime::now().as_secs() {
            let from = at(self.not_before);
            format!("is not valid before {from}: check its dates and this machine's clock")
        } else if self.expires_soon() {
            format!("ends in {} days, at {until}: renew it", self.days_left)
        } else {
            return None;
        };
        Some(format!("{path}: the certificate {subject:?} {problem}"))
    }
}

/// Whole days from `now` to `not_after` (Unix seconds), rounded down: negative after it.
pub fn days_left(not_after: u64, now: UnixTime) -> i64 {
    let seconds = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    seconds(not_after).saturating_sub(seconds(now.as_secs())).div_euclid(86_400)
}

/// The state of one endpoint's certificate files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointCertificates {
    /// `admin`, `push`, `node` or `etcd`.
    pub name: &'static str,
    /// The own certificate in use.
    pub certificate: Option<CertificateExpiry>,
    /// The first certificate of the CA bundle in use to expire. `None` without a bundle, and for a
    /// bundle of more than 16 certificates.
    pub ca: Option<CertificateExpiry>,
    /// Why the current files are unusable.
    pub problem: Option<String>,
}

/// The certificate files of one endpoint, independent of its type of TLS configuration.
trait CertificateSource: Send + Sync {
    fn endpoint(&self, now: UnixTime) -> Option<EndpointCertificates>;
    fn refresh(&self, force: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

impl<T: Send + Sync + 'static> CertificateSource for Reloader<T> {
    fn endpoint(&self, now: UnixTime) -> Option<EndpointCertificates> {
        let current = self.in_use()?;
        let files = self.files();
        let leaf = files.pair.as_ref().zip(current.credentials.leaf());
        let bundle = &current.credentials.ca;
        let earliest = bundle
            .iter()
            .min_by_key(|certificate| certificate.not_after())
            .filter(|_| bundle.len() <= OPERATOR_BUNDLE_MAX);
        Some(EndpointCertificates {
            name: self.name(),
            certificate: leaf.map(|((cert, _), leaf)| CertificateExpiry::new(cert.by_ref(), leaf, now)),
            ca: files
                .ca
                .as_ref()
                .zip(earliest)
                .map(|(file, certificate)| CertificateExpiry::new(file.by_ref(), certificate, now)),
            problem: self.problem().map(|problem| problem.to_string()),
        })
    }

    fn refresh(&self, force: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            // Files that no connection has needed yet (etcd in clear) are not read.
            if self.in_use().is_none() {
                return;
            }
            if force {
                self.force_next_read();
            }
            // The reloader logs the error.
            let _ = self.refresh().await;
        })
    }
}

/// The certificates of this process. Clones share them.
#[derive(Clone, Default)]
pub struct CertificateMonitor(Arc<watch::Sender<Sources>>);

type Sources = Vec<Arc<dyn CertificateSource>>;

impl fmt::Debug for CertificateMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints()).finish()
    }
}

/// `certificate_not_after_timestamp_seconds`, `ca_certificate_not_after_timestamp_seconds` and
/// `certificate_reload_failed`.
impl Collector for CertificateMonitor {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let endpoints = self.endpoints();
        let not_after = |expiry: &CertificateExpiry| i64::try_from(expiry.not_after).unwrap_or(i64::MAX);
        type Value<'a> = &'a dyn Fn(&EndpointCertificates) -> Option<i64>;
        let metrics: [(&str, &str, Value<'_>); 3] = [
            (
                "certificate_not_after_timestamp_seconds",
                "End of our certificate, in seconds since the Unix epoch",
                &|endpoint| endpoint.certificate.as_ref().map(not_after),
            ),
            (
                "ca_certificate_not_after_timestamp_seconds",
                "End of the certificate that ends first in the CA bundle, in seconds since the Unix epoch",
                &|endpoint| endpoint.ca.as_ref().map(not_after),
            ),
            (
                "certificate_reload_failed",
                "Whether the certificate files as they are cannot be used, so that what they held before is",
                &|endpoint| Some(i64::from(endpoint.problem.is_some())),
            ),
        ];
        for (name, help, value) in metrics {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for endpoint in &endpoints {
                if let Some(value) = value(endpoint) {
                    ConstGauge::new(value)
                        .encode(family.encode_family(&[("certificate", endpoint.name)])?)?;
                }
            }
        }
        Ok(())
    }
}

impl CertificateMonitor {
    /// Adds the files of one endpoint.
    pub fn add<T: Send + Sync + 'static>(&mut self, reloader: &Reloader<T>) {
        self.0.send_modify(|sources| sources.push(Arc::new(reloader.clone())));
    }

    /// Adds the endpoints of `other`.
    pub fn add_all(&mut self, other: &Self) {
        let added = other.sources();
        self.0.send_modify(|sources| sources.extend(added));
    }

    /// Takes over the endpoints of `other`, for all clones.
    pub fn replace(&self, other: &Self) {
        let sources = other.sources();
        self.0.send_replace(sources);
    }

    fn sources(&self) -> Sources {
        self.0.borrow().clone()
    }

    /// Each endpoint whose files are in use. Reads no file.
    pub fn endpoints(&self) -> Vec<EndpointCertificates> {
        let now = UnixTime::now();
        self.sources().iter().filter_map(|source| source.endpoint(now)).collect()
    }

    /// Checks the files every ten seconds, reads them whenever `reload` changes, and logs
    /// certificates that expire within 30 days, at once and then daily. Never returns.
    pub async fn run(self, mut reload: watch::Receiver<u64>) {
        let mut warned = Instant::now();
        self.log_expiry();
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => self.refresh_all(false).await,
                () = next_reload(&mut reload) => {
                    self.refresh_all(true).await;
                    let names: Vec<_> = self.endpoints().iter().map(|endpoint| endpoint.name).collect();
                    tracing::info!(certificates = ?names, "certificate files were read again");
                }
            }
            if warned.elapsed() >= DAY {
                warned = Instant::now();
                self.log_expiry();
            }
        }
    }

    async fn refresh_all(&self, force: bool) {
        for source in self.sources() {
            source.refresh(force).await;
        }
    }

    fn log_expiry(&self) {
        for endpoint in self.endpoints() {
            for expiry in endpoint.certificate.iter().chain(&endpoint.ca) {
                if let Some(warning) = expiry.warning() {
                    let days_left = expiry.days_left;
                    tracing::warn!(certificate = endpoint.name, days_left, "{}: {warning}", expiry.setting);
                }
            }
        }
    }
}

/// Returns at the next change; never, when the sender is gone.
async fn next_reload(reload: &mut watch::Receiver<u64>) {
    if reload.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_left_are_rounded_down_and_may_be_negative() {
        let now = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let day = 86_400;
        for (not_after, at, days) in [
            (30 * day, 0, 30),
            (30 * day - 1, 0, 29),
            (day, day, 0),
            (day, day + 1, -1),
            (0, 10 * day, -10),
            (u64::MAX, 0, i64::MAX / 86_400),
        ] {
            assert_eq!(days_left(not_after, now(at)), days, "{not_after} at {at}");
        }
    }
}
