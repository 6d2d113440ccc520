//! The process metrics that Prometheus' own clients export, under their names.
//!
//! Invariant: they come from `/proc/self` at each scrape, on the thread of the status listener;
//! what cannot be read there is left out.

use std::fmt;

use procfs::WithCurrentSystemInfo;
use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The metrics of this process.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    /// When the kernel started it, in seconds since 1970.
    started: Option<f64>,
}

impl ProcessMetrics {
    pub(crate) fn of_this_process() -> Self {
        Self { started: started() }
    }
}

fn started() -> Option<f64> {
    let stat = Process::myself().and_then(|process| process.stat()).ok()?;
    let booted = procfs::boot_time_secs().ok()?;
    Some(booted as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64)
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(process) = Process::myself() else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, value: Option<u64>| match value {
            Some(value) => {
                let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                value.encode(out.encode_descriptor(name, help, None, MetricType::Gauge)?)
            }
            None => Ok(()),
        };
        let stat = process.stat().ok();
        let help = "Resident memory, in bytes";
        let resident = stat.as_ref().map(|stat| stat.rss_bytes().get());
        gauge("process_resident_memory_bytes", help, resident)?;
        let help = "Virtual memory, in bytes";
        gauge("process_virtual_memory_bytes", help, stat.as_ref().map(|stat| stat.vsize))?;
        let help = "Open file descriptors";
        gauge("process_open_fds", help, process.fd_count().ok().map(|count| count as u64))?;
        let help = "The limit on open file descriptors";
        let limit = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(limit) => Some(limit),
            LimitValue::Unlimited => None,
        });
        gauge("process_max_fds", help, limit)?;
        let help = "Threads";
        let threads = stat.as_ref().and_then(|stat| u64::try_from(stat.num_threads).ok());
        gauge("process_threads", help, threads)?;
        if let Some(started) = self.started {
            let help = "When the process started, in seconds since 1970";
            let name = "process_start_time_seconds";
            ConstGauge::new(started).encode(out.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if let Some(stat) = stat {
            let help = "CPU time of all threads, in user and system mode";
            let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
            let family = out.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(family)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    fn value(name: &str) -> f64 {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::of_this_process()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    #[test]
    fn the_metrics_are_those_of_this_process() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!(started > now - 24.0 * 3600.0 && started < now + 2.0, "{started}, and now it is {now}");
        let before = value("process_open_fds");
        let opened: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close a few.
        assert!(value("process_open_fds") >= before + 30.0);
        drop(opened);
        assert!(value("process_max_fds") >= 100.0 && value("process_threads") >= 2.0);
        let resident = value("process_resident_memory_bytes");
        assert!(resident > 1e5 && value("process_virtual_memory_bytes") >= resident);
        let cpu = value("process_cpu_seconds_total");
        let mut sum = 0_u64;
        while value("process_cpu_seconds_total") < cpu + 0.05 {
            sum = (0..100_000_u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
    }
}
