//! From bytes to emitted code: one region.
//!
//! A region is entered at its start only. It runs on behind conditional
//! branches that are not taken and behind calls that have returned, up to an
//! unconditional branch, an instruction whose handler may change the mode, or
//! the page's end.

use super::crossing::Second;
use super::emit::{Context, Emitter};
use super::flow::{Item, liveness};
use super::{compare_strings, control::Behind, generic, strings, system, vector};
use crate::decode::Decoder;
use iced_x86::{FlowControl, Mnemonic};

/// The most instructions of a region.
const MOST: usize = 96;

/// Decodes a region; empty when its first instruction does not fit.
pub(super) fn gather(bytes: &[u8], mode: u8) -> Vec<Item> {
    let mut items = Vec::with_capacity(32);
    Decoder::new(mode).each(bytes, |instruction, op| {
        let mut item = Item {
            instruction: *instruction,
            op,
            live: 0,
            live_behind: 0,
            handled: false,
        };
        item.handled = kind(&item) == Kind::Handled;
        let on = match instruction.flow_control() {
            FlowControl::Next => !item.op.is_last() || system::goes_on(&item, mode & 0x30 != 0),
            FlowControl::ConditionalBranch => instruction.is_jcc_short_or_near(),
            FlowControl::Call | FlowControl::IndirectCall => {
                instruction.is_call_near() || instruction.is_call_near_indirect()
            }
            _ => false,
        };
        items.push(item);
        on && items.len() < MOST
    });
    liveness(&mut items);
    items
}

/// How an instruction is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Plain,
    Vector,
    Lea,
    Stack,
    Divide,
    Branch,
    System,
    String,
    CompareString,
    Transfer,
    Handled,
}

fn kind(item: &Item) -> Kind {
    use Mnemonic as M;
    let instruction = &item.instruction;
    match instruction.mnemonic() {
        M::Nop | M::Endbr64 | M::Endbr32 | M::Reservednop if !item.op.is_last() => Kind::Nothing,
        _ if system::is_hint(instruction) && !item.op.is_last() => Kind::Nothing,
        _ if system::is_system(item) => Kind::System,
        _ if strings::is_string(item) => Kind::String,
        _ if compare_strings::is_compare_string(item) => Kind::CompareString,
        M::Syscall | M::Sysretq => Kind::Transfer,
        M::Lea => Kind::Lea,
        M::Push | M::Pop | M::Leave if !item.op.is_last() => Kind::Stack,
        M::Div | M::Idiv => Kind::Divide,
        M::Ret => Kind::Branch,
        _ if instruction.is_jcc_short_or_near()
            || instruction.is_jmp_short_or_near()
            || instruction.is_jmp_near_indirect()
            || instruction.is_call_near()
            || instruction.is_call_near_indirect() =>
        {
            Kind::Branch
        }
        _ if generic::is_plain(item) => Kind::Plain,
        _ if vector::is_vector(item) => Kind::Vector,
        _ => Kind::Handled,
    }
}

/// Emits a region that starts at linear address `start`: the address of its
/// code. `None` when there is nothing to translate, or no room.
pub(super) fn emit(
    context: Context<'_>,
    items: &[Item],
    start: u64,
    second: Option<Second>,
) -> Option<u64> {
    items.first()?;
    let mut emitter = Emitter::new(context, start);
    if let Some(second) = second {
        emitter.gate(&second)?;
    }
    let mut open = true;
    for (number, item) in items.iter().enumerate() {
        match emitter.item(item, number + 1 < items.len())? {
            Behind::Next => {}
            Behind::Nothing => {
                open = false;
                break;
            }
        }
    }
    if open {
        let end = emitter.behind(items.last()?);
        emitter.go_to(end, start)?;
    }
    let entry = emitter.entry;
    emitter.finish().then_some(entry)
}

impl Emitter<'_> {
    fn item(&mut self, item: &Item, more: bool) -> Option<Behind> {
        let done = match kind(item) {
            Kind::Nothing => true,
            Kind::Plain => self.plain(item),
            Kind::Vector => self.vector(item),
            Kind::Lea => self.lea(item),
            Kind::Stack => self.stack(item),
            Kind::Divide => self.divide(item),
            Kind::System => self.system(item, more),
            Kind::String => self.string(item),
            Kind::CompareString => self.compare_string(item),
            Kind::Transfer => match self.transfer(item) {
                Some(behind) => return Some(behind),
                None => false,
            },
            Kind::Branch => {
                let mark = self.mark();
                if let Some(behind) = self.branch(item) {
                    return Some(behind);
                }
                self.back_to(&mark);
                false
            }
            Kind::Handled => false,
        };
        if !done {
            self.call_handler(item);
            if item.op.is_last() {
                return Some(Behind::Nothing);
            }
        }
        Some(Behind::Next)
    }
}
