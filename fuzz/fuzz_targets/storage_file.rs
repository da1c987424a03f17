#![no_main]
//! See the harness `storage`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| partita_fuzz::storage::run_file(data));
