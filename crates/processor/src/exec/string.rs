//! MOVS, STOS, LODS, CMPS, SCAS, alone and repeated.
//!
//! A repeated instruction commits its registers after each element, so that
//! faults, exits and interrupts find it restartable. Forward MOVS and STOS
//! within pages that the TLB has go page by page at the host's speed.

use crate::Vp;
use crate::arith;
use crate::decode::Selected;
use crate::exec::alu::Number;
use crate::exec::by_size;
use crate::fault::{Step, Stop, StopReason};
use crate::host;
use crate::memory::Word;
use crate::mmu::{Access, PAGE_MASK};
use crate::op::{Op, OpFn, prefix};
use crate::state::{reg, rflags, seg};
use iced_x86::{Instruction, Mnemonic};

/// Elements between two looks at pending interrupts.
const SLICE: u64 = 4096;

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    if !instruction.is_string_instruction() {
        return None;
    }
    let (run, size): (fn(u8) -> OpFn, u8) = match instruction.mnemonic() {
        Mnemonic::Movsb => (movs_form, 1),
        Mnemonic::Movsw => (movs_form, 2),
        Mnemonic::Movsd => (movs_form, 4),
        Mnemonic::Movsq => (movs_form, 8),
        Mnemonic::Stosb => (stos_form, 1),
        Mnemonic::Stosw => (stos_form, 2),
        Mnemonic::Stosd => (stos_form, 4),
        Mnemonic::Stosq => (stos_form, 8),
        Mnemonic::Lodsb => (lods_form, 1),
        Mnemonic::Lodsw => (lods_form, 2),
        Mnemonic::Lodsd => (lods_form, 4),
        Mnemonic::Lodsq => (lods_form, 8),
        Mnemonic::Cmpsb => (cmps_form, 1),
        Mnemonic::Cmpsw => (cmps_form, 2),
        Mnemonic::Cmpsd => (cmps_form, 4),
        Mnemonic::Cmpsq => (cmps_form, 8),
        Mnemonic::Scasb => (scas_form, 1),
        Mnemonic::Scasw => (scas_form, 2),
        Mnemonic::Scasd => (scas_form, 4),
        Mnemonic::Scasq => (scas_form, 8),
        _ => return None,
    };
    op.size = size;
    Selected::plain(run(size))
}

macro_rules! form {
    ($name:ident, $handler:ident, $plain:ident) => {
        fn $name(size: u8) -> OpFn {
            struct Sized {
                size: u8,
            }
            macro_rules! of_type {
                ($type:ty, ) => {
                    $handler::<$type>
                };
            }
            let op = Sized { size };
            by_size!(op, of_type!())
        }
    };
}
form!(movs_form, movs, movs);
form!(stos_form, stos, stos);
form!(lods_form, lods, lods);
form!(cmps_form, cmps, cmps);
form!(scas_form, scas, scas);

/// A step of one element in the direction of DF.
#[inline]
fn stride<T: Word>(vp: &Vp) -> u64 {
    if vp.state.system_flags & rflags::DF != 0 {
        T::SIZE.wrapping_neg()
    } else {
        T::SIZE
    }
}

impl Vp {
    /// RSI, RDI or RCX at the address size.
    #[inline]
    fn string_register(&self, op: &Op, register: usize) -> u64 {
        self.mask_address(self.state.gpr[register & 31], op.address_size)
    }

    /// Writes it back at the address size: a 32-bit one clears the upper half.
    #[inline]
    fn set_string_register(&mut self, op: &Op, register: usize, value: u64) {
        self.set_gpr(op.address_size, register as u8, value);
    }

    #[inline]
    fn advance_string(&mut self, op: &Op, register: usize, by: u64) {
        let value = self.string_register(op, register).wrapping_add(by);
        self.set_string_register(op, register, value);
    }
}

/// Repeats `element` RCX times, or does it once without a prefix. `element`
/// tells whether to go on, and returns how many elements it did.
#[inline]
fn repeat(
    vp: &mut Vp,
    op: &Op,
    mut element: impl FnMut(&mut Vp, u64) -> Result<(u64, bool), Stop>,
) -> Step {
    if op.prefix & (prefix::REP | prefix::REPNE) == 0 {
        element(vp, 1)?;
        return Ok(());
    }
    let mut budget = SLICE;
    loop {
        let count = vp.string_register(op, reg::RCX);
        if count == 0 {
            return Ok(());
        }
        let (done, go_on) = element(vp, count)?;
        vp.set_string_register(op, reg::RCX, count - done);
        vp.answers_done();
        if !go_on || count == done {
            return Ok(());
        }
        if vp.code_written || single_stepping(vp) {
            return give_way(vp);
        }
        budget = budget.saturating_sub(done);
        if budget == 0 {
            budget = SLICE;
            if vp.interrupted() {
                return give_way(vp);
            }
        }
    }
}

/// A trap is due after every element.
fn single_stepping(vp: &Vp) -> bool {
    use crate::vp::attention::{DEBUG, SINGLE_STEP};
    vp.attention & (SINGLE_STEP | DEBUG) != 0
}

#[cold]
fn give_way(vp: &mut Vp) -> Step {
    vp.suspend_repeat();
    vp.stop = StopReason::Yield;
    Err(Stop)
}

fn movs<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    repeat(vp, op, |vp, count| {
        if let Some(done) = movs_bulk::<T>(vp, op, count) {
            return Ok((done, true));
        }
        let (si, di) = (
            vp.string_register(op, reg::RSI),
            vp.string_register(op, reg::RDI),
        );
        let from = vp.segment_linear(usize::from(op.segment), si, T::SIZE, Access::Read)?;
        let value = vp.load::<T>(from)?;
        let to = vp.segment_linear(seg::ES, di, T::SIZE, Access::Write)?;
        vp.store(to, value)?;
        let by = stride::<T>(vp);
        vp.advance_string(op, reg::RSI, by);
        vp.advance_string(op, reg::RDI, by);
        Ok((1, true))
    })
}

