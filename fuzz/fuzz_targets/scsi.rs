#![no_main]
//! See the harness of the same name.

libfuzzer_sys::fuzz_target!(|data: &[u8]| partita_fuzz::scsi::run(data));
