//! Times two things in alternating batches: a machine that is slow for a while is slow for both,
//! and their ratio holds.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, measurement::WallTime};

/// Medians in microseconds.
pub(crate) struct Measured {
    pub work: f64,
    /// `None` without anything to compare with.
    pub yardstick: Option<f64>,
}

/// Benches `work`, each batch after one of `yardstick` of the same size; both report their own
/// durations. `None` when a filter left it out.
pub(crate) fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    yardstick: Option<&dyn Fn() -> Duration>,
    work: &dyn Fn() -> Duration,
) -> Option<Measured> {
    let (times, yardstick_times) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|rounds| {
            if let Some(yardstick) = yardstick {
                batch(&yardstick_times, rounds, yardstick);
            }
            batch(&times, rounds, work)
        });
    });
    Some(Measured { work: median(times)?, yardstick: median(yardstick_times) })
}

/// The duration of one call.
#[allow(dead_code, reason = "not every benchmark that has this file needs it")]
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    std::hint::black_box(call());
    started.elapsed()
}

fn batch(times: &RefCell<Vec<f64>>, rounds: u64, one: &dyn Fn() -> Duration) -> Duration {
    let total: Duration = (0..rounds).map(|_| one()).sum();
    times.borrow_mut().push(total.as_secs_f64() * 1e6 / rounds as f64);
    total
}

/// The middle of all batches; the few of the warm-up do not move it.
fn median(times: RefCell<Vec<f64>>) -> Option<f64> {
    let mut times = times.into_inner();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}
