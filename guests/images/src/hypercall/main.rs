//! The hypercall interface: page, calling conventions, status codes, and the calls a child makes.
#![no_std]
#![no_main]

mod calls;
mod page;
mod status;

use guest_kit::guest;

guest!(
    "hypercall",
    page::establishing,
    page::overlay,
    page::illegal_environments,
    status::control_word,
    status::alignment,
    status::repetitions,
    status::variable_header,
    status::conventions,
    status::from_32_bit_code,
    calls::flush,
    calls::flush_ex,
    calls::cluster_ipi,
    calls::vp_index,
    calls::vp_registers,
    calls::extended,
    page::identity_cleared,
    page::locked,
);
