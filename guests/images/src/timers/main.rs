//! Reference time, synthetic timers and the local APIC's timer.
#![no_std]
#![no_main]

mod local;
mod reference;
mod synthetic;

use guest_kit::guest;

guest!(
    "timers",
    reference::frequencies,
    reference::counter,
    reference::tsc_page,
    reference::across_processors,
    reference::invariant_control,
    synthetic::reset_values,
    synthetic::one_shot,
    synthetic::in_the_past,
    synthetic::periodic,
    synthetic::auto_enable,
    synthetic::disabling,
    synthetic::direct_mode,
    synthetic::all_at_once,
    synthetic::on_another_processor,
    local::one_shot,
    local::masked,
    local::periodic,
    local::divider,
    local::tsc_deadline,
    local::wakes_halt,
);
