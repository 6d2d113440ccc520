//! `countersign.tracing`, typed.

use std::path::PathBuf;
use std::time::Duration;

/// `countersign.tracing`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TracingSettings {
    /// `endpoint` and `tls`. `None`: requests are not traced.
    pub collector: Option<CollectorSettings>,
    /// `sampling_ratio`
    pub sampling_ratio: SamplingRatio,
    /// `parents`: whose `traceparent` is continued.
    pub parents: TraceParents,
    /// `service_name`: `service.name` of the resource.
    pub service_name: String,
    /// `resource`: its other attributes.
    pub resource: Vec<(String, String)>,
    /// `timeout`: of one export.
    pub timeout: Duration,
    /// `queue_size`: recorded requests that a worker keeps until they are sent.
    pub queue_size: usize,
}

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorSettings {
    /// `host:port`
    pub address: String,
    /// `None`: without TLS.
    pub tls: Option<CollectorTlsSettings>,
}

impl CollectorSettings {
    /// The host of `address`, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// `countersign.tracing.tls`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorTlsSettings {
    /// The CAs of the collector's certificate, PEM.
    pub ca: PathBuf,
    /// Certificate chain and private key of this node, PEM.
    pub pair: Option<(PathBuf, PathBuf)>,
}

/// Which traces are recorded, as OpenTelemetry's `TraceIdRatioBased` selects them: those whose low
/// 63 bits of the trace id are less than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SamplingRatio {
    /// The ratio times 2^63.
    bound: u64,
}

impl SamplingRatio {
    /// `None`: not a number from 0 to 1.
    pub fn new(ratio: f64) -> Option<Self> {
        const ALL: u64 = 1 << 63;
        let bound = if ratio == 1.0 { ALL } else { (ratio * ALL as f64) as u64 };
        (0.0..=1.0).contains(&ratio).then_some(Self { bound })
    }

    /// Whether a trace with these low 64 bits of its id is recorded.
    pub fn samples(self, id_low: u64) -> bool {
        id_low >> 1 < self.bound
    }
}

/// Whose `traceparent` is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TraceParents {
    /// That of each client.
    #[default]
    Any,
    /// That of clients whose certificate was verified.
    Verified,
    /// No client's.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_zero_and_one_are_exact() {
        let [none, all] = [0.0, 1.0].map(|ratio| SamplingRatio::new(ratio).unwrap());
        for id in [0, 1, 2, u64::MAX - 1, u64::MAX, 1 << 63] {
            assert!(!none.samples(id) && all.samples(id), "{id:x}");
        }
        for ratio in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert_eq!(SamplingRatio::new(ratio), None, "{ratio}");
        }
    }

    #[test]
    fn a_ratio_splits_the_ids_evenly() {
        let (ratio, ids) = (SamplingRatio::new(0.25).unwrap(), 10_000_u64);
        let sampled = (0..ids).filter(|nth| ratio.samples(nth * (u64::MAX / ids))).count();
        assert!((2_499..=2_501).contains(&sampled), "{sampled}");
    }
}
