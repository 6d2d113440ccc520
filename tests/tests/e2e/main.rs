//! The end-to-end suites, one file a subject. They share one executable, so that they link once and run side by side.

mod harness;
