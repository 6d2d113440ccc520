//! Durations in buckets with fixed bounds.
//!
//! Invariant: one thread writes a histogram, as with counters. Its index costs a table look-up and
//! one comparison, whatever the duration.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::counter::Counter;

const MILLIS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLIS;

/// The upper bounds of the buckets but the last, in nanoseconds: those of APISIX's
/// `apisix_http_latency`, and three below its first. Each is twice the one before it, or more.
pub const BOUNDS: [u64; 18] = [
    MILLIS / 10,
    MILLIS / 5,
    MILLIS / 2,
    MILLIS,
    2 * MILLIS,
    5 * MILLIS,
    10 * MILLIS,
    20 * MILLIS,
    50 * MILLIS,
    100 * MILLIS,
    200 * MILLIS,
    500 * MILLIS,
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    60 * SECOND,
];

/// The buckets, the last one without a bound.
const BUCKETS: usize = BOUNDS.len() + 1;

/// By the number of bits of a duration: the first bucket that one with as many may be in. The next
/// one is the only other, since no two bounds have the same number of bits.
const FIRST_BUCKET: [u8; 65] = first_buckets();

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // evaluated by the compiler
const fn first_buckets() -> [u8; 65] {
    let mut first = [0; 65];
    let (mut bits, mut bucket) = (1, 0);
    while bits <= 64 {
        let smallest = 1_u64 << (bits - 1);
        while bucket < BOUNDS.len() && BOUNDS[bucket] < smallest {
            bucket += 1;
        }
        first[bits] = bucket as u8;
        bits += 1;
    }
    first
}

fn bucket_of(nanos: u64) -> usize {
    let bits = 64 - nanos.leading_zeros() as usize;
    let first = FIRST_BUCKET.get(bits).map_or(0, |first| usize::from(*first));
    first + usize::from(BOUNDS.get(first).is_some_and(|bound| nanos > *bound))
}

/// Durations of one thread.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    /// In nanoseconds.
    sum: Counter,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(nanos)) {
            bucket.inc();
        }
        self.sum.inc_by(nanos);
    }

    /// What has been counted.
    pub fn totals(&self) -> HistogramTotals {
        let mut totals = HistogramTotals::default();
        totals.add(self);
        totals
    }
}

/// The sum of several histograms.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HistogramTotals {
    buckets: [u64; BUCKETS],
    sum: Duration,
}

impl HistogramTotals {
    /// Adds a histogram.
    pub fn add(&mut self, histogram: &Histogram) {
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.get();
        }
        self.sum += Duration::from_nanos(histogram.sum.get());
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of the durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The upper bound of each bucket, and the durations in it that no bucket before it has.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let bounds = BOUNDS.into_iter().map(Duration::from_nanos).chain([Duration::MAX]);
        bounds.zip(self.buckets)
    }

    /// Encodes it as a Prometheus histogram, in seconds.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode_in(&mut encoder, Duration::from_secs(1))
    }

    /// As [`Self::encode`], in another unit.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn encode_in(&self, encoder: &mut MetricEncoder<'_>, unit: Duration) -> fmt::Result {
        let unit = unit.as_nanos() as f64;
        let bound = |bound: Duration| match bound {
            Duration::MAX => f64::INFINITY,
            bound => bound.as_nanos() as f64 / unit,
        };
        let buckets: Vec<_> = self.buckets().map(|(end, count)| (bound(end), count)).collect();
        let sum = self.sum.as_nanos() as f64 / unit;
        encoder.encode_histogram::<NoLabelSet>(sum, self.count(), &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_bounds_have_the_same_number_of_bits() {
        assert!(BOUNDS.windows(2).all(|pair| pair[0].leading_zeros() > pair[1].leading_zeros()));
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_that_has_it() {
        let expected = |nanos: u64| BOUNDS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS.len());
        let near = |at: u64| [at.saturating_sub(1), at, at.saturating_add(1)];
        let values = BOUNDS.into_iter().chain((0..64).map(|bits| 1 << bits)).chain([u64::MAX]);
        for nanos in values.flat_map(near) {
            assert_eq!(bucket_of(nanos), expected(nanos), "{nanos}");
        }
    }

    #[test]
    fn totals_add_histograms() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.observe(Duration::from_millis(3));
        b.observe(Duration::from_micros(90));
        b.observe(Duration::from_secs(600));
        let mut totals = a.totals();
        totals.add(&b);
        let counted: Vec<_> = totals.buckets().filter(|(_, count)| *count > 0).collect();
        let expected = [Duration::from_micros(100), Duration::from_millis(5), Duration::MAX];
        assert_eq!(counted, expected.map(|bound| (bound, 1)));
        let sum = Duration::from_secs(600) + Duration::from_micros(3090);
        assert_eq!((totals.count(), totals.sum()), (3, sum));
    }
}
