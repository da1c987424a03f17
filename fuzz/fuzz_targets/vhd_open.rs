#![no_main]
//! See the harness `image`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| partita_fuzz::image::run_vhd(data));
