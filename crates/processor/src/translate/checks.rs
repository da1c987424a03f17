//! Hot code: one check for many accesses.
//!
//! Before an instruction of a hot region a check compares the range that it and
//! those behind it access off the same registers with a cell ([`super::cells`]).
//! What the check covers is then accessed without more ado, for as long as
//! these registers keep their values. Checks stand where the flags may be
//! destroyed, so an access behind a comparison is checked before that.
//!
//! A check that fails finds the translation in the table ([`refill`]). Where
//! that does not help (the range leaves its page, is no memory, or has code)
//! the region is left for the plain version of the code from there on, which has
//! no checks. A place that fails too often is noted, and the region translated
//! again without it.
//!
//! [`refill`]: super::runtime::refill

use super::asm::{Mem, cc};
use super::cells::{ADDEND, Cell, LIMIT};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::layout::{S0, S1, S2};
use super::region::{Kind, kind};
use super::units::Units;
use crate::op::Op;
use crate::state::reg;
use iced_x86::{
    InstructionInfo, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory,
};

/// Bytes that one check covers at most, off the stack pointer and otherwise.
const MOST_STACK: i64 = 128;
const MOST: i64 = 256;
/// Instructions that one check looks ahead.
const AHEAD: usize = 48;

/// What is known about a place from earlier translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// The range that it shared with others did not fit often enough.
    Alone,
    /// It wanders: a look at the table is better.
    Wanders,
}

/// What an address is made of, but for the displacement.
type Parts = (Option<u8>, Option<(u8, u8)>, Option<u8>);

fn parts(address: &Address) -> Parts {
    (address.base, address.index, address.segment)
}

/// What an instruction does to checks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effects {
    /// Its own access.
    access: Option<Own>,
    /// Guest registers that it writes, but for a known change of RSP.
    written: u16,
    /// What it adds to RSP.
    stack: i64,
    /// Anything may have happened behind it.
    barrier: bool,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    address: Address,
    size: u32,
    write: bool,
}

/// A range that has been checked.
#[derive(Clone, Copy, Debug)]
struct Open {
    parts: Parts,
    /// Displacements from here to there.
    from: i64,
    to: i64,
    write: bool,
    cell: u32,
    /// A displacement whose address is known to have these bits clear.
    aligned: Option<(i64, u8)>,
}

/// A check, as the runtime needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// The instruction that it stands before.
    pub before: Op,
    /// The instruction whose access it is for.
    pub of: u32,
    /// The linear address of the region.
    pub start: u64,
    /// The lowest address of the range.
    pub address: Address,
    /// Bytes.
    pub span: u32,
    /// The access's own bytes.
    pub own: u32,
    /// Stores are checked for.
    pub write: bool,
    /// User code.
    pub user: bool,
    /// The check's code.
    pub retry: u64,
    /// What that code relies on.
    pub held: Units,
    /// As a site's.
    pub pointer: u16,
    /// Its cell gets runs of windows ([`super::windows`]), this many until the
    /// next look at how often.
    pub windowed: Option<u32>,
    /// Failures that left the region, since [`Check::since`].
    pub falls: u32,
    /// Time stamp of the last look.
    pub since: u64,
}

/// The state of emission of a hot region.
pub(super) struct Hot {
    notes: Vec<(u32, Note)>,
    effects: Vec<Effects>,
    open: Vec<Open>,
    /// The region is a loop: a check pays for one access already.
    pub repeats: bool,
    /// [`S0`] holds this address.
    s0: Option<(Parts, i64)>,
    /// [`S1`] holds this cell's addend.
    s1: Option<u32>,
}

impl Hot {
    pub(super) fn new(items: &[Item], start: u64, notes: &[(u32, Note)]) -> Self {
        let mut factory = InstructionInfoFactory::new();
        Self {
            notes: notes.to_vec(),
            effects: items
                .iter()
                .map(|item| effects(item, start, factory.info(&item.instruction)))
                .collect(),
            open: Vec::new(),
            repeats: false,
            s0: None,
            s1: None,
        }
    }

