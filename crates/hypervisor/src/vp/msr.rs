//! MSRs that the hypervisor answers (TLFS appendix C). Each is there only
//! with its privilege; without it the access faults.

use alloc::boxed::Box;
use alloc::vec;

use tlfs::*;

use super::run::Execution;
use super::{CrashReport, Halt, RunOutcome};
use crate::gpa::OverlayKind;
use crate::guest_memory;
use crate::processor::{Completion, Exception};

const FAULT: Completion = Completion::Fault(Exception::GENERAL_PROTECTION);
const APIC_BASE_X2APIC: u64 = 1 << 10;
const MAX_CRASH_MESSAGE: u64 = 4096;

/// The privilege that an MSR needs; `None` for one that is not synthetic or
/// not known.
fn privilege(index: u32) -> Option<HvPartitionPrivilegeMask> {
    use HvPartitionPrivilegeMask as P;
    Some(match index {
        HV_X64_MSR_GUEST_OS_ID | HV_X64_MSR_HYPERCALL => P::ACCESS_HYPERCALL_MSRS,
        HV_X64_MSR_VP_INDEX => P::ACCESS_VP_INDEX,
        HV_X64_MSR_RESET => P::ACCESS_RESET_REG,
        HV_X64_MSR_VP_RUNTIME => P::ACCESS_VP_RUNTIME_REG,
        HV_X64_MSR_TIME_REF_COUNT => P::ACCESS_PARTITION_REFERENCE_COUNTER,
        HV_X64_MSR_REFERENCE_TSC => P::ACCESS_PARTITION_REFERENCE_TSC,
        HV_X64_MSR_TSC_FREQUENCY | HV_X64_MSR_APIC_FREQUENCY => P::ACCESS_FREQUENCY_REGS,
        HV_X64_MSR_EOI..=HV_X64_MSR_VP_ASSIST_PAGE => P::ACCESS_INTR_CTRL_REGS,
        HV_X64_MSR_SCONTROL..=HV_X64_MSR_EOM => P::ACCESS_SYNIC_REGS,
        HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15 => P::ACCESS_SYNIC_REGS,
        HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT => P::ACCESS_SYNTHETIC_TIMER_REGS,
        HV_X64_MSR_GUEST_IDLE => P::ACCESS_GUEST_IDLE_REG,
        // The crash MSRs are a feature, not a privilege.
        HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_CTL => P::empty(),
        HV_X64_MSR_REENLIGHTENMENT_CONTROL..=HV_X64_MSR_TSC_EMULATION_STATUS => {
            P::ACCESS_REENLIGHTENMENT_CONTROLS
        }
        HV_X64_MSR_TSC_INVARIANT_CONTROL => P::ACCESS_TSC_INVARIANT_CONTROLS,
        _ => return None,
    })
}

fn timer_index(index: u32) -> usize {
    ((index - HV_X64_MSR_STIMER0_CONFIG) / 2) as usize
}

