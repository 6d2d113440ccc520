//! The metrics of the certificates and CRLs in a snapshot, for both planes.
//!
//! They are computed when a snapshot is first scraped, on the thread of the status listener, and
//! kept until it changes. Invariant: of a large and busy store they cost at most one hundredth of a
//! core, because an older snapshot is shown for so long.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use model::{Expiry, ExpiryKind, ExpirySummary, Snapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The next summary is computed at the earliest after so many times the time that the last one
/// took.
const PAUSE_FACTOR: u32 = 100;

/// The certificates and CRLs of the current snapshot; at most `series_max` of each kind have a
/// series, the soonest to end.
pub struct SnapshotExpiry {
    /// `stored` or `served`.
    adjective: &'static str,
    snapshot: Box<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
    series_max: Box<dyn Fn() -> usize + Send + Sync>,
    cached: Mutex<Option<Cached>>,
}

struct Cached {
    of: Weak<Snapshot>,
    series_max: usize,
    summary: Arc<ExpirySummary>,
    /// Until then it is shown for later snapshots, too.
    until: Instant,
}

impl fmt::Debug for SnapshotExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotExpiry").field("adjective", &self.adjective).finish_non_exhaustive()
    }
}

impl SnapshotExpiry {
    /// Metrics named `countersign_{adjective}_...`.
    pub fn new(
        adjective: &'static str,
        snapshot: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
        series_max: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        let (snapshot, series_max) = (Box::new(snapshot), Box::new(series_max));
        Self { adjective, snapshot, series_max, cached: Mutex::new(None) }
    }

    /// The summary of the current snapshot, or of one before it that is not old.
    pub fn summary(&self) -> Arc<ExpirySummary> {
        let (snapshot, series_max) = ((self.snapshot)(), (self.series_max)());
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_current = |cached: &&Cached| {
            let is_same = std::ptr::eq(cached.of.as_ptr(), Arc::as_ptr(&snapshot));
            cached.series_max == series_max && (is_same || now < cached.until)
        };
        if let Some(cached) = cached.as_ref().filter(is_current) {
            return Arc::clone(&cached.summary);
        }
        let summary = Arc::new(ExpirySummary::new(&snapshot, series_max));
        let until = Instant::now() + now.elapsed() * PAUSE_FACTOR;
        let of = Arc::downgrade(&snapshot);
        *cached = Some(Cached { of, series_max, summary: Arc::clone(&summary), until });
        summary
    }
}

impl Collector for SnapshotExpiry {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let summary = self.summary();
        self.encode_kinds(&mut out, &summary)?;
        self.encode_certificates(&mut out, &summary)?;
        self.encode_crls(&mut out, &summary)
    }
}

impl SnapshotExpiry {
    fn name(&self, rest: &str) -> String {
        format!("{}_{rest}", self.adjective)
    }

