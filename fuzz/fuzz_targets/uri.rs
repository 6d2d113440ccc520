//! See [`countersign_fuzz::uri`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| countersign_fuzz::uri::check(data));
