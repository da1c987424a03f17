#![no_std]
#![no_main]
//! x
use guest_kit::guest;
guest!("x", t);
fn t() {}
