#![no_main]
//! See the harness `interpreter::translated`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| partita_fuzz::interpreter::translated::run(data));
