#![no_main]
//! See the harness `component`.

use partita_fuzz::component::{Component, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(Component::TimeSync, data));
