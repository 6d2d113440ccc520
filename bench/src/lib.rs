//! Criterion benchmarks, a load generator and side-by-side comparisons.
