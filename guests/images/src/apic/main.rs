//! The local APIC in both modes, interprocessor interrupts, the I/O APIC, and Hyper-V's APIC
//! registers.
#![no_std]
#![no_main]

mod hyperv_registers;
mod io_apic;
mod ipi;
mod local;
mod modes;

use guest_kit::guest;

guest!(
    "apic",
    modes::reset_state,
    local::priorities,
    local::task_priority_and_cr8,
    local::in_service,
    local::local_vectors,
    local::errors,
    local::interrupt_shadow,
    ipi::fixed,
    ipi::logical,
    ipi::non_maskable,
    ipi::non_maskable_blocking,
    ipi::wakes_halt,
    ipi::init_and_startup,
    io_apic::registers,
    io_apic::edge,
    io_apic::level,
    io_apic::to_another_processor,
    hyperv_registers::end_of_interrupt,
    hyperv_registers::command,
    hyperv_registers::task_priority,
    modes::transitions,
    modes::x2apic_registers,
    modes::x2apic_interrupts,
    modes::disabled,
);