    fn note(&self, item: &Item) -> Option<Note> {
        self.notes
            .iter()
            .find(|(offset, _)| *offset == item.op.offset.into())
            .map(|&(_, note)| note)
    }

    fn covering(&mut self, parts: &Parts, at: i64, size: u32, write: bool) -> Option<&mut Open> {
        let end = at + i64::from(size);
        self.open.iter_mut().find(|open| {
            open.parts == *parts && open.from <= at && end <= open.to && (open.write || !write)
        })
    }

    fn follow(&mut self, effects: &Effects) {
        if effects.barrier {
            self.open.clear();
            (self.s0, self.s1) = (None, None);
            return;
        }
        self.open
            .retain(|open| !depends(&open.parts, effects.written));
        if self
            .s0
            .is_some_and(|(parts, _)| depends(&parts, effects.written))
        {
            self.s0 = None;
        }
        if effects.stack != 0 {
            for open in &mut self.open {
                if let Some(change) = shift(&open.parts, effects.stack) {
                    open.from -= change;
                    open.to -= change;
                    open.aligned = open.aligned.map(|(at, mask)| (at - change, mask));
                }
            }
            if self.s0.is_some_and(|(parts, _)| shift(&parts, 1).is_some()) {
                self.s0 = None;
            }
        }
    }
}

fn depends((base, index, _): &Parts, written: u16) -> bool {
    let bit = |number: u8| written >> (number & 15) & 1 != 0;
    base.is_some_and(bit) || index.is_some_and(|(number, _)| bit(number))
}

/// How far the address moves when RSP changes by `stack`.
fn shift((base, _, _): &Parts, stack: i64) -> Option<i64> {
    // RSP is no index register.
    (*base == Some(reg::RSP as u8)).then_some(stack)
}

fn effects(item: &Item, start: u64, info: &InstructionInfo) -> Effects {
    let instruction = &item.instruction;
    let kind = kind(item);
    let conditional = instruction.is_jcc_short_or_near();
    let special = matches!(
        kind,
        Kind::Handled | Kind::System | Kind::String | Kind::CompareString | Kind::Transfer
    );
    if special || kind == Kind::Branch && !conditional {
        let barrier = Effects {
            barrier: true,
            ..Effects::default()
        };
        return Effects {
            access: branch_access(item, start),
            ..barrier
        };
    }
    let mut written = 0u16;
    for used in info.used_registers() {
        let register = used.register().full_register();
        if register.is_gpr64()
            && !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            )
        {
            written |= 1 << register.number();
        }
    }
    let rsp = 1u16 << reg::RSP;
    let mut stack = 0;
    if let Some(change) = stack_change(item) {
        written &= !rsp;
        stack = change;
    }
    Effects {
        access: own_access(item, start, kind, info.used_memory()),
        written,
        stack,
        barrier: false,
    }
}

/// What is added to RSP, for the usual ways to change it.
fn stack_change(item: &Item) -> Option<i64> {
    let instruction = &item.instruction;
    let to_rsp =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Push if item.op.size == 8 => Some(-8),
        Mnemonic::Pop if item.op.size == 8 && !to_rsp => Some(8),
        Mnemonic::Add | Mnemonic::Sub if to_rsp && is_immediate(instruction.op1_kind()) => {
            let value = instruction.immediate(1) as i64;
            let add = instruction.mnemonic() == Mnemonic::Add;
            (value.unsigned_abs() < 1 << 20).then_some(if add { value } else { -value })
        }
        Mnemonic::Lea
            if to_rsp
                && instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None =>
        {
            let value = instruction.memory_displacement64() as i64;
            (value.unsigned_abs() < 1 << 20).then_some(value)
        }
        _ => None,
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(kind, OpKind::Immediate8to64 | OpKind::Immediate32to64)
}

