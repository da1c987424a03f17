//! Saving and restoring the local APIC, in the layout that
//! HvCallGetVpState and HvCallSetVpState exchange.

use super::ApicMode;
use super::local::LocalApic;
use super::registers as reg;
use super::vector_set::VectorSet;

/// The local interrupt controller state of a virtual processor (the TLFS's
/// HV_X64_INTERRUPT_CONTROLLER_STATE). Values are those of the registers in
/// the APIC's present mode. The task priority is not part of it: that is
/// saved as the register CR8.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct LocalInterruptControllerState {
    /// APIC id register. Ignored when restoring.
    pub apic_id: u32,
    /// Version register. Ignored when restoring.
    pub apic_version: u32,
    /// Logical destination register.
    pub apic_ldr: u32,
    /// Destination format register.
    pub apic_dfr: u32,
    /// Spurious interrupt vector register.
    pub apic_spurious: u32,
    /// In-service registers.
    pub apic_isr: [u32; 8],
    /// Trigger mode registers.
    pub apic_tmr: [u32; 8],
    /// Interrupt request registers.
    pub apic_irr: [u32; 8],
    /// Error status register, as the guest reads it.
    pub apic_esr: u32,
    /// Interrupt command register, bits 63:32.
    pub apic_icr_high: u32,
    /// Interrupt command register, bits 31:0.
    pub apic_icr_low: u32,
    /// LVT timer.
    pub apic_lvt_timer: u32,
    /// LVT thermal sensor.
    pub apic_lvt_thermal: u32,
    /// LVT performance monitoring counters.
    pub apic_lvt_perfmon: u32,
    /// LVT LINT0.
    pub apic_lvt_lint0: u32,
    /// LVT LINT1.
    pub apic_lvt_lint1: u32,
    /// LVT error.
    pub apic_lvt_error: u32,
    /// LVT corrected machine check; this APIC has none, so it is masked.
    pub apic_lvt_cmci: u32,
    /// Errors that the guest has not latched yet.
    pub apic_error_status: u32,
    /// Timer initial count.
    pub apic_initial_count: u32,
    /// Timer current count.
    pub apic_counter_value: u32,
    /// Timer divide configuration.
    pub apic_divide_configuration: u32,
    /// Remote read register; always 0.
    pub apic_remote_read: u32,
}

/// Every defined bit of the ESR.
const ESR_BITS: u32 = 0xFF;

impl LocalApic {
    /// The register state at `now_tsc`. IA32_APIC_BASE, the TPR and the TSC
    /// deadline have registers of their own.
    pub fn page(&self, now_tsc: u64) -> LocalInterruptControllerState {
        let [timer, thermal, perfmon, lint0, lint1, error] = self.lvt;
        LocalInterruptControllerState {
            apic_id: self.read_id(),
            apic_version: reg::VERSION_VALUE,
            apic_ldr: self.read_ldr(),
            apic_dfr: self.dfr,
            apic_spurious: self.svr,
            apic_isr: self.isr.words(),
            apic_tmr: self.tmr.words(),
            apic_irr: self.irr.words(),
            apic_esr: self.esr,
            apic_icr_high: (self.icr >> 32) as u32,
            apic_icr_low: self.icr as u32,
            apic_lvt_timer: timer,
            apic_lvt_thermal: thermal,
            apic_lvt_perfmon: perfmon,
            apic_lvt_lint0: lint0,
            apic_lvt_lint1: lint1,
            apic_lvt_error: error,
            apic_lvt_cmci: reg::LVT_MASKED,
            apic_error_status: self.esr_pending,
            apic_initial_count: self.timer.initial(),
            apic_counter_value: self.timer.current(self.timer_mode(), now_tsc),
            apic_divide_configuration: self.timer.divide(),
            apic_remote_read: 0,
        }
    }

    /// Takes over a saved register state; bits that no register has are
    /// dropped. Set IA32_APIC_BASE before, and the TPR and the TSC deadline
    /// after.
    pub fn restore(&mut self, state: &LocalInterruptControllerState, now_tsc: u64) {
        self.ldr = state.apic_ldr & 0xFF00_0000;
        self.dfr = state.apic_dfr | 0x0FFF_FFFF;
        self.svr = state.apic_spurious & reg::SVR_WRITABLE;
        self.isr = VectorSet::from_words(state.apic_isr);
        self.tmr = VectorSet::from_words(state.apic_tmr);
        self.irr = VectorSet::from_words(state.apic_irr);
        self.esr = state.apic_esr & ESR_BITS;
        self.esr_pending = state.apic_error_status & ESR_BITS;
        let high = u64::from(state.apic_icr_high) << 32;
        let destination = match self.mode() {
            ApicMode::X2Apic => high,
            _ => high & reg::ICR_XAPIC_DESTINATION,
        };
        self.icr = destination | u64::from(state.apic_icr_low) & reg::ICR_LOW_WRITABLE;
        self.restore_lvt([
            state.apic_lvt_timer,
            state.apic_lvt_thermal,
            state.apic_lvt_perfmon,
            state.apic_lvt_lint0,
            state.apic_lvt_lint1,
            state.apic_lvt_error,
        ]);
        self.restore_timer(state, now_tsc);
    }

    fn restore_lvt(&mut self, entries: [u32; reg::LVT_COUNT]) {
        let forced = if self.svr & reg::SVR_ENABLE == 0 {
            reg::LVT_MASKED
        } else {
            0
        };
        for (index, entry) in entries.into_iter().enumerate() {
            let kept = if index == reg::Lvt::Lint0 as usize {
                reg::LVT_REMOTE_IRR
            } else {
                0
            };
            self.lvt[index] = entry & (reg::LVT_WRITABLE[index] | kept) | forced;
        }
    }

    fn restore_timer(&mut self, state: &LocalInterruptControllerState, now_tsc: u64) {
        let mode = self.timer_mode();
        self.timer.reset();
        self.timer
            .set_divide(state.apic_divide_configuration, mode, now_tsc);
        self.timer.set_initial(state.apic_initial_count);
        let count = state.apic_counter_value.min(state.apic_initial_count);
        self.timer.restart(count, now_tsc);
    }
}
