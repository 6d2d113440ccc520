//! The results of reloads: how many were applied or failed, and when the last one was applied.
//!
//! Process-wide, like the log: the program that reloads records, and every registry may show them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

static APPLIED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static LAST_FAILED: AtomicBool = AtomicBool::new(false);
/// Seconds since 1970; 0: none since the start.
static APPLIED_AT: AtomicU64 = AtomicU64::new(0);

/// Counts a reload.
pub fn record(is_applied: bool) {
    LAST_FAILED.store(!is_applied, Ordering::Relaxed);
    if is_applied {
        APPLIED.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        APPLIED_AT.store(now.as_secs(), Ordering::Relaxed);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
}

/// `countersign_reloads_total`, `countersign_reload_success` and
/// `countersign_reload_success_timestamp_seconds`.
#[derive(Debug)]
pub struct ReloadMetrics;

impl Collector for ReloadMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Reloads of the settings, by result";
        let mut reloads = out.encode_descriptor("reloads", help, None, MetricType::Counter)?;
        for (result, count) in [("applied", &APPLIED), ("failed", &FAILED)] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(reloads.encode_family(&[("result", result)])?)?;
        }
        let help = "Whether the last reload of the settings was applied; 1 before the first one";
        let success = ConstGauge::new(i64::from(!LAST_FAILED.load(Ordering::Relaxed)));
        success.encode(out.encode_descriptor("reload_success", help, None, MetricType::Gauge)?)?;
        let help =
            "When a reload of the settings was last applied, in seconds since 1970; 0 before the first one";
        let at = ConstGauge::new(APPLIED_AT.load(Ordering::Relaxed));
        at.encode(out.encode_descriptor("reload_success_timestamp_seconds", help, None, MetricType::Gauge)?)
    }
}
