//! PCMPISTRI and its kin: vector instructions with operands that they do not
//! name. RAX, RDX and XMM0 are in their places; RCX is not.

use super::emit::{Access, Address, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RCX, S0};
use super::units::Unit;
use iced_x86::{EncodingKind, Mnemonic, OpKind};

/// The instruction may have an emission here.
pub(super) fn is_compare_string(item: &Item) -> bool {
    use Mnemonic as M;
    let named = matches!(
        item.instruction.mnemonic(),
        M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri | M::Pcmpestrm
    );
    let legacy = item.instruction.code().encoding() == EncodingKind::Legacy;
    named && legacy && !item.op.is_last()
}

impl Emitter<'_> {
    /// Emits such an instruction; false (with nothing emitted) where its form
    /// does not allow that.
    pub(super) fn compare_string(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_compare_string(item).is_some() {
            self.resume_here(&mark);
            true
        } else {
            self.back_to(&mark);
            false
        }
    }

    fn try_compare_string(&mut self, item: &Item) -> Option<()> {
        self.want(item, Unit::Vectors);
        let instruction = &item.instruction;
        let operand = match instruction.op1_kind() {
            OpKind::Memory => {
                let access = Access {
                    address: Address::of(instruction, self.start)?,
                    size: 16,
                    write: false,
                    live: item.live != 0,
                    aligned: 0,
                };
                Some(self.probe(&access, &item.op))
            }
            _ => None,
        };
        self.emit_with(item, operand, false)?;
        if matches!(
            instruction.mnemonic(),
            Mnemonic::Pcmpistri | Mnemonic::Pcmpestri
        ) {
            self.asm.with_registers(false, &[0x8b], GUEST_RCX, S0);
        }
        Some(())
    }
}
