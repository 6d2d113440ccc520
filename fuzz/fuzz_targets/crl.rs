//! See [`countersign_fuzz::crl`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| countersign_fuzz::crl::check(data));
