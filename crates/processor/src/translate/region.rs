//! From bytes to emitted code: one region.
//!
//! A region is entered at its start only. It runs on behind conditional
//! branches that are not taken and behind calls that have returned, up to an
//! unconditional branch, an instruction whose handler may change the mode, or
//! the page's end.

use super::asm::{Mem, at};
use super::checks::{Hot, Note};
use super::crossing::Second;
use super::emit::{Cold, Context, Emitter};
use super::flow::{Item, liveness};
use super::layout::S0;
use super::units::Unit;
use super::{compare_strings, control::Behind, generic, strings, system, vector, x87};
use crate::decode::Decoder;
use iced_x86::{FlowControl, Mnemonic};

/// The most instructions of a region.
pub(crate) const MOST: usize = 96;

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
pub(super) enum Kind {
    Nothing,
    Plain,
    Vector,
    ZeroUpper,
    X87,
    Mxcsr,
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

pub(super) fn kind(item: &Item) -> Kind {
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
        _ if vector::is_zeroing(item) => Kind::ZeroUpper,
        _ if x87::is_x87(item) => Kind::X87,
        _ if x87::is_mxcsr(item) => Kind::Mxcsr,
        _ => Kind::Handled,
    }
}

/// How much is done for a region.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tier<'a> {
    /// Counts how often it is entered.
    Counted,
    /// Counts nothing: what hot code falls back to.
    Plain,
    /// Counts nothing: what was hot code before.
    Cooled,
    /// With checks, and what is known about its places.
    Hot(&'a [(u32, Note)]),
}

/// NOP of five bytes, which can be made a jump.
const NOP_5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

/// Emits a region that starts at linear address `start`: the address of its
/// code. `None` when there is nothing to translate, or no room.
pub(super) fn emit(
    context: Context<'_>,
    items: &[Item],
    start: u64,
    second: Option<Second>,
    tier: Tier<'_>,
) -> Option<u64> {
    items.first()?;
    let mut emitter = Emitter::new(context, start);
    if let Some(second) = second {
        emitter.gate(&second)?;
    }
    match tier {
        Tier::Cooled => emitter.asm.raw(&NOP_5),
        // A loop goes on with the hot version.
        Tier::Plain => emitter.own_loop = second.is_some(),
        Tier::Counted => emitter.count(items)?,
        Tier::Hot(notes) => emitter.begin_hot(items, notes)?,
    }
    let mut open = true;
    for (number, item) in items.iter().enumerate() {
        if !emitter.check_before(items, number) {
            return None;
        }
        let sites = emitter.context.numbered.sites.len();
        let behind = emitter.item(item, number + 1 < items.len())?;
        if emitter.context.numbered.sites.len() != sites {
            emitter.forget_scratch();
        }
        emitter.checked_behind(number);
        if emitter.loop_end == Some(number) {
            emitter.end_swaps();
        }
        match behind {
            Behind::Next => {}
            Behind::Nothing => {
                open = false;
                break;
            }
        }
    }
    if open {
        emitter.store_pointer();
        let end = emitter.behind(items.last()?);
        emitter.go_to(end, start)?;
    }
    let entry = emitter.entry;
    emitter.finish().then_some(entry)
}

/// How much later code that is no loop becomes hot: it gains less.
const STRAIGHT: u64 = 8;

/// A branch to the region's start.
fn leads_back(item: &Item) -> bool {
    let instruction = &item.instruction;
    let jump = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
    jump && instruction.near_branch_target() == 0
}

/// The unit that an instruction runs on.
fn unit(item: &Item) -> Option<Unit> {
    match kind(item) {
        Kind::Vector => Some(vector::unit(&item.instruction)),
        Kind::X87 => Some(Unit::X87),
        _ => None,
    }
}

impl Emitter<'_> {
    /// Counts an entry. What comes first has more than five bytes, so that it
    /// can be made a jump.
    fn count(&mut self, items: &[Item]) -> Option<()> {
        let first = items.first()?;
        let counter = self.context.area.slot()?;
        let factor = if items.iter().any(leads_back) {
            1
        } else {
            STRAIGHT
        };
        self.context
            .area
            .set_slot(counter, self.context.hot_after * factor);
        let enough = self.asm.here();
        let site = self.site(&first.op, None);
        let fix = self.asm.jump();
        self.push_cold(Cold::Promote(fix, site));
        self.entry = self.asm.here();
        let counter = Mem::Near(counter);
        self.asm.load(S0, counter);
        self.asm.lea(S0, at(S0, -1));
        self.asm.store(counter, S0);
        self.asm.jump_back_if_rcx_zero(enough);
        Some(())
    }

    fn begin_hot(&mut self, items: &[Item], notes: &[(u32, Note)]) -> Option<()> {
        self.hot = Some(Hot::new(items, self.start, notes));
        self.asm.raw(&NOP_5);
        let Some(end) = items.iter().rposition(leads_back) else {
            return Some(());
        };
        if let Some(hot) = &mut self.hot {
            hot.repeats = true;
        }
        if items[0].live != 0 {
            return Some(());
        }
        if self.loop_is_simple(end) {
            for item in &items[..end] {
                if let Some(unit) = unit(item) {
                    self.want(&items[0], unit);
                }
            }
            self.begin_swaps(&items[..=end]);
            self.loop_end = Some(end);
            if !self.check_loop(items, end) {
                return None;
            }
        }
        self.head = Some(self.asm.here());
        self.look_for_requests_at_head()
    }

    fn item(&mut self, item: &Item, more: bool) -> Option<Behind> {
        let done = match kind(item) {
            Kind::Nothing => true,
            Kind::Plain => self.plain(item),
            Kind::Vector => self.vector(item),
            Kind::ZeroUpper => {
                self.zero_upper(item);
                true
            }
            Kind::X87 => self.x87(item),
            Kind::Mxcsr => self.mxcsr(item),
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
                self.store_pointer();
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
