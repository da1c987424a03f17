//! PUSH, POP and LEAVE.

use super::asm::at;
use super::emit::{Access, Address, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RSP, S2, register};
use crate::state::reg;
use iced_x86::{Mnemonic, OpKind};

impl Emitter<'_> {
    /// A stack instruction with 8-byte operands; false (with nothing emitted)
    /// where its form is not handled.
    pub(super) fn stack(&mut self, item: &Item) -> bool {
        if item.op.size != 8 || item.op.is_last() {
            return false;
        }
        let mark = self.mark();
        let done = match item.instruction.mnemonic() {
            Mnemonic::Push => self.push(item),
            Mnemonic::Pop => self.pop(item),
            Mnemonic::Leave => self.leave(item),
            _ => None,
        };
        if done.is_some() {
            self.resume_here(&mark);
        } else {
            self.back_to(&mark);
        }
        done.is_some()
    }

    fn stack_access(
        &mut self,
        item: &Item,
        base: usize,
        displacement: i64,
        write: bool,
    ) -> super::asm::Mem {
        let access = Access {
            address: Address::based(base, displacement),
            size: 8,
            write,
            live: item.live != 0,
            aligned: 0,
        };
        self.probe(&access, &item.op)
    }

    fn push(&mut self, item: &Item) -> Option<()> {
        let instruction = &item.instruction;
        match instruction.op0_kind() {
            OpKind::Register => {
                if !instruction.op0_register().is_gpr64() {
                    return None;
                }
                let guest = instruction.op0_register().number();
                let mem = self.stack_access(item, reg::RSP, -8, true);
                let from = self.place(guest).unwrap_or_else(|| {
                    self.asm.load(S2, register(guest));
                    S2
                });
                self.asm.store(mem, from);
            }
            OpKind::Memory => return None,
            _ => {
                let value = i32::try_from(item.op.imm as i64).ok()?;
                let mem = self.stack_access(item, reg::RSP, -8, true);
                let bytes = value.to_le_bytes();
                self.asm.with_memory(&[], true, &[0xc7], 0, mem, &bytes);
            }
        }
        self.asm.lea(GUEST_RSP, at(GUEST_RSP, -8));
        Some(())
    }

    fn pop(&mut self, item: &Item) -> Option<()> {
        let name = item.instruction.op0_register();
        if item.instruction.op0_kind() != OpKind::Register || !name.is_gpr64() {
            return None;
        }
        let guest = name.number();
        let mem = self.stack_access(item, reg::RSP, 0, false);
        match self.place(guest) {
            Some(place) => self.asm.load(place, mem),
            None => {
                self.asm.load(S2, mem);
                self.asm.store(register(guest), S2);
            }
        }
        if guest != reg::RSP {
            self.asm.lea(GUEST_RSP, at(GUEST_RSP, 8));
        }
        Some(())
    }

    fn leave(&mut self, item: &Item) -> Option<()> {
        let frame = self.place(reg::RBP)?;
        let mem = self.stack_access(item, reg::RBP, 0, false);
        self.asm.load(S2, mem);
        self.asm.lea(GUEST_RSP, at(frame, 8));
        self.asm.copy(frame, S2);
        Some(())
    }
}
