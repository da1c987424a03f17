//! System instructions as themselves: what kernels do at every entry, exit,
//! lock and copy.
//!
//! Supervisor code is translated at privilege 0 only (see
//! [`crate::Vp::may_translate`]), never while single-stepping, with
//! breakpoints, or while somebody waits for a window to interrupt; so TF, RF
//! and VM are clear, and RFLAGS.IF may be set and cleared by a store. The
//! interrupt shadow of STI needs no note: emitted code looks for requests at
//! branches only, after they are done, and STI is emitted only with the next
//! instruction behind it.

use super::asm::{Asm, Mem, cc, host};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RCX, GUEST_RSP, S0, S1, S2, element, field, register};
use super::layout::{segment_base, selector, state};
use crate::Vp;
use crate::mmu::Mmu;
use crate::state::{Msrs, State, cr, reg, rflags, seg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

/// The instruction may have an emission here.
pub(super) fn is_system(item: &Item) -> bool {
    use Mnemonic as M;
    let instruction = &item.instruction;
    match instruction.mnemonic() {
        M::Cli | M::Sti | M::Cld | M::Std | M::Stac | M::Clac | M::Swapgs => true,
        M::Pushfq | M::Popfq => item.op.size == 8,
        M::Rdtsc | M::Rdtscp => true,
        M::Rdfsbase | M::Rdgsbase => true,
        M::Push => instruction.op0_kind() == OpKind::Memory && item.op.size == 8,
        M::Mov => {
            instruction.op0_kind() == OpKind::Register
                && instruction.op1_kind() == OpKind::Register
                && is_special(instruction.op1_register())
        }
        M::Bt | M::Bts | M::Btr | M::Btc => {
            instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register
        }
        M::Cmpxchg16b => true,
        _ => false,
    }
}

fn is_special(register: Register) -> bool {
    register.is_segment_register()
        || matches!(
            register,
            Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4
        )
}

/// The region goes on behind it, although a block of the interpreter ends.
pub(super) fn goes_on(item: &Item, user: bool) -> bool {
    !user
        && matches!(item.instruction.mnemonic(), Mnemonic::Sti | Mnemonic::Popfq)
        && is_system(item)
}

/// PEXT r64, r64, r64: flags stay.
pub(super) fn extract(a: &mut Asm, to: u8, from: u8, mask: u8) {
    bits(a, 0x82, to, from, mask);
}

/// PDEP r64, r64, r64: flags stay.
fn deposit(a: &mut Asm, to: u8, from: u8, mask: u8) {
    bits(a, 0x83, to, from, mask);
}

fn bits(a: &mut Asm, prefix: u8, to: u8, from: u8, mask: u8) {
    let inverted = (!(to >> 3) & 1) << 7 | 1 << 6 | (!(mask >> 3) & 1) << 5;
    a.raw(&[
        0xc4,
        inverted | 2,
        prefix | (!from & 15) << 3,
        0xf5,
        0xc0 | (to & 7) << 3 | mask & 7,
    ]);
}

/// RORX r64, r64, 32: flags stay.
fn swap_halves(a: &mut Asm, to: u8, from: u8) {
    let inverted = (!(to >> 3) & 1) << 7 | 1 << 6 | (!(from >> 3) & 1) << 5;
    a.raw(&[
        0xc4,
        inverted | 3,
        0xfb,
        0xf0,
        0xc0 | (to & 7) << 3 | from & 7,
        32,
    ]);
}

/// An operation on a 64-bit field with a sign-extended immediate: 1 OR, 4 AND.
pub(super) fn immediate(a: &mut Asm, operation: u8, mem: Mem, value: i32) {
    a.with_memory(&[], true, &[0x81], operation, mem, &value.to_le_bytes());
}

fn msr(offset: usize) -> Mem {
    state(offset_of!(State, msr) + offset)
}

pub(super) fn system_flags() -> Mem {
    state(offset_of!(State, system_flags))
}

impl Emitter<'_> {
    /// Emits a system instruction; false (with nothing emitted) where its form
    /// or privilege does not allow that. `more`: another one follows.
    pub(super) fn system(&mut self, item: &Item, more: bool) -> bool {
        let mark = self.mark();
        if self.try_system(item, more).is_some() {
            self.resume_here(&mark);
            true
        } else {
            self.back_to(&mark);
            false
        }
    }

    fn try_system(&mut self, item: &Item, more: bool) -> Option<()> {
        use Mnemonic as M;
        let instruction = &item.instruction;
        let live = item.live_behind != 0;
        let user = self.context.user;
        if item.op.is_last() && !more {
            return None;
        }
        match instruction.mnemonic() {
            M::Cld => self.change_flag(rflags::DF, false, live),
            M::Std => self.change_flag(rflags::DF, true, live),
            M::Pushfq => self.push_flags(item),
            // What check mode compares must read the same time.
            M::Rdtsc | M::Rdtscp if self.context.recorded => return None,
            M::Rdtsc | M::Rdtscp => self.time_stamp(item),
            M::Push => return self.push_memory(item),
            M::Bt | M::Bts | M::Btr | M::Btc => return self.bit_in_memory(item),
            M::Cmpxchg16b => return self.compare_exchange_16(item),
            M::Mov if instruction.op1_register().is_segment_register() => {
                return self.read_selector(item);
            }
            M::Rdfsbase | M::Rdgsbase => return self.read_base(item),
            // The rest is the supervisor's.
            _ if user => return None,
            M::Mov => return self.read_control(item),
            M::Cli => self.change_flag(rflags::IF, false, live),
            M::Sti => self.change_flag(rflags::IF, true, live),
            M::Stac => self.override_rights(true, live),
            M::Clac => self.override_rights(false, live),
            M::Swapgs => self.swap_gs(),
            M::Popfq => self.pop_flags(item),
            _ => return None,
        }
        Some(())
    }

    /// Sets or clears a system flag.
    fn change_flag(&mut self, flag: u64, on: bool, live: bool) {
        let flags = system_flags();
        let a = &mut self.asm;
        if !live {
            match on {
                true => immediate(a, 1, flags, flag as i32),
                false => immediate(a, 4, flags, !(flag as i32)),
            }
            return;
        }
        a.load(S0, flags);
        a.constant(S1, (rflags::ALL | rflags::FIXED) & !flag);
        extract(a, S0, S0, S1);
        deposit(a, S0, S0, S1);
        if on {
            a.lea(S0, super::asm::at(S0, flag as i32));
        }
        a.store(flags, S0);
    }

    /// STAC and CLAC: another table for data.
    fn override_rights(&mut self, on: bool, live: bool) {
        self.change_flag(rflags::AC, on, live);
        let a = &mut self.asm;
        a.load(S0, element(field!(ac_tables), usize::from(on)));
        a.store(field!(table), S0);
        a.load(S0, element(field!(ac_sets), usize::from(on)));
        a.store(Mem::Vp(offset_of!(Vp, mmu) + offset_of!(Mmu, data_set)), S0);
        if !on {
            a.load(S0, field!(no_stack_page));
            a.store(field!(stack_page), S0);
        }
    }

    fn swap_gs(&mut self) {
        let kernel = msr(offset_of!(Msrs, kernel_gs_base));
        let a = &mut self.asm;
        a.load(S0, segment_base(seg::GS));
        a.load(S1, kernel);
        a.store(segment_base(seg::GS), S1);
        a.store(kernel, S0);
    }

    /// RFLAGS as the guest's into `to`; host flags stay. Uses [`S0`].
    pub(super) fn whole_flags(&mut self, to: u8) {
        let a = &mut self.asm;
        // PUSHFQ; POP
        a.raw(&[0x9c, 0x41, 0x58 | to & 7]);
        a.constant(S0, rflags::ARITH);
        extract(a, to, to, S0);
        deposit(a, to, to, S0);
        a.load(S0, system_flags());
        a.lea(
            to,
            Mem::At {
                base: to,
                index: Some((S0, 0)),
                disp: 0,
            },
        );
    }

    /// The status flags from `from`, which is overwritten.
    pub(super) fn load_status(&mut self, from: u8) {
        let status = (rflags::ARITH as u32).to_le_bytes();
        // AND r32, imm32; PUSH; POPFQ
        self.asm.raw(&[0x41, 0x81, 0xe0 | from & 7]);
        self.asm.raw(&status);
        self.asm.raw(&[0x41, 0x50 | from & 7, 0x9d]);
    }

    fn push_of(item: &Item) -> Access {
        Access {
            address: Address::based(reg::RSP, -8),
            size: 8,
            write: true,
            live: item.live != 0,
            aligned: 0,
        }
    }

    /// Pushes what is in `stash`.
    fn push_stash(&mut self, item: &Item) {
        let mem = self.probe(&Self::push_of(item), &item.op);
        self.asm.load(S2, field!(stash));
        self.asm.store(mem, S2);
        self.asm.lea(GUEST_RSP, super::asm::at(GUEST_RSP, -8));
    }

    fn push_flags(&mut self, item: &Item) {
        self.whole_flags(S2);
        self.asm.store(field!(stash), S2);
        self.push_stash(item);
    }

    fn push_memory(&mut self, item: &Item) -> Option<()> {
        let access = Access {
            address: Address::of(&item.instruction, self.start)?,
            size: 8,
            write: false,
            live: item.live != 0,
            aligned: 0,
        };
        let mem = self.probe(&access, &item.op);
        self.asm.load(S2, mem);
        self.asm.store(field!(stash), S2);
        self.push_stash(item);
        Some(())
    }

    /// POPFQ that changes no more than IF and the status flags.
    fn pop_flags(&mut self, item: &Item) {
        const KEPT: u64 =
            rflags::TF | rflags::DF | rflags::NT | rflags::IOPL | rflags::AC | rflags::ID;
        let access = Access {
            address: Address::based(reg::RSP, 0),
            size: 8,
            write: false,
            // All flags are about to be written.
            live: false,
            aligned: 0,
        };
        let mem = self.probe(&access, &item.op);
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        a.load(S2, mem);
        a.load(S0, system_flags());
        // XOR ECX, R15D; TEST ECX, imm32
        a.with_registers(false, &[0x33], S0, S2);
        a.raw(&[0xf7, 0xc1]);
        a.raw(&(KEPT as u32).to_le_bytes());
        let other = a.jump_if(cc::NE);
        self.push_cold(Cold::Handle(other, site));
        let a = &mut self.asm;
        // MOV ECX, R15D; AND ECX, IF
        a.with_registers(false, &[0x8b], S0, S2);
        a.raw(&[0x81, 0xe1]);
        a.raw(&(rflags::IF as u32).to_le_bytes());
        immediate(a, 4, system_flags(), !(rflags::IF as i32));
        // OR m64, RCX
        a.with_memory(&[], true, &[0x09], S0, system_flags(), &[]);
        a.lea(GUEST_RSP, super::asm::at(GUEST_RSP, 8));
        self.load_status(S2);
    }

    /// RDTSC and RDTSCP, where CR4.TSD does not forbid them.
    fn time_stamp(&mut self, item: &Item) {
        if self.context.user {
            self.unless_bit(item, state(offset_of!(State, cr4)), cr::CR4_TSD);
        }
        let auxiliary = item.instruction.mnemonic() == Mnemonic::Rdtscp;
        let a = &mut self.asm;
        a.raw(if auxiliary {
            &[0x0f, 0x01, 0xf9]
        } else {
            &[0x0f, 0x31]
        });
        swap_halves(a, host::RDX, host::RDX);
        a.load(S0, state(offset_of!(State, tsc_offset)));
        let sum = |base, index| Mem::At {
            base,
            index: Some((index, 0)),
            disp: 0,
        };
        a.lea(host::RAX, sum(host::RAX, host::RDX));
        a.lea(host::RAX, sum(host::RAX, S0));
        swap_halves(a, host::RDX, host::RAX);
        a.with_registers(false, &[0x8b], host::RDX, host::RDX);
        a.with_registers(false, &[0x8b], host::RAX, host::RAX);
        if auxiliary {
            a.load32(GUEST_RCX, msr(offset_of!(Msrs, tsc_aux)));
        }
    }

    /// Leaves the instruction to its handler if a bit is set. Flags stay.
    fn unless_bit(&mut self, item: &Item, field: Mem, bit: u64) {
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        a.load(S0, field);
        a.constant(S1, bit);
        extract(a, S0, S0, S1);
        let clear = a.jump_if_rcx_zero();
        let set = a.jump();
        self.push_cold(Cold::Handle(set, site));
        self.short(clear);
    }

    /// Moves [`S0`] to a general register operand of 4 or 8 bytes.
    fn give(&mut self, to: Register) -> Option<()> {
        if !to.is_gpr32() && !to.is_gpr64() {
            return None;
        }
        let guest = to.full_register().number();
        let wide = to.is_gpr64();
        match self.place(guest) {
            Some(place) => self.asm.with_registers(wide, &[0x8b], place, S0),
            None => {
                if !wide {
                    self.asm.with_registers(false, &[0x8b], S0, S0);
                }
                self.asm.store(register(guest), S0);
            }
        }
        Some(())
    }

    fn read_selector(&mut self, item: &Item) -> Option<()> {
        // MOVZX ECX, selector
        let from = selector(usize::from(item.op.dst) & 7);
        self.asm
            .with_memory(&[], false, &[0x0f, 0xb7], S0, from, &[]);
        self.give(item.instruction.op0_register())
    }

    fn read_control(&mut self, item: &Item) -> Option<()> {
        let offset = match item.instruction.op1_register() {
            Register::CR0 => offset_of!(State, cr0),
            Register::CR2 => offset_of!(State, cr2),
            Register::CR3 => offset_of!(State, cr3),
            Register::CR4 => offset_of!(State, cr4),
            _ => return None,
        };
        self.asm.load(S0, state(offset));
        self.give(item.instruction.op0_register())
    }

    fn read_base(&mut self, item: &Item) -> Option<()> {
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        a.load(S0, state(offset_of!(State, cr4)));
        a.constant(S1, cr::CR4_FSGSBASE);
        extract(a, S0, S0, S1);
        // JRCXZ over the next jump's way around
        let off = a.jump_if_rcx_zero();
        let on = a.jump();
        self.short(off);
        let other = self.asm.jump();
        self.push_cold(Cold::Handle(other, site));
        self.asm.bind(on);
        self.asm
            .load(S0, segment_base(usize::from(item.op.aux) & 7));
        self.give(item.instruction.op0_register())
    }

    /// BT and its kin with a bit number from a register, where that lies
    /// within the operand.
    fn bit_in_memory(&mut self, item: &Item) -> Option<()> {
        let instruction = &item.instruction;
        let number = instruction.op1_register();
        if !number.is_gpr32() && !number.is_gpr64() {
            return None;
        }
        let wide = number.is_gpr64();
        let access = Access {
            address: Address::of(instruction, self.start)?,
            size: number.size() as u32,
            write: instruction.mnemonic() != Mnemonic::Bt,
            live: item.live != 0,
            aligned: 0,
        };
        let site = self.site(&item.op, None);
        let guest = number.full_register().number();
        let place = self.place(guest);
        let a = &mut self.asm;
        match place {
            Some(place) => a.with_registers(wide, &[0x8b], S0, place),
            None => a.with_memory(&[], wide, &[0x8b], S0, register(guest), &[]),
        }
        let within = if wide { 63 } else { 31 };
        a.constant(S1, !within);
        extract(a, S0, S0, S1);
        let inside = a.jump_if_rcx_zero();
        let other = a.jump();
        self.push_cold(Cold::Handle(other, site));
        self.short(inside);
        let mem = self.probe(&access, &item.op);
        self.emit_with(item, Some(mem), false)
    }

    fn compare_exchange_16(&mut self, item: &Item) -> Option<()> {
        let access = Access {
            address: Address::of(&item.instruction, self.start)?,
            size: 16,
            write: true,
            live: item.live != 0,
            aligned: 15,
        };
        let mem = self.probe(&access, &item.op);
        let a = &mut self.asm;
        a.lea(S1, mem);
        a.copy(S0, GUEST_RCX);
        if item.instruction.has_lock_prefix() {
            a.raw(&[0xf0]);
        }
        a.with_memory(&[], true, &[0x0f, 0xc7], 1, super::asm::at(S1, 0), &[]);
        Some(())
    }
}

/// The instruction does nothing that a guest could see.
pub(super) fn is_hint(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw
    )
}
