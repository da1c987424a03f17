//! Events for the processor: exceptions, NMIs, interrupts.

use super::{Halt, VpState};
use crate::Processor;
use crate::processor::Injection;

/// Injects what can be, ends a halt that is over, and asks for a window for
/// the rest.
pub(super) fn inject(cpu: &mut dyn Processor, state: &mut VpState) {
    if let Some(exception) = state.pending_exception.take() {
        cpu.inject(Injection::Exception(exception));
        state.halt = Halt::None;
    }
    inject_nmi(cpu, state);
    inject_interrupt(cpu, state);
}

fn inject_nmi(cpu: &mut dyn Processor, state: &mut VpState) {
    if state.pending_nmis > 0 && cpu.interruptibility().nmi {
        state.pending_nmis -= 1;
        cpu.inject(Injection::Nmi);
        state.halt = Halt::None;
    }
    let window = state.pending_nmis > 0;
    if state.nmi_window != window {
        state.nmi_window = window;
        cpu.request_nmi_window(window);
    }
}

fn inject_interrupt(cpu: &mut dyn Processor, state: &mut VpState) {
    // The idle state ends with any request: Linux waits in it for a lock from
    // within the handler of one interrupt for another of the same class.
    if state.halt == Halt::Idle && (external(state) || state.apic.has_request()) {
        state.halt = Halt::None;
    }
    if pending(state)
        && cpu.interruptibility().interrupt
        && let Some(vector) = acknowledge(state)
    {
        cpu.inject(Injection::Interrupt(vector));
        state.halt = Halt::None;
    }
    // One that is left waits behind the one just injected.
    let window = pending(state);
    if state.interrupt_window != window {
        state.interrupt_window = window;
        cpu.request_interrupt_window(window);
    }
}

fn external(state: &VpState) -> bool {
    state.ext_int.is_some() && state.apic.accepts_extint()
}

fn pending(state: &VpState) -> bool {
    external(state) || state.apic.deliverable().is_some()
}

fn acknowledge(state: &mut VpState) -> Option<u8> {
    if external(state) {
        return state.ext_int.take();
    }
    let vector = state.apic.deliverable()?;
    if state.synic.is_auto_eoi(vector) {
        state.apic.acknowledge_auto_eoi()
    } else {
        state.apic.acknowledge()
    }
}