    fn encode_kinds(
        &self,
        out: &mut DescriptorEncoder<'_>,
        summary: &ExpirySummary,
    ) -> Result<(), fmt::Error> {
        let help = "Certificates and CRLs in resources, by use; one that resources share counts for each";
        let name = self.name("certificates");
        let mut counts = out.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for of in &summary.kinds {
            let labels = [("kind", of.kind.as_str())];
            ConstGauge::new(gauge(of.count)).encode(counts.encode_family(&labels)?)?;
        }
        let help = "End of the certificate, or nextUpdate of the CRL, that ends first, by use, in seconds since the Unix epoch";
        let name = self.name("certificates_earliest_not_after_timestamp_seconds");
        let mut earliest = out.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for of in &summary.kinds {
            if let Some(first) = of.soonest.first() {
                let labels = [("kind", of.kind.as_str())];
                ConstGauge::new(gauge(first.end)).encode(earliest.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_certificates(
        &self,
        out: &mut DescriptorEncoder<'_>,
        summary: &ExpirySummary,
    ) -> Result<(), fmt::Error> {
        let help =
            "End of a certificate in a resource, in seconds since the Unix epoch; those that end soonest";
        let name = self.name("certificate_not_after_timestamp_seconds");
        let mut ends = out.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for of in summary.kinds.iter().filter(|of| of.kind != ExpiryKind::Crl) {
            for Expiry { resource, subject, fingerprint, end } in &of.soonest {
                let labels = [
                    ("kind", of.kind.as_str()),
                    ("resource", &resource.to_string()),
                    ("subject", subject),
                    ("fingerprint", fingerprint),
                ];
                ConstGauge::new(gauge(*end)).encode(ends.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_crls(
        &self,
        out: &mut DescriptorEncoder<'_>,
        summary: &ExpirySummary,
    ) -> Result<(), fmt::Error> {
        let help =
            "nextUpdate of a CRL in a resource, in seconds since the Unix epoch; those that end soonest";
        let name = self.name("crl_next_update_timestamp_seconds");
        let mut ends = out.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        // A policy may have several CRLs of one issuer: the first to end is shown.
        let mut shown = HashSet::new();
        let crls = summary.kinds.iter().filter(|of| of.kind == ExpiryKind::Crl);
        for Expiry { resource, subject, end, .. } in crls.flat_map(|of| &of.soonest) {
            if shown.insert((resource, subject)) {
                let labels = [("resource", &*resource.to_string()), ("issuer", subject)];
                ConstGauge::new(gauge(*end)).encode(ends.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::{Id, KeyPair, Resource, Ssl, Versioned};
    use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
    use pki::{ClientAuth, ClientAuthInput, UnixTime};
    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::*;

    fn at(days: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400))
    }

    fn site(id: &str, ca: &Authority, days: u32) -> Versioned {
        let issued = ca.issue(&LeafSpec::server("a.test").valid(at(20_000), days)).unwrap();
        let pair = KeyPair { key: Arc::new(issued.key().unwrap()), chain: issued.chain };
        let crls =
            [30, 20].map(|days| ca.crl(&CrlSpec::new().between(at(20_000), at(20_000 + days))).unwrap());
        let input = ClientAuthInput {
            anchors: vec![ca.certificate().clone()],
            crls: crls.into(),
            ..Default::default()
        };
        let client = Some(Arc::new(ClientAuth::new(input).unwrap()));
        let ssl = Ssl { pairs: vec![pair], client, ..Ssl::new(Id::parse(id).unwrap()) };
        Versioned { resource: Resource::Ssl(Arc::new(ssl)), version: 1 }
    }

    fn snapshot(sites: Vec<Versioned>) -> Arc<Snapshot> {
        Arc::new(Snapshot::from_resources(1, sites))
    }

    /// The samples with this text.
    fn samples(registry: &Registry, text: &str) -> Vec<String> {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, registry).unwrap();
        let samples = out.lines().filter(|line| !line.starts_with('#') && line.contains(text));
        samples.map(str::to_owned).collect()
    }

    #[test]
    fn series_follow_the_snapshot_and_are_bounded() {
        let ca = Authority::root(&AuthoritySpec::new("a \"quoted\" CA")).unwrap();
        let (publish, current) = watch::channel(snapshot(vec![site("1", &ca, 10), site("2", &ca, 5)]));
        let expiry = SnapshotExpiry::new("stored", move || Arc::clone(&current.borrow()), || 1);
        let mut registry = Registry::with_prefix("countersign");
        registry.register_collector(Box::new(expiry));
        let end = |days: u64| (days * 86_400).to_string();

        let ends = samples(&registry, "stored_certificate_not_after_timestamp_seconds{kind=\"server\"");
        let [only] = ends.as_slice() else { panic!("{ends:?}") };
        assert!(only.contains("resource=\"ssls/2\",subject=\"CN=a.test\",fingerprint=\""), "{only}");
        assert!(only.ends_with(&end(20_005)), "{only}");
        let counts = samples(&registry, "stored_certificates{kind=\"server\"} 2");
        assert_eq!(counts.len(), 1, "what has no series is counted");
        let crls = samples(&registry, "stored_crl_next_update_timestamp_seconds");
        let [only] = crls.as_slice() else { panic!("one for each issuer: {crls:?}") };
        assert!(only.contains("resource=\"ssls/") && only.ends_with(&end(20_020)), "{only}");
        assert!(only.contains(r#"issuer="CN=a \\\"quoted\\\" CA""#), "{only}");

        publish.send_replace(snapshot(vec![site("1", &ca, 10)]));
        // A summary of so few takes microseconds, and is kept a hundred times as long.
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = "stored_certificates_earliest_not_after_timestamp_seconds{kind=\"server\"}";
        while !samples(&registry, first).iter().all(|sample| sample.ends_with(&end(20_010))) {
            assert!(Instant::now() < deadline, "{:?}", samples(&registry, first));
            std::thread::yield_now();
        }
        assert!(samples(&registry, "ssls/2").is_empty(), "series end with their resource");
    }
}