fn own_access(item: &Item, start: u64, kind: Kind, used: &[UsedMemory]) -> Option<Own> {
    let instruction = &item.instruction;
    let stack = |displacement, write| Own {
        address: Address::based(reg::RSP, displacement),
        size: 8,
        write,
    };
    match kind {
        Kind::Stack => match instruction.mnemonic() {
            Mnemonic::Push => Some(stack(-8, true)),
            Mnemonic::Pop => Some(stack(0, false)),
            _ => Some(Own {
                address: Address::based(reg::RBP, 0),
                size: 8,
                write: false,
            }),
        },
        Kind::Plain | Kind::Vector | Kind::Divide => {
            let [memory] = used else { return None };
            let size = instruction.memory_size().size() as u32;
            let has = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
            if !has || !matches!(size, 1 | 2 | 4 | 8 | 16 | 32) {
                return None;
            }
            let write = !matches!(
                memory.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            );
            Some(Own {
                address: Address::of(instruction, start)?,
                size,
                write,
            })
        }
        _ => None,
    }
}

/// The access of a call, a return, or a jump through memory that is made
/// first.
fn branch_access(item: &Item, start: u64) -> Option<Own> {
    let instruction = &item.instruction;
    let own = |address, write| Own {
        address,
        size: 8,
        write,
    };
    if kind(item) != Kind::Branch || item.op.aux != 8 {
        return None;
    }
    if instruction.is_call_near() {
        return Some(own(Address::based(reg::RSP, -8), true));
    }
    if instruction.mnemonic() == Mnemonic::Ret {
        return Some(own(Address::based(reg::RSP, 0), false));
    }
    let indirect = instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect();
    (indirect && instruction.op0_kind() == OpKind::Memory)
        .then(|| Some(own(Address::of(instruction, start)?, false)))?
}

/// A check that is wanted.
struct Wanted {
    parts: Parts,
    from: i64,
    to: i64,
    own: u32,
    write: bool,
    of: u32,
}

