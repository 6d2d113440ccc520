//! What the status listener shows of upgrades.

use std::sync::Arc;

use process::handover::Generations;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::metrics::counter::Counter;
use super::metrics::encode_family;

/// This process's place in the chain of upgrades.
#[derive(Debug)]
pub(crate) struct Upgrades {
    pub(crate) generations: Generations,
    /// Upgrades that failed in this process.
    pub(crate) failed: Counter,
}

impl Upgrades {
    pub(crate) fn new(generations: Generations) -> Arc<Self> {
        Arc::new(Self { generations, failed: Counter::default() })
    }

    /// The process ids of the earlier generations that drain.
    pub(crate) fn draining(&self) -> Vec<u32> {
        self.generations.draining().iter().map(|process| process.pid).collect()
    }
}

#[derive(Debug)]
pub(crate) struct UpgradeMetrics(pub(crate) Arc<Upgrades>);

impl Collector for UpgradeMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // A process that hands over is not scraped any more: its successor counts for the chain.
        let succeeded = self.0.generations.number().saturating_sub(1);
        let results = [([("result", "ok")], succeeded), ([("result", "failed")], self.0.failed.get())];
        let help = "Upgrades, by result; ok: over all generations";
        encode_family(&mut out, "upgrades", help, results)
    }
}