impl Execution<'_> {
    /// Reads an MSR of the hypervisor's; `None` when it is not.
    pub(super) fn read_own_msr(&mut self, index: u32) -> Option<Completion> {
        match index {
            MSR_IA32_APIC_BASE => Some(Completion::Value(self.vp.state.lock().apic.base_msr())),
            MSR_IA32_TSC_DEADLINE => {
                Some(Completion::Value(self.vp.state.lock().apic.tsc_deadline()))
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                let now = self.cpu.tsc();
                let value = self.vp.state.lock().apic.read_msr(index, now);
                Some(value.map_or(FAULT, Completion::Value))
            }
            _ => {
                let needed = privilege(index)?;
                if !self.may_use(index, needed) {
                    return Some(FAULT);
                }
                Some(self.read_synthetic(index).map_or(FAULT, Completion::Value))
            }
        }
    }

    fn may_use(&self, index: u32, needed: HvPartitionPrivilegeMask) -> bool {
        let feature = match index {
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_CTL => HvFeatures::GUEST_CRASH_REGS,
            HV_X64_MSR_TSC_FREQUENCY | HV_X64_MSR_APIC_FREQUENCY => HvFeatures::FREQUENCY_REGS,
            _ => HvFeatures::empty(),
        };
        self.partition.may(needed) && self.hypervisor.config().features.contains(feature)
    }

    /// Writes an MSR of the hypervisor's; `None` when it is not.
    pub(super) fn write_own_msr(&mut self, index: u32, value: u64) -> Option<Completion> {
        let done = match index {
            MSR_IA32_APIC_BASE => self.write_apic_base(value),
            MSR_IA32_TSC_DEADLINE => {
                self.vp.state.lock().apic.set_tsc_deadline(value);
                true
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => self
                .with_apic(|apic, now, effects| apic.write_msr(index, value, now, effects))
                .is_ok(),
            _ => {
                let needed = privilege(index)?;
                self.may_use(index, needed) && self.write_synthetic(index, value)
            }
        };
        Some(if done { Completion::Done } else { FAULT })
    }

    fn write_apic_base(&mut self, value: u64) -> bool {
        let x2apic = self
            .partition
            .flags
            .contains(HvPartitionCreationFlags::X2APIC_CAPABLE);
        if value & APIC_BASE_X2APIC != 0 && !x2apic {
            return false;
        }
        self.vp.state.lock().apic.set_base_msr(value).is_ok()
    }

    /// What an MSR that nobody has answers.
    pub(super) fn unimplemented_msr(&self, ignored: Completion) -> Completion {
        match self
            .partition
            .property(HvPartitionPropertyCode::UNIMPLEMENTED_MSR_ACTION, 0)
        {
            0 => FAULT,
            _ => ignored,
        }
    }

    fn read_synthetic(&mut self, index: u32) -> Option<u64> {
        let platform = self.hypervisor.platform();
        let mut state = self.vp.state.lock();
        let guest = self.partition.guest.lock();
        Some(match index {
            HV_X64_MSR_GUEST_OS_ID => guest.os_id,
            HV_X64_MSR_HYPERCALL => guest.hypercall,
            HV_X64_MSR_VP_INDEX => self.vp.index.into(),
            HV_X64_MSR_RESET | HV_X64_MSR_EOM | HV_X64_MSR_TSC_EMULATION_STATUS => 0,
            HV_X64_MSR_VP_RUNTIME => self.partition.clock.after_ticks(0, state.run_ticks),
            HV_X64_MSR_TIME_REF_COUNT => self.partition.clock.now(platform),
            HV_X64_MSR_REFERENCE_TSC => guest.reference_tsc,
            HV_X64_MSR_TSC_FREQUENCY => self.partition.clock.frequency(),
            HV_X64_MSR_APIC_FREQUENCY => self.hypervisor.config().apic_frequency,
            HV_X64_MSR_ICR => state.apic.hv_icr(),
            HV_X64_MSR_TPR => state.apic.hv_tpr(),
            HV_X64_MSR_VP_ASSIST_PAGE => state.assist,
            HV_X64_MSR_SCONTROL => state.synic.control,
            HV_X64_MSR_SVERSION => HV_SYNIC_VERSION,
            HV_X64_MSR_SIEFP => state.synic.siefp,
            HV_X64_MSR_SIMP => state.synic.simp,
            HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15 => {
                state.synic.sint((index - HV_X64_MSR_SINT0) as usize)
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT if index & 1 == 0 => {
                state.synic.timer_config(timer_index(index))
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT => {
                state.synic.timer_count(timer_index(index))
            }
            HV_X64_MSR_GUEST_IDLE => {
                state.halt = Halt::Idle;
                0
            }
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 => {
                state.crash[(index - HV_X64_MSR_CRASH_P0) as usize]
            }
            // What the guest may ask for.
            HV_X64_MSR_CRASH_CTL => HV_CRASH_CTL_NOTIFY | HV_CRASH_CTL_NOTIFY_MSG,
            HV_X64_MSR_REENLIGHTENMENT_CONTROL => state.reenlightenment[0],
            HV_X64_MSR_TSC_EMULATION_CONTROL => state.reenlightenment[1],
            HV_X64_MSR_TSC_INVARIANT_CONTROL => guest.tsc_invariant,
            _ => return None,
        })
    }

    fn write_synthetic(&mut self, index: u32, value: u64) -> bool {
        match index {
            HV_X64_MSR_GUEST_OS_ID => {
                self.hypervisor.set_guest_os_id(&self.partition, value);
                true
            }
            HV_X64_MSR_HYPERCALL => self.hypervisor.set_hypercall_msr(&self.partition, value),
            HV_X64_MSR_REFERENCE_TSC => {
                self.hypervisor
                    .set_reference_tsc_msr(&self.partition, value);
                true
            }
            HV_X64_MSR_TSC_INVARIANT_CONTROL => {
                // Only ever switched on.
                let valid = value & !1 == 0;
                if valid {
                    self.partition.guest.lock().tsc_invariant |= value;
                }
                valid
            }
            HV_X64_MSR_RESET => {
                if value & 1 != 0 {
                    self.leave_with(RunOutcome::Reset);
                }
                true
            }
            HV_X64_MSR_EOI => {
                self.with_apic(|apic, _, effects| apic.hv_eoi(effects));
                true
            }
            HV_X64_MSR_ICR => self
                .with_apic(|apic, _, effects| apic.set_hv_icr(value, effects))
                .is_ok(),
            HV_X64_MSR_TPR => self.vp.state.lock().apic.set_hv_tpr(value).is_ok(),
            HV_X64_MSR_VP_ASSIST_PAGE | HV_X64_MSR_SIEFP | HV_X64_MSR_SIMP => {
                self.hypervisor
                    .set_vp_page(&self.partition, &self.vp, index, value);
                true
            }
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 => {
                self.vp.state.lock().crash[(index - HV_X64_MSR_CRASH_P0) as usize] = value;
                true
            }
            HV_X64_MSR_CRASH_CTL => {
                self.write_crash_control(value);
                true
            }
            HV_X64_MSR_REENLIGHTENMENT_CONTROL => {
                self.vp.state.lock().reenlightenment[0] = value;
                true
            }
            HV_X64_MSR_TSC_EMULATION_CONTROL => {
                self.vp.state.lock().reenlightenment[1] = value & 1;
                true
            }
            HV_X64_MSR_TSC_EMULATION_STATUS => true,
            _ => self.write_synic(index, value),
        }
    }

    fn write_synic(&mut self, index: u32, value: u64) -> bool {
        self.with_synic(|synic, bus| match index {
            HV_X64_MSR_SCONTROL => {
                synic.control = value;
                true
            }
            HV_X64_MSR_EOM => {
                synic.deliver(bus);
                true
            }
            HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15 => {
                synic.set_sint((index - HV_X64_MSR_SINT0) as usize, value)
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT if index & 1 == 0 => {
                synic.set_timer_config(timer_index(index), value, bus.now)
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT => {
                synic.set_timer_count(timer_index(index), value, bus.now);
                true
            }
            // VP_INDEX, VP_RUNTIME, TIME_REF_COUNT, frequencies, SVERSION,
            // GUEST_IDLE: read only.
            _ => false,
        })
    }

    /// Returns `outcome` before the guest goes on.
    fn leave_with(&self, outcome: RunOutcome) {
        self.vp.state.lock().outcomes.push_back(outcome);
    }

    fn write_crash_control(&mut self, control: u64) {
        if control & HV_CRASH_CTL_NOTIFY == 0 {
            return;
        }
        let parameters = self.vp.state.lock().crash;
        let [_, _, _, address, length] = parameters;
        let message = (control & HV_CRASH_CTL_NOTIFY_MSG != 0)
            .then(|| {
                let mut text = vec![0; length.min(MAX_CRASH_MESSAGE) as usize];
                let map = self.partition.gpa_map();
                guest_memory::read(self.hypervisor.platform(), &map, address, &mut text).ok()?;
                Some(text)
            })
            .flatten();
        let report = CrashReport {
            vp_index: self.vp.index,
            parameters,
            control,
            message,
        };
        self.leave_with(RunOutcome::Crash(Box::new(report)));
    }
}

/// The overlay that a VP's page MSR places.
pub(crate) fn overlay_of(index: u32, vp: u32) -> OverlayKind {
    match index {
        HV_X64_MSR_SIMP => OverlayKind::Messages(vp),
        HV_X64_MSR_SIEFP => OverlayKind::EventFlags(vp),
        _ => OverlayKind::VpAssist(vp),
    }
}
