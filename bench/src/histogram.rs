//! Latency samples in constant memory: a log-linear histogram.
//!
//! Values below 256 ns are exact; above, each power of two is cut into 128 equal parts, so a percentile is
//! never more than 0.8 % above the sample it stands for. Recording is a shift and an add: it must not
//! disturb the client it measures.

use std::time::Duration;

/// Values below this are their own bucket.
const EXACT: u64 = 256;
/// Parts each power of two is cut into: 2^7.
const PARTS_LOG2: u32 = 7;
const PARTS: usize = 1 << PARTS_LOG2;
/// Powers of two from 2^8 to 2^63.
const BUCKETS: usize = EXACT as usize + 56 * PARTS;

/// Durations in nanoseconds, counted into 7,424 buckets.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts one sample. More than 584 years counts as 584 years.
    pub fn record(&mut self, sample: Duration) {
        let nanos = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket_of(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.sum += u128::from(nanos);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// How many samples were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// True when nothing was recorded: then there is no percentile to ask for.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The smallest value that at least `share` (0.0 to 1.0) of the samples do not exceed; `None` when empty.
    /// Rounded up to its bucket's end (at most 0.8 %), but never beyond the largest sample.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        if self.is_empty() {
            return None;
        }
        let wanted = ((share.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(Duration::from_nanos(bucket_end(index).min(self.max)));
            }
        }
        Some(Duration::from_nanos(self.max))
    }

    /// The exact smallest sample.
    pub fn min(&self) -> Option<Duration> {
        (!self.is_empty()).then_some(Duration::from_nanos(self.min))
    }

    /// The exact largest sample.
    pub fn max(&self) -> Option<Duration> {
        (!self.is_empty()).then_some(Duration::from_nanos(self.max))
    }

    /// The exact arithmetic mean.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.sum.checked_div(u128::from(self.total))?;
        Some(Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)))
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < EXACT {
        return nanos as usize;
    }
    let power = nanos.ilog2();
    let part = (nanos >> (power - PARTS_LOG2)) as usize & (PARTS - 1);
    EXACT as usize + (power as usize - 8) * PARTS + part
}

/// The largest value that falls into the bucket.
fn bucket_end(index: usize) -> u64 {
    let Some(above) = index.checked_sub(EXACT as usize) else { return index as u64 };
    let shift = (above / PARTS) as u32 + 8 - PARTS_LOG2;
    let first = ((PARTS + above % PARTS) as u64) << shift;
    first + ((1u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_ends_at_most_one_part_above_its_values(nanos in any::<u64>()) {
            let end = bucket_end(bucket_of(nanos));
            prop_assert!(end >= nanos);
            prop_assert!((end - nanos) as f64 <= nanos as f64 / 128.0);
        }

        #[test]
        fn quantiles_stay_within_a_percent_of_the_sorted_samples(
            mut samples in proptest::collection::vec(1u64..10_000_000_000, 1..400),
            share in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            samples.iter().for_each(|nanos| histogram.record(Duration::from_nanos(*nanos)));
            samples.sort_unstable();
            let rank = ((share * samples.len() as f64).ceil() as usize).max(1) - 1;
            let exact = samples[rank] as f64;
            let told = histogram.quantile(share).unwrap().as_nanos() as f64;
            prop_assert!(told >= exact && told <= exact * 1.01, "{told} for {exact}");
            prop_assert_eq!(histogram.max().unwrap().as_nanos() as u64, *samples.last().unwrap());
            prop_assert_eq!(histogram.min().unwrap().as_nanos() as u64, samples[0]);
        }
    }

    #[test]
    fn an_empty_histogram_has_no_figures() {
        let histogram = Histogram::default();
        assert!(histogram.quantile(0.5).is_none() && histogram.mean().is_none() && histogram.max().is_none());
    }
}
