//! The synthetic interrupt controller: registers, message and event pages, and what comes through
//! them from the Hyper-V test device.
#![no_std]
#![no_main]

mod device;
mod events;
mod messages;
mod registers;

use guest_kit::guest;

guest!(
    "synic",
    registers::reset_values,
    registers::faults,
    registers::overlays,
    events::interrupt_source,
    events::auto_eoi,
    events::flags,
    events::errors,
    messages::delivery,
    messages::pending,
    messages::queue,
    messages::end_of_interrupt,
    messages::masked_and_polling,
    messages::errors,
);