impl Emitter<'_> {
    /// Emits the checks that stand before item `at`. False when room runs out.
    pub(super) fn check_before(&mut self, items: &[Item], at: usize) -> bool {
        if self.hot.is_none() || items[at].live != 0 {
            return true;
        }
        let mut change = 0;
        let mut written = 0;
        for number in at..items.len() {
            let Some(hot) = &mut self.hot else {
                return true;
            };
            if number > at && (items[number].live == 0 || number > at + AHEAD) {
                break;
            }
            let effects = hot.effects[number];
            if let Some(own) = effects.access
                && !depends(&parts(&own.address), written)
            {
                let wanted = hot.wanted(items, number, &own, change);
                if let Some(wanted) = wanted
                    && !self.emit_check(&items[at], &wanted)
                {
                    return false;
                }
            }
            if effects.barrier {
                break;
            }
            written |= effects.written;
            change += effects.stack;
        }
        true
    }

    /// Nothing in a loop up to item `end`, a branch, can lead elsewhere and back.
    pub(super) fn loop_is_simple(&self, end: usize) -> bool {
        self.hot
            .as_ref()
            .is_some_and(|hot| hot.effects[..end].iter().all(|effects| !effects.barrier))
    }

    /// Emits the checks of what a loop accesses off registers that it does not
    /// change. False when room runs out.
    pub(super) fn check_loop(&mut self, items: &[Item], end: usize) -> bool {
        let Some(hot) = &self.hot else { return true };
        let rsp = 1u16 << reg::RSP;
        let written = hot.effects[..=end].iter().fold(0, |all, effects| {
            all | effects.written | if effects.stack != 0 { rsp } else { 0 }
        });
        for number in 0..end {
            let Some(hot) = &mut self.hot else { break };
            if let Some(own) = hot.effects[number].access
                && !depends(&parts(&own.address), written)
                && let Some(wanted) = hot.wanted(items, number, &own, 0)
                && !self.emit_check(&items[0], &wanted)
            {
                return false;
            }
        }
        self.forget_scratch();
        true
    }

    /// Notes what an item has done.
    pub(super) fn checked_behind(&mut self, at: usize) {
        if let Some(hot) = &mut self.hot {
            let effects = hot.effects[at];
            hot.follow(&effects);
        }
    }

    /// Scratch registers hold nothing that is known.
    pub(super) fn forget_scratch(&mut self) {
        if let Some(hot) = &mut self.hot {
            (hot.s0, hot.s1) = (None, None);
        }
    }

    fn emit_check(&mut self, before: &Item, wanted: &Wanted) -> bool {
        let (base, index, segment) = wanted.parts;
        let address = Address {
            base,
            index,
            displacement: wanted.from,
            segment,
        };
        let span = (wanted.to - wanted.from) as u32;
        let nothing = self.context.nothing;
        let Some(cell) = self.context.area.new_cell(Cell::empty(span, nothing)) else {
            return false;
        };
        self.forget_scratch();
        let place = self.context.area.cell_address(cell);
        self.note_return(None, Some(cell));
        self.context.numbered.checks.push(Check {
            before: before.op,
            of: wanted.of,
            start: self.start,
            address,
            span,
            own: wanted.own,
            write: wanted.write,
            user: self.context.user,
            retry: self.asm.here(),
            held: self.held,
            pointer: self.pointer,
            windowed: None,
            falls: 0,
            since: 0,
        });
        match self.simple(&address) {
            Some((base, disp)) => {
                self.asm.load(S2, Mem::Near(place));
                let index = Some((S2, 0));
                self.asm.lea(S2, Mem::At { base, index, disp });
            }
            None => {
                self.address(&address, 0, S0, S1);
                self.asm.load(S2, Mem::Near(place));
                self.asm.add_registers(S2, S0);
            }
        }
        // CMP S2, limit
        let limit = Mem::Near(place + LIMIT);
        self.asm.with_memory(&[], true, &[0x3b], S2, limit, &[]);
        let miss = self.asm.jump_if(cc::A);
        let back = self.asm.here();
        self.push_cold(Cold::Check(miss, back, cell));
        let simple = self.simple(&address).is_some();
        if let Some(hot) = &mut self.hot {
            if !simple {
                hot.s0 = Some((wanted.parts, wanted.from));
            }
            hot.open.push(Open {
                parts: wanted.parts,
                from: wanted.from,
                to: wanted.to,
                write: wanted.write,
                cell,
                aligned: None,
            });
        }
        true
    }

    /// The way to a cell's translation: for [`Cold::Check`].
    pub(super) fn emit_refill(&mut self, back: u64, cell: u32) {
        let Some(check) = self.context.numbered.checks.get(cell as usize) else {
            return;
        };
        let (address, write) = (check.address, check.write);
        self.address(&address, 0, S0, S1);
        let place = self.context.area.cell_address(cell);
        self.asm.lea(S1, Mem::Near(place));
        let user = usize::from(self.context.user);
        let stub = self.context.stubs.refill[user][usize::from(write)];
        let call = self.asm.call();
        self.asm.bind_to(call, stub);
        let missed = self.asm.jump_if(cc::B);
        if self.simple(&address).is_none() {
            self.address(&address, 0, S0, S1);
        }
        self.asm.jump_to(back);
        self.asm.bind(missed);
        self.put_back();
        self.asm.jump_to(self.context.stubs.missed);
    }

    /// The operand of an access that has been checked; `None` for others.
    pub(super) fn checked(&mut self, access: &Access, op: &Op) -> Option<Mem> {
        let parts = parts(&access.address);
        let at = access.address.displacement;
        let hot = self.hot.as_mut()?;
        let open = hot.covering(&parts, at, access.size, access.write)?;
        let (cell, aligned) = (open.cell, open.aligned);
        let known = aligned.is_some_and(|(known, mask)| {
            mask >= access.aligned && (known ^ at) & i64::from(access.aligned) == 0
        });
        if access.aligned != 0 && !known {
            if access.live {
                return None;
            }
            open.aligned = Some((at, access.aligned));
            self.check_alignment(access, op);
        }
        let place = self.context.area.cell_address(cell);
        let simple = self.simple(&access.address);
        let hot = self.hot.as_mut()?;
        let known = hot.s0.filter(|(of, _)| *of == parts);
        let (base, disp) = match (simple, known) {
            (Some((base, disp)), _) => (base, disp),
            (None, Some((_, from))) if i32::try_from(at - from).is_ok() => (S0, (at - from) as i32),
            _ => {
                hot.s0 = Some((parts, at));
                self.address(&access.address, 0, S0, S2);
                (S0, 0)
            }
        };
        let hot = self.hot.as_mut()?;
        if hot.s1 != Some(cell) {
            hot.s1 = Some(cell);
            self.asm.load(S1, Mem::Near(place + ADDEND));
        }
        Some(Mem::At {
            base,
            index: Some((S1, 0)),
            disp,
        })
    }

    /// Leaves to the handler where an address is not aligned.
    fn check_alignment(&mut self, access: &Access, op: &Op) {
        let site = self.site(op, None);
        self.address(&access.address, 0, S2, S1);
        self.forget_scratch();
        // TEST R15B, aligned
        self.asm.raw(&[0x41, 0xf6, 0xc7, access.aligned]);
        let miss = self.asm.jump_if(cc::NE);
        self.push_cold(Cold::Access(miss, site));
    }
}

