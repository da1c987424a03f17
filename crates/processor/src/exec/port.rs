//! IN, OUT, INS and OUTS (SDM 1 chapter 19).

use crate::Vp;
use crate::fault::{Exit, Step, Stop, StopReason};
use crate::mmu::Access;
use crate::op::{Op, prefix};
use crate::state::{reg, rflags, seg};

impl Vp {
    /// #GP(0) unless the running code may use these ports: IOPL, or the
    /// TSS's I/O permission bitmap.
    fn check_port(&mut self, port: u16, size: u8) -> Step {
        let trusted = self.state.cpl <= self.state.iopl() && !self.state.v86();
        if !self.state.protected() || trusted {
            return Ok(());
        }
        let tr = self.state.seg[seg::TR];
        // A 16-bit TSS has no bitmap.
        if tr.unusable() || tr.kind() & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map = self.table_load::<u16>(self.wrap_linear(tr.base.wrapping_add(0x66)))?;
        let offset = u64::from(map) + u64::from(port / 8);
        // Two bytes are read always.
        if offset + 1 > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let bits = self.table_load::<u16>(self.wrap_linear(tr.base.wrapping_add(offset)))?;
        let mask = ((1u16 << size) - 1) << (port % 8);
        if bits & mask != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn port_read(&mut self, port: u16, size: u8) -> Result<u64, Stop> {
        let value = self.answer(Exit::IoRead { port, size })?;
        self.watch_port(port, size);
        Ok(value)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) -> Step {
        self.answer(Exit::IoWrite { port, size, value })?;
        self.watch_port(port, size);
        Ok(())
    }

    /// After one element of INS or OUTS: moves the index register, counts
    /// down, and goes on with the next element in a new execution, so that
    /// interrupts come in between.
    fn string_step(&mut self, op: &Op, index: usize) -> Step {
        let step = u64::from(op.size);
        let down = self.state.system_flags & rflags::DF != 0;
        let step = if down { step.wrapping_neg() } else { step };
        self.add_address(op.address_size, index, step);
        let repeated = op.prefix & (prefix::REP | prefix::REPNE) != 0;
        if !repeated {
            return Ok(());
        }
        self.add_address(op.address_size, reg::RCX, u64::MAX);
        if self.address_part(op.address_size, reg::RCX) == 0 {
            return Ok(());
        }
        self.answers_done();
        self.suspend_repeat();
        self.stop = StopReason::Yield;
        Err(Stop)
    }

    /// A repeated instruction pauses between two iterations: RF is set, so
    /// that an instruction breakpoint on it does not strike again and an
    /// interrupt's frame shows it (SDM 3B 18.3.1.1).
    pub(crate) fn suspend_repeat(&mut self) {
        self.state.system_flags |= rflags::RF;
        self.resume_loaded = true;
        self.mode_changed();
    }

    fn address_part(&self, size: u8, register: usize) -> u64 {
        match size {
            2 => self.state.gpr[register] & 0xffff,
            4 => self.state.gpr[register] & 0xffff_ffff,
            _ => self.state.gpr[register],
        }
    }

    fn add_address(&mut self, size: u8, register: usize, step: u64) {
        let value = self.state.gpr[register].wrapping_add(step);
        self.set_gpr(size, register as u8, value);
    }
}

/// IN with the port in DX.
pub(crate) fn in_dx(vp: &mut Vp, op: &Op) -> Step {
    let port = vp.state.gpr[reg::RDX] as u16;
    input(vp, port, op.size)
}

/// IN with the port in the instruction.
pub(crate) fn in_immediate(vp: &mut Vp, op: &Op) -> Step {
    input(vp, op.imm as u16 & 0xff, op.size)
}

fn input(vp: &mut Vp, port: u16, size: u8) -> Step {
    vp.check_port(port, size)?;
    let value = vp.port_read(port, size)?;
    vp.set_gpr(size, reg::RAX as u8, value);
    Ok(())
}

/// OUT with the port in DX.
pub(crate) fn out_dx(vp: &mut Vp, op: &Op) -> Step {
    let port = vp.state.gpr[reg::RDX] as u16;
    output(vp, port, op.size)
}

/// OUT with the port in the instruction.
pub(crate) fn out_immediate(vp: &mut Vp, op: &Op) -> Step {
    output(vp, op.imm as u16 & 0xff, op.size)
}

fn output(vp: &mut Vp, port: u16, size: u8) -> Step {
    vp.check_port(port, size)?;
    let value = vp.gpr(size, reg::RAX as u8) as u32;
    vp.port_write(port, size, value)
}

/// A repeat count of 0: nothing is done.
fn nothing_to_do(vp: &Vp, op: &Op) -> bool {
    op.prefix & (prefix::REP | prefix::REPNE) != 0
        && vp.address_part(op.address_size, reg::RCX) == 0
}

/// INS, with or without REP.
pub(crate) fn ins(vp: &mut Vp, op: &Op) -> Step {
    if nothing_to_do(vp, op) {
        return Ok(());
    }
    let port = vp.state.gpr[reg::RDX] as u16;
    vp.check_port(port, op.size)?;
    let offset = vp.address_part(op.address_size, reg::RDI);
    let size = u64::from(op.size);
    let at = vp.segment_linear(seg::ES, offset, size, Access::Write)?;
    // The device must not be read for a store that faults.
    vp.probe(at, size, Access::Write)?;
    let value = vp.port_read(port, op.size)?;
    vp.store_sized(at, op.size, value)?;
    vp.string_step(op, reg::RDI)
}

/// OUTS, with or without REP.
pub(crate) fn outs(vp: &mut Vp, op: &Op) -> Step {
    if nothing_to_do(vp, op) {
        return Ok(());
    }
    let port = vp.state.gpr[reg::RDX] as u16;
    vp.check_port(port, op.size)?;
    let offset = vp.address_part(op.address_size, reg::RSI);
    let size = u64::from(op.size);
    let segment = usize::from(op.segment);
    let at = vp.segment_linear(segment, offset, size, Access::Read)?;
    let value = vp.load_sized(at, op.size)?;
    vp.port_write(port, op.size, value as u32)?;
    vp.string_step(op, reg::RSI)
}
