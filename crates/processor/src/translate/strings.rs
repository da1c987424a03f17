//! STOS and MOVS, alone or repeated, where all they touch lies in one page
//! each: the host's own instruction does them at once.

use super::asm::{Mem, at, host};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RCX, S0, S1, S2, field, register};
use super::system::{extract, system_flags};
use crate::op::prefix;
use crate::state::{reg, rflags, seg};
use iced_x86::Mnemonic;

/// The instruction may have an emission here.
pub(super) fn is_string(item: &Item) -> bool {
    use Mnemonic as M;
    let named = matches!(
        item.instruction.mnemonic(),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq | M::Movsb | M::Movsw | M::Movsd | M::Movsq
    );
    named
        && item.instruction.is_string_instruction()
        && item.op.address_size == 8
        && item.op.prefix & prefix::REPNE == 0
        && usize::from(item.op.segment) != seg::FS
        && usize::from(item.op.segment) != seg::GS
        && !item.op.is_last()
}

fn moves(item: &Item) -> bool {
    use Mnemonic as M;
    matches!(
        item.instruction.mnemonic(),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq
    )
}

/// `[base + RCX of the guest * size + disp]`.
fn counted(base: u8, size: u8, disp: i32) -> Mem {
    Mem::At {
        base,
        index: Some((GUEST_RCX, size.trailing_zeros() as u8)),
        disp,
    }
}

impl Emitter<'_> {
    /// Emits a string instruction. Flags stay.
    pub(super) fn string(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        let repeated = item.op.prefix & prefix::REP != 0;
        // Where the quick way is not open, the handler does all of it.
        let site = self.site(&item.op, None);
        self.check_string(site, repeated);
        if moves(item) {
            self.locate(item, site, reg::RSI, repeated);
            self.asm.store(field!(stash), S2);
        }
        self.locate(item, site, reg::RDI, repeated);
        if moves(item) {
            self.move_string(item, repeated);
        } else {
            self.store_string(item, repeated);
        }
        self.resume_here(&mark);
        true
    }

    /// Forwards, and a count from 1 to 4096.
    fn check_string(&mut self, site: u32, repeated: bool) {
        let a = &mut self.asm;
        a.load(S0, system_flags());
        a.constant(S1, rflags::DF);
        extract(a, S0, S0, S1);
        if repeated {
            a.lea(S2, at(GUEST_RCX, -1));
            a.extract(S2, S2, field!(page_mask));
            a.lea(
                S0,
                Mem::At {
                    base: S0,
                    index: Some((S2, 0)),
                    disp: 0,
                },
            );
        }
        let good = a.jump_if_rcx_zero();
        let other = self.asm.jump();
        self.push_cold(Cold::Handle(other, site));
        self.short(good);
    }

    /// The host's address of what `pointer` points to, in [`S2`]: all elements
    /// lie in its page.
    fn locate(&mut self, item: &Item, site: u32, pointer: usize, repeated: bool) {
        let access = Access {
            address: Address::based(pointer, 0),
            size: u32::from(item.op.size),
            write: pointer == reg::RDI,
            live: item.live != 0,
            aligned: 0,
        };
        let mem = self.probe(&access, &item.op);
        let a = &mut self.asm;
        a.lea(S2, mem);
        if !repeated {
            return;
        }
        a.constant(S1, 0xfff);
        extract(a, S0, S2, S1);
        a.lea(S0, counted(S0, item.op.size, -1));
        a.extract(S0, S0, field!(page_mask));
        let inside = a.jump_if_rcx_zero();
        let other = a.jump();
        self.push_cold(Cold::Handle(other, site));
        self.short(inside);
    }

    /// REP, operand size, and the instruction itself.
    fn string_instruction(&mut self, item: &Item, repeated: bool, opcode: u8) {
        let a = &mut self.asm;
        if item.op.size == 2 {
            a.raw(&[0x66]);
        }
        if repeated {
            a.raw(&[0xf3]);
        }
        if item.op.size == 8 {
            a.raw(&[0x48]);
        }
        a.raw(&[opcode | u8::from(item.op.size != 1)]);
    }

    /// A pointer behind what was done.
    fn advance_pointer(&mut self, item: &Item, repeated: bool, to: u8, from: u8) {
        let mem = if repeated {
            counted(from, item.op.size, 0)
        } else {
            at(from, i32::from(item.op.size))
        };
        self.asm.lea(to, mem);
    }

    fn store_string(&mut self, item: &Item, repeated: bool) {
        let a = &mut self.asm;
        a.copy(S1, host::RDI);
        a.copy(host::RDI, S2);
        if repeated {
            a.copy(S0, GUEST_RCX);
        }
        self.string_instruction(item, repeated, 0xaa);
        self.advance_pointer(item, repeated, host::RDI, S1);
        if repeated {
            self.asm.constant(GUEST_RCX, 0);
        }
    }

    fn move_string(&mut self, item: &Item, repeated: bool) {
        let a = &mut self.asm;
        a.store(register(reg::RSI), host::RSI);
        a.copy(S1, host::RDI);
        a.load(host::RSI, field!(stash));
        a.copy(host::RDI, S2);
        if repeated {
            a.copy(S0, GUEST_RCX);
        }
        self.string_instruction(item, repeated, 0xa4);
        self.asm.load(host::RSI, register(reg::RSI));
        self.advance_pointer(item, repeated, host::RSI, host::RSI);
        self.advance_pointer(item, repeated, host::RDI, S1);
        if repeated {
            self.asm.constant(GUEST_RCX, 0);
        }
    }
}
