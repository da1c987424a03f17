//! x87, MMX and SSE state: saving and restoring, lazy switching, control words and exceptions.
#![no_std]
#![no_main]

mod sse;
mod state;
mod x87;

use guest_kit::guest;

guest!(
    "fpu",
    x87::arithmetic,
    x87::stack,
    x87::control,
    x87::environment,
    x87::mmx_alias,
    sse::control,
    sse::exceptions_masked,
    sse::flush_to_zero,
    sse::instructions,
    state::fxsave,
    state::fxrstor,
    state::lazy_switch,
    state::xsave,
    state::xsave_faults,
    state::interrupts_keep_registers,
);
