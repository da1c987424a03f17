//! Exceptions and the ways between privilege levels: each with its exact vector, error code and
//! saved state.
#![no_std]
#![no_main]

mod compat;
mod debug;
mod delivery;
mod exceptions;
mod legacy;
mod protection;
mod system_call;
mod user;

use guest_kit::guest;

guest!(
    "faults",
    exceptions::divide,
    exceptions::software_interrupts,
    exceptions::invalid_opcode,
    exceptions::device_not_available,
    exceptions::general_protection,
    exceptions::floating_point,
    exceptions::alignment,
    exceptions::control_registers,
    protection::segment_loads,
    protection::far_transfers,
    protection::system_segments,
    delivery::gates,
    delivery::double_fault,
    delivery::invalid_task_state,
    delivery::stacks,
    delivery::interrupt_return,
    debug::single_step,
    debug::single_step_repeat,
    debug::single_step_shadow,
    debug::instruction_breakpoint,
    debug::data_breakpoints,
    debug::io_breakpoint,
    debug::registers,
    debug::resume_flag,
    user::privileged_instructions,
    user::io_permissions,
    user::instruction_prevention,
    user::alignment_check,
    user::call_gate,
    user::time_stamp_disable,
    system_call::syscall,
    system_call::syscall_disabled,
    system_call::sysret_compat,
    system_call::sysenter,
    compat::exceptions,
    compat::segment_limits,
    compat::bcd_and_stack,
    legacy::protected_mode,
    legacy::protected_faults,
    legacy::task_switch,
    legacy::virtual_8086,
    legacy::real_mode,
);

/// Runs an asm fragment under [`guest_kit::trap::attempt`]; gives the attempt and the address of
/// its first instruction, behind the preparation that stands in brackets.
#[macro_export]
macro_rules! at {
    ($($code:literal),+ ; $($operands:tt)*) => { $crate::at!([] $($code),+ ; $($operands)*) };
    ([$($before:literal),*] $($code:literal),+ ; $($operands:tt)*) => {{
        let mut address = 0u64;
        let place = &raw mut address as u64;
        let attempt = ::guest_kit::trap::attempt(|| {
            ::guest_kit::insn!(
                "lea {kit_scratch}, [rip + 55f]",
                "mov [{kit_place}], {kit_scratch}",
                $($before,)*
                "55:",
                $($code),+,
                kit_scratch = out(reg) _,
                kit_place = in(reg) place,
                $($operands)*
            )
        });
        (attempt, ::guest_kit::memory::read64(place))
    }};
}

/// Checks vector, error code and the distance of the saved RIP from the instruction.
pub(crate) fn expect(
    name: &str,
    (attempt, address): (Result<(), guest_kit::trap::Fault>, u64),
    vector: u8,
    error: u64,
    length: u64,
) {
    guest_kit::report::equal(
        name,
        attempt.map_err(|fault| (fault.vector, fault.error, fault.rip.wrapping_sub(address))),
        Err((vector, error, length)),
    );
}

/// Checks a fault that does not advance.
pub(crate) fn expect_fault(
    name: &str,
    outcome: (Result<(), guest_kit::trap::Fault>, u64),
    vector: u8,
    error: u64,
) {
    expect(name, outcome, vector, error, 0);
}