impl Hot {
    /// The check that an access needs: with what else it covers. `change`: of
    /// RSP between the check and the item.
    fn wanted(&mut self, items: &[Item], number: usize, own: &Own, change: i64) -> Option<Wanted> {
        let item = &items[number];
        let parts = parts(&own.address);
        let size = i64::from(own.size);
        let moved = |parts: &Parts, change| shift(parts, change).unwrap_or(0);
        let at = own
            .address
            .displacement
            .checked_add(moved(&parts, change))?;
        // Beside registers, displacements have 32 bits.
        if parts.0.is_some() || parts.1.is_some() {
            i32::try_from(at.checked_sub(MOST)?).ok()?;
        }
        if self.covering(&parts, at, own.size, own.write).is_some() {
            return None;
        }
        let note = self.note(item);
        if note == Some(Note::Wanders) {
            return None;
        }
        let mut wanted = Wanted {
            parts,
            from: at,
            to: at + size,
            own: own.size,
            write: own.write,
            of: item.op.offset.into(),
        };
        if note == Some(Note::Alone) {
            return self.repeats.then_some(wanted);
        }
        let mut covered = 0;
        let most = if shift(&parts, 1).is_some() {
            MOST_STACK
        } else {
            MOST
        };
        let (mut change, mut certain) = (change, true);
        for (item, effects) in items.iter().zip(&self.effects).skip(number).take(AHEAD) {
            if let Some(other) = effects.access
                && (
                    other.address.base,
                    other.address.index,
                    other.address.segment,
                ) == parts
            {
                let from = other
                    .address
                    .displacement
                    .saturating_add(moved(&parts, change));
                let (from, to) = (
                    wanted.from.min(from),
                    wanted.to.max(from.saturating_add(other.size.into())),
                );
                let allowed = !other.write || wanted.write || certain;
                let noted = self
                    .notes
                    .iter()
                    .any(|(of, _)| *of == item.op.offset.into());
                if allowed && !noted && to.saturating_sub(from) <= most {
                    covered += 1;
                    (wanted.from, wanted.to) = (from, to);
                    wanted.write |= other.write;
                }
            }
            if effects.barrier || depends(&parts, effects.written) {
                break;
            }
            certain &= !item.instruction.is_jcc_short_or_near();
            change += effects.stack;
        }
        (self.repeats || covered > 1).then_some(wanted)
    }
}
