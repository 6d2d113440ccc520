//! The end-to-end suites, one file a subject.
//!
//! They share one executable, so that they link once and run side by side, each in a world of its own.

mod harness;
