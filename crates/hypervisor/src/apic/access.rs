//! The guest's three views of the registers: the memory-mapped page, the
//! x2APIC MSRs and Hyper-V's synthetic MSRs.

use alloc::vec::Vec;

use super::local::LocalApic;
use super::registers as reg;
use super::timer::TimerMode;
use super::{ApicEffect, ApicFault, ApicMode};

impl LocalApic {
    /// Reads from the register page (xAPIC mode). `offset` is within the
    /// page. Registers stand at multiples of 16; everything else reads 0.
    pub fn read_mmio(&self, offset: u16, now_tsc: u64) -> u32 {
        if self.mode() != ApicMode::XApic {
            return u32::MAX;
        }
        match offset {
            reg::APR => self.ppr().into(),
            reg::DFR => self.dfr,
            reg::ICR_LOW => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            _ => self.read_common(offset, now_tsc).unwrap_or(0),
        }
    }

    /// Writes to the register page (xAPIC mode). Reserved bits are ignored;
    /// a write to an offset without a register sets "illegal register
    /// address" in the ESR.
    pub fn write_mmio(
        &mut self,
        offset: u16,
        value: u32,
        now_tsc: u64,
        effects: &mut Vec<ApicEffect>,
    ) {
        if self.mode() != ApicMode::XApic || offset & 0xF != 0 {
            return;
        }
        match offset {
            // The id is fixed, as on processors with x2APIC.
            reg::ID | reg::VERSION | reg::APR | reg::PPR | reg::CURRENT_COUNT => {}
            reg::ISR..=reg::ISR_LAST | reg::TMR..=reg::TMR_LAST | reg::IRR..=reg::IRR_LAST => {}
            reg::TPR => self.tpr = value as u8,
            reg::EOI => self.eoi(effects),
            reg::LDR => self.ldr = value & 0xFF00_0000,
            reg::DFR => self.dfr = value | 0x0FFF_FFFF,
            reg::SVR => self.write_svr(value),
            reg::ESR => self.latch_errors(),
            reg::ICR_LOW => {
                let high = self.icr & reg::ICR_XAPIC_DESTINATION;
                self.icr = high | u64::from(value) & reg::ICR_LOW_WRITABLE;
                self.send(self.icr, effects);
            }
            reg::ICR_HIGH => {
                let low = self.icr & u64::from(u32::MAX);
                self.icr = low | u64::from(value) << 32 & reg::ICR_XAPIC_DESTINATION;
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(offset, value, now_tsc),
            reg::INITIAL_COUNT => self.write_initial_count(value, now_tsc),
            reg::DIVIDE => self.write_divide(value, now_tsc),
            _ => self.record_error(reg::ESR_ILLEGAL_REGISTER),
        }
    }

    /// Reads an x2APIC MSR (0x800 to 0x8FF).
    ///
    /// # Errors
    ///
    /// #GP outside x2APIC mode, and for MSRs that do not exist or are
    /// write-only.
    pub fn read_msr(&self, index: u32, now_tsc: u64) -> Result<u64, ApicFault> {
        let offset = self.msr_offset(index)?;
        match offset {
            reg::ICR_LOW => Ok(self.icr),
            _ => self
                .read_common(offset, now_tsc)
                .map(u64::from)
                .ok_or(ApicFault::NoSuchRegister),
        }
    }

    /// Writes an x2APIC MSR (0x800 to 0x8FF).
    ///
    /// # Errors
    ///
    /// #GP outside x2APIC mode, for MSRs that do not exist or are read-only,
    /// and for reserved bits.
    pub fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        now_tsc: u64,
        effects: &mut Vec<ApicEffect>,
    ) -> Result<(), ApicFault> {
        let offset = self.msr_offset(index)?;
        check_reserved(value, msr_reserved(offset)?)?;
        let low = value as u32;
        match offset {
            reg::TPR => self.tpr = low as u8,
            reg::EOI => self.eoi(effects),
            reg::SVR => self.write_svr(low),
            reg::ESR => self.latch_errors(),
            reg::ICR_LOW => {
                self.icr = value & !reg::ICR_DELIVERY_STATUS;
                self.send(self.icr, effects);
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(offset, low, now_tsc),
            reg::INITIAL_COUNT => self.write_initial_count(low, now_tsc),
            reg::DIVIDE => self.write_divide(low, now_tsc),
            // Bits 19:18 = 1: the shorthand for the sender alone.
            _ => self.send(value | 1 << 18, effects),
        }
        Ok(())
    }

    /// HV_X64_MSR_EOI (0x40000070), written with any value (TLFS, "EOI MSR").
    pub fn hv_eoi(&mut self, effects: &mut Vec<ApicEffect>) {
        self.eoi(effects);
    }

    /// HV_X64_MSR_ICR (0x40000071): ICR high and low in one register.
    pub fn hv_icr(&self) -> u64 {
        self.icr
    }

    /// Writes HV_X64_MSR_ICR, which sends the IPI. The layout is that of the
    /// present mode's ICR.
    ///
    /// # Errors
    ///
    /// #GP for reserved bits in x2APIC mode and while the APIC is globally
    /// disabled.
    pub fn set_hv_icr(
        &mut self,
        value: u64,
        effects: &mut Vec<ApicEffect>,
    ) -> Result<(), ApicFault> {
        self.icr = match self.mode() {
            ApicMode::Disabled => return Err(ApicFault::NoSuchRegister),
            ApicMode::XApic => value & (reg::ICR_LOW_WRITABLE | reg::ICR_XAPIC_DESTINATION),
            ApicMode::X2Apic => {
                check_reserved(value, msr_reserved(reg::ICR_LOW)?)?;
                value & !reg::ICR_DELIVERY_STATUS
            }
        };
        self.send(self.icr, effects);
        Ok(())
    }

    /// HV_X64_MSR_TPR (0x40000072).
    pub fn hv_tpr(&self) -> u64 {
        self.tpr.into()
    }

    /// Writes HV_X64_MSR_TPR.
    ///
    /// # Errors
    ///
    /// #GP if bits 63:8 are not zero.
    pub fn set_hv_tpr(&mut self, value: u64) -> Result<(), ApicFault> {
        self.tpr = u8::try_from(value).map_err(|_| ApicFault::ReservedBits)?;
        Ok(())
    }

    /// Registers that read alike in the page and as MSRs; `None` where there
    /// is none that can be read.
    fn read_common(&self, offset: u16, now_tsc: u64) -> Option<u32> {
        if offset & 0xF != 0 {
            return None;
        }
        let word = |first: u16| usize::from((offset - first) >> 4);
        Some(match offset {
            reg::ID => self.read_id(),
            reg::VERSION => reg::VERSION_VALUE,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::LDR => self.read_ldr(),
            reg::SVR => self.svr,
            reg::ISR..=reg::ISR_LAST => self.isr.word(word(reg::ISR)),
            reg::TMR..=reg::TMR_LAST => self.tmr.word(word(reg::TMR)),
            reg::IRR..=reg::IRR_LAST => self.irr.word(word(reg::IRR)),
            reg::ESR => self.esr,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[word(reg::LVT_TIMER)],
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.current(self.timer_mode(), now_tsc),
            reg::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    fn msr_offset(&self, index: u32) -> Result<u16, ApicFault> {
        let in_range = (reg::X2APIC_MSR_FIRST..=reg::X2APIC_MSR_LAST).contains(&index);
        if self.mode() != ApicMode::X2Apic || !in_range {
            return Err(ApicFault::NoSuchRegister);
        }
        Ok(((index - reg::X2APIC_MSR_FIRST) << 4) as u16)
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & reg::SVR_WRITABLE;
        if self.svr & reg::SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= reg::LVT_MASKED;
            }
        }
    }

    /// A write to the ESR shows the errors since the write before it.
    fn latch_errors(&mut self) {
        self.esr = core::mem::take(&mut self.esr_pending);
    }

    fn write_lvt(&mut self, offset: u16, value: u32, now_tsc: u64) {
        let index = usize::from((offset - reg::LVT_TIMER) >> 4);
        let old_mode = self.timer_mode();
        if offset == reg::LVT_TIMER {
            // What expired so far did so under the old entry.
            self.expire(now_tsc);
        }
        let forced = if self.svr & reg::SVR_ENABLE == 0 {
            reg::LVT_MASKED
        } else {
            0
        };
        let old = self.lvt[index];
        let new = value & reg::LVT_WRITABLE[index];
        // A level that is being served belongs to the entry that raised it.
        let same = reg::LVT_VECTOR | reg::LVT_MODE | reg::LVT_LEVEL;
        let kept = if (old ^ new) & same == 0 {
            old & reg::LVT_REMOTE_IRR
        } else {
            0
        };
        self.lvt[index] = new | forced | kept;
        if offset == reg::LVT_TIMER {
            self.timer.change_mode(old_mode, self.timer_mode());
        } else {
            self.refresh_lint_level();
        }
    }

    fn write_initial_count(&mut self, value: u32, now_tsc: u64) {
        self.expire(now_tsc);
        self.timer.start(value, self.timer_mode(), now_tsc);
    }

    fn write_divide(&mut self, value: u32, now_tsc: u64) {
        self.expire(now_tsc);
        self.timer.set_divide(value, self.timer_mode(), now_tsc);
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        TimerMode::from_lvt(self.lvt[0])
    }
}

fn check_reserved(value: u64, reserved: u64) -> Result<(), ApicFault> {
    if value & reserved == 0 {
        Ok(())
    } else {
        Err(ApicFault::ReservedBits)
    }
}

/// Reserved bits of the MSR for the register at `offset`, or a fault if no
/// such MSR can be written.
fn msr_reserved(offset: u16) -> Result<u64, ApicFault> {
    let writable: u64 = match offset {
        reg::TPR | reg::SELF_IPI => 0xFF,
        reg::EOI | reg::ESR => 0,
        reg::SVR => reg::SVR_WRITABLE.into(),
        reg::ICR_LOW => {
            u64::from(u32::MAX) << 32 | reg::ICR_LOW_WRITABLE | reg::ICR_DELIVERY_STATUS
        }
        reg::LVT_TIMER..=reg::LVT_ERROR => {
            let index = usize::from((offset - reg::LVT_TIMER) >> 4);
            let read_only = reg::LVT_DELIVERY_STATUS | reg::LVT_REMOTE_IRR;
            (reg::LVT_WRITABLE[index] | read_only).into()
        }
        reg::INITIAL_COUNT => u32::MAX.into(),
        reg::DIVIDE => reg::DIVIDE_WRITABLE.into(),
        _ => return Err(ApicFault::NoSuchRegister),
    };
    Ok(!writable)
}