/// As many elements as lie in the current source and destination page, at
/// once. `None` where element by element is needed.
fn movs_bulk<T: Word>(vp: &mut Vp, op: &Op, count: u64) -> Option<u64> {
    if !bulk_allowed(vp, op, count) {
        return None;
    }
    let (from, to) = (bulk_linear(vp, op, reg::RSI), vp.state.gpr[reg::RDI]);
    let elements = bulk_elements::<T>(from, count).min(bulk_elements::<T>(to, count));
    if elements < 2 {
        return None;
    }
    let bytes = elements * T::SIZE;
    let source = vp.mmu.lookup_read(from, bytes)?;
    let (target, page) = vp.mmu.lookup_write(to, bytes)?;
    // An overlap close behind the source must be copied in order.
    host::move_forward(source, target, bytes as usize, T::SIZE as usize);
    vp.wrote(page);
    vp.state.gpr[reg::RSI] = vp.state.gpr[reg::RSI].wrapping_add(bytes);
    vp.state.gpr[reg::RDI] = to.wrapping_add(bytes);
    Some(elements)
}

/// Bulk is for forward runs in flat 64-bit mode without single-stepping.
fn bulk_allowed(vp: &Vp, op: &Op, count: u64) -> bool {
    count > 1
        && op.address_size == 8
        && op.prefix & (prefix::REP | prefix::REPNE) != 0
        && vp.state.system_flags & (rflags::DF | rflags::TF) == 0
        && vp.state.code64()
}

fn bulk_linear(vp: &Vp, op: &Op, register: usize) -> u64 {
    let segment = usize::from(op.segment);
    let base = if segment == seg::FS || segment == seg::GS {
        vp.state.seg[segment].base
    } else {
        0
    };
    vp.state.gpr[register].wrapping_add(base)
}

fn bulk_elements<T: Word>(linear: u64, count: u64) -> u64 {
    ((0x1000 - (linear & PAGE_MASK)) / T::SIZE).min(count)
}

fn stos<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    repeat(vp, op, |vp, count| {
        if let Some(done) = stos_bulk::<T>(vp, op, count) {
            return Ok((done, true));
        }
        let di = vp.string_register(op, reg::RDI);
        let to = vp.segment_linear(seg::ES, di, T::SIZE, Access::Write)?;
        let value = vp.reg::<T>(0);
        vp.store(to, value)?;
        let by = stride::<T>(vp);
        vp.advance_string(op, reg::RDI, by);
        Ok((1, true))
    })
}

fn stos_bulk<T: Word>(vp: &mut Vp, op: &Op, count: u64) -> Option<u64> {
    if !bulk_allowed(vp, op, count) {
        return None;
    }
    let to = vp.state.gpr[reg::RDI];
    let elements = bulk_elements::<T>(to, count);
    if elements < 2 {
        return None;
    }
    let bytes = elements * T::SIZE;
    let (target, page) = vp.mmu.lookup_write(to, bytes)?;
    host::fill(
        target,
        vp.state.gpr[reg::RAX],
        elements as usize,
        T::SIZE as usize,
    );
    vp.wrote(page);
    vp.state.gpr[reg::RDI] = to.wrapping_add(bytes);
    Some(elements)
}

fn lods<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    repeat(vp, op, |vp, _| {
        let si = vp.string_register(op, reg::RSI);
        let from = vp.segment_linear(usize::from(op.segment), si, T::SIZE, Access::Read)?;
        let value = vp.load::<T>(from)?;
        vp.set_reg(0, value);
        let by = stride::<T>(vp);
        vp.advance_string(op, reg::RSI, by);
        Ok((1, true))
    })
}

/// After a comparison: does REPE or REPNE go on?
fn still_wanted(vp: &Vp, op: &Op) -> bool {
    let wanted = op.prefix & prefix::REPNE == 0;
    vp.state.arith.zero() == wanted
}

fn cmps<T: Number>(vp: &mut Vp, op: &Op) -> Step {
    repeat(vp, op, |vp, _| {
        let (si, di) = (
            vp.string_register(op, reg::RSI),
            vp.string_register(op, reg::RDI),
        );
        let from = vp.segment_linear(usize::from(op.segment), si, T::SIZE, Access::Read)?;
        let a = vp.load::<T>(from)?;
        let to = vp.segment_linear(seg::ES, di, T::SIZE, Access::Read)?;
        let b = vp.load::<T>(to)?;
        a.binary::<arith::Cmp>(b, &mut vp.state.arith);
        let by = stride::<T>(vp);
        vp.advance_string(op, reg::RSI, by);
        vp.advance_string(op, reg::RDI, by);
        Ok((1, still_wanted(vp, op)))
    })
}

fn scas<T: Number>(vp: &mut Vp, op: &Op) -> Step {
    repeat(vp, op, |vp, _| {
        let di = vp.string_register(op, reg::RDI);
        let at = vp.segment_linear(seg::ES, di, T::SIZE, Access::Read)?;
        let b = vp.load::<T>(at)?;
        let a = vp.reg::<T>(0);
        a.binary::<arith::Cmp>(b, &mut vp.state.arith);
        let by = stride::<T>(vp);
        vp.advance_string(op, reg::RDI, by);
        Ok((1, still_wanted(vp, op)))
    })
}
