//! Branches, calls and returns.
//!
//! A call pushes the guest's return address, negated, on the shadow stack and
//! makes a host CALL, so that the guest's RET becomes a host RET when the two
//! return addresses agree, and the host's return predictor works for the
//! guest. The shadow stack is emptied whenever one of its entries could be
//! wrong, and whenever a return does not agree with it.

use super::asm::{Mem, at, cc, host};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RSP, S0, S1, S2, element, field, register};
use super::links::{Edge, Way};
use super::units::Units;
use crate::mmu::canonical;
use crate::state::reg;
use iced_x86::{Mnemonic, OpKind};

/// What follows a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The instruction behind it.
    Next,
    /// Nothing: the region ends.
    Nothing,
}

impl Emitter<'_> {
    /// The linear address behind an instruction.
    pub(super) fn behind(&self, item: &Item) -> u64 {
        self.start.wrapping_add(item.op.end())
    }

    fn target(&self, item: &Item) -> u64 {
        self.start
            .wrapping_add(item.instruction.near_branch_target())
    }

    fn same_page(&self, target: u64) -> bool {
        (target ^ self.start) >> 12 == 0
    }

    /// A new edge to `target`; `None` when slots run out.
    fn edge(&mut self, target: u64) -> Option<u32> {
        let way = if self.same_page(target) {
            Way::Patch(0)
        } else {
            Way::Slot(self.context.area.slot()?, 0)
        };
        let number = self.context.numbered.edges.len() as u32;
        self.context.numbered.edges.push(Edge {
            target,
            user: self.context.user,
            way,
        });
        Some(number)
    }

    /// A direct branch instruction; `None` when it cannot be emitted.
    pub(super) fn branch(&mut self, item: &Item) -> Option<Behind> {
        let instruction = &item.instruction;
        if instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect() {
            return self.indirect(item);
        }
        if instruction.mnemonic() == Mnemonic::Ret {
            return self.ret(item);
        }
        if item.op.aux != 8 || !canonical(self.target(item)) {
            return None;
        }
        if instruction.is_jcc_short_or_near() {
            self.conditional(item)?;
            return Some(Behind::Next);
        }
        if instruction.is_jmp_short_or_near() {
            self.go_to(self.target(item), self.behind(item))?;
            return Some(Behind::Nothing);
        }
        if instruction.is_call_near() && canonical(self.behind(item)) {
            self.call(item)?;
            return Some(Behind::Next);
        }
        None
    }

    fn conditional(&mut self, item: &Item) -> Option<()> {
        let target = self.target(item);
        let condition = item.op.dst & 15;
        if let Some(head) = self.head
            && target == self.start
        {
            self.asm.jump_if_to(condition, head);
            return Some(());
        }
        if target < self.behind(item) {
            let skip = self.asm.jump_if(condition ^ 1);
            let behind = self.behind(item);
            self.while_put_back(|emitter| emitter.go_to(target, behind))?;
            self.asm.bind(skip);
            return Some(());
        }
        let edge = self.edge(target)?;
        let fix = self.asm.jump_if(condition);
        if self.swaps.now && self.same_page(target) {
            self.push_cold(Cold::SwapEdge(fix, edge));
        } else if self.same_page(target) {
            self.context.numbered.edges[edge as usize].way = Way::Patch(self.asm.address(fix));
            self.push_cold(Cold::Edge(vec![fix], edge));
        } else {
            self.push_cold(Cold::Slot(vec![fix], edge));
        }
        Some(())
    }

    /// An unconditional way to `target`. Backwards it looks for requests.
    pub(super) fn go_to(&mut self, target: u64, from: u64) -> Option<()> {
        if let Some(head) = self.head
            && target == self.start
        {
            self.asm.jump_to(head);
            return Some(());
        }
        let edge = self.edge(target)?;
        let request = (target < from).then(|| self.look_for_requests());
        let mut ways_out = Vec::new();
        if target == self.start && self.own_loop {
            self.asm.jump_to(self.entry);
        } else if self.same_page(target) {
            let fix = self.asm.jump();
            self.context.numbered.edges[edge as usize].way = Way::Patch(self.asm.address(fix));
            ways_out.push(fix);
        } else if let Way::Slot(slot, _) = self.context.numbered.edges[edge as usize].way {
            self.asm.jump_through(Mem::Near(slot));
        }
        if let Some(request) = request {
            self.short(request);
            ways_out.push(self.asm.jump());
        }
        self.push_cold(if self.same_page(target) {
            Cold::Edge(ways_out, edge)
        } else {
            Cold::SlotOut(ways_out, edge)
        });
        Some(())
    }

    /// Looks for requests where a loop starts, with flags that nobody wants.
    pub(super) fn look_for_requests_at_head(&mut self) -> Option<()> {
        let edge = self.edge(self.start)?;
        self.asm.load(S0, field!(go));
        // CMP DWORD PTR [RCX], 0
        self.asm
            .with_memory(&[], false, &[0x83], 7, at(S0, 0), &[0]);
        let request = self.asm.jump_if(cc::E);
        self.push_cold(Cold::Edge(vec![request], edge));
        Some(())
    }

    /// Jumps (short) when somebody wants attention. Uses [`S0`]; flags stay.
    fn look_for_requests(&mut self) -> super::asm::ShortFix {
        self.asm.load(S0, field!(go));
        self.asm.load32(S0, at(S0, 0));
        self.asm.jump_if_rcx_zero()
    }

    fn push_access(live: bool) -> Access {
        Access {
            address: Address::based(reg::RSP, -8),
            size: 8,
            write: true,
            live,
            aligned: 0,
        }
    }

    fn call(&mut self, item: &Item) -> Option<()> {
        let (target, back) = (self.target(item), self.behind(item));
        let edge = self.edge(target)?;
        let mark = self.mark();
        self.push_return(item, back);
        let bounded = self.same_page(target) && target >= back;
        let full = (!bounded).then(|| self.check_depth());
        let request = (target < back).then(|| self.look_for_requests());
        self.push_shadow(back);
        let mut ways_out = Vec::new();
        let slot = self.context.numbered.edges[edge as usize].slot();
        let mut call = None;
        match slot {
            None => {
                let fix = self.asm.call();
                self.context.numbered.edges[edge as usize].way = Way::Patch(self.asm.address(fix));
                call = Some(fix);
            }
            Some((slot, _)) => self.asm.call_through(Mem::Near(slot)),
        }
        self.landing(full, request, &mut ways_out);
        ways_out.extend(call);
        self.push_cold(if slot.is_none() {
            Cold::Edge(ways_out, edge)
        } else {
            Cold::SlotOut(ways_out, edge)
        });
        self.resume_here(&mark);
        self.held = Units::NONE;
        Some(())
    }

    /// Where a host RET arrives, and the ways around the call.
    fn landing(
        &mut self,
        full: Option<(super::asm::ShortFix, u64)>,
        request: Option<super::asm::ShortFix>,
        ways_out: &mut Vec<super::asm::Fix>,
    ) {
        self.asm.lea(host::RSP, at(host::RSP, 8));
        if full.is_none() && request.is_none() {
            return;
        }
        let on = self.asm.jump();
        if let Some((full, back)) = full {
            self.short(full);
            self.reset_shadow();
            self.asm.jump_to(back);
        }
        if let Some(request) = request {
            self.short(request);
            ways_out.push(self.asm.jump());
        }
        self.asm.bind(on);
    }

    /// Stores the return address on the guest's stack.
    fn push_return(&mut self, item: &Item, back: u64) {
        let mem = self.probe(&Self::push_access(item.live != 0), &item.op);
        match i32::try_from(back as i64) {
            Ok(low) => {
                let low = low.to_le_bytes();
                self.asm.with_memory(&[], true, &[0xc7], 0, mem, &low);
            }
            Err(_) => {
                self.asm.constant(S2, back);
                self.asm.store(mem, S2);
            }
        }
        self.asm.lea(GUEST_RSP, at(GUEST_RSP, -8));
    }

    /// Jumps (short) when the shadow stack is full; also where to come back to.
    fn check_depth(&mut self) -> (super::asm::ShortFix, u64) {
        // RORX ECX, ESP, 16; MOVZX ECX, CX
        self.asm
            .raw(&[0xc4, 0xe3, 0x7b, 0xf0, 0xcc, 16, 0x0f, 0xb7, 0xc9]);
        let low = self.context.area.stack_low(self.context.user) as i32;
        self.asm.lea32(S0, at(S0, -low));
        let full = self.asm.jump_if_rcx_zero();
        (full, self.asm.here())
    }

    /// Empties the shadow stack.
    fn reset_shadow(&mut self) {
        let top = element(field!(shadow_tops), usize::from(self.context.user));
        self.asm.load(host::RSP, top);
    }

    fn push_shadow(&mut self, back: u64) {
        let value = back.wrapping_neg();
        match i32::try_from(value as i64) {
            Ok(low) => {
                self.asm.raw(&[0x68]);
                self.asm.raw(&low.to_le_bytes());
            }
            Err(_) => {
                self.asm.constant(S2, value);
                // PUSH R15
                self.asm.raw(&[0x41, 0x57]);
            }
        }
    }

    fn ret(&mut self, item: &Item) -> Option<Behind> {
        if item.op.aux != 8 {
            return None;
        }
        let mark = self.mark();
        let access = Access {
            address: Address::based(reg::RSP, 0),
            size: 8,
            write: false,
            live: item.live != 0,
            aligned: 0,
        };
        let mem = self.probe(&access, &item.op);
        self.asm.load(S2, mem);
        let drop = 8 + (item.op.imm & 0xffff) as i32;
        self.asm.load(S0, at(host::RSP, 8));
        self.asm.lea(
            S0,
            Mem::At {
                base: S0,
                index: Some((S2, 0)),
                disp: 0,
            },
        );
        let agrees = self.asm.jump_if_rcx_zero();
        let other = self.asm.jump();
        self.short(agrees);
        self.asm.lea(GUEST_RSP, at(GUEST_RSP, drop));
        self.asm.raw(&[0xc3]);
        self.asm.bind(other);
        self.reset_shadow();
        self.find_jump(item);
        let request = self.look_for_requests();
        self.asm.lea(GUEST_RSP, at(GUEST_RSP, drop));
        self.asm.jump_through(at(S1, 8));
        self.short(request);
        self.call_handler(item);
        self.resume_here(&mark);
        Some(Behind::Nothing)
    }

    /// Looks up the target in [`S2`]: its entry is in [`S1`] then. Calls the
    /// handler for targets that are not there.
    fn find_jump(&mut self, item: &Item) {
        let miss = self.find_target(self.context.user);
        let site = self.site(&item.op, None);
        self.push_cold(Cold::Handle(miss, site));
    }

    /// Looks up the target in [`S2`] among those of a privilege: its entry is
    /// in [`S1`] then. The jump is taken where there is none. Uses [`S0`].
    pub(super) fn find_target(&mut self, user: bool) -> super::asm::Fix {
        let a = &mut self.asm;
        a.extract(S1, S2, field!(jump_mask));
        a.lea(
            S1,
            Mem::At {
                base: S1,
                index: Some((S1, 0)),
                disp: 0,
            },
        );
        a.load(S0, element(field!(jumps), usize::from(user)));
        a.lea(
            S1,
            Mem::At {
                base: S0,
                index: Some((S1, 3)),
                disp: 0,
            },
        );
        a.load(S0, at(S1, 0));
        a.lea(
            S0,
            Mem::At {
                base: S0,
                index: Some((S2, 0)),
                disp: 0,
            },
        );
        let found = a.jump_if_rcx_zero();
        let miss = a.jump();
        self.short(found);
        miss
    }

    fn indirect(&mut self, item: &Item) -> Option<Behind> {
        let instruction = &item.instruction;
        if item.op.aux != 8 {
            return None;
        }
        let mark = self.mark();
        match instruction.op0_kind() {
            OpKind::Register => {
                let guest = instruction.op0_register().full_register().number();
                match self.place(guest) {
                    Some(place) => self.asm.copy(S2, place),
                    None => self.asm.load(S2, register(guest)),
                }
            }
            _ => {
                let access = Access {
                    address: Address::of(instruction, self.start)?,
                    size: 8,
                    write: false,
                    live: item.live != 0,
                    aligned: 0,
                };
                let mem = self.probe(&access, &item.op);
                self.asm.load(S2, mem);
            }
        }
        self.find_jump(item);
        let request = self.look_for_requests();
        if instruction.is_jmp_near_indirect() {
            self.asm.jump_through(at(S1, 8));
            self.short(request);
            self.call_handler(item);
            self.resume_here(&mark);
            return Some(Behind::Nothing);
        }
        let back = self.behind(item);
        if !canonical(back) {
            self.back_to(&mark);
            return None;
        }
        self.asm.load(S1, at(S1, 8));
        self.asm.store(field!(target), S1);
        let on = self.asm.jump();
        self.short(request);
        self.call_handler(item);
        self.asm.bind(on);
        self.push_return(item, back);
        let full = self.check_depth();
        self.push_shadow(back);
        self.asm.call_through(field!(target));
        self.landing(Some(full), None, &mut Vec::new());
        self.resume_here(&mark);
        self.held = Units::NONE;
        Some(Behind::Next)
    }

    /// DIV or IDIV of 32 or 64 bits, where no exception threatens; else by the
    /// handler. False where the form is not handled.
    pub(super) fn divide(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_divide(item).is_some() {
            self.resume_here(&mark);
            true
        } else {
            self.back_to(&mark);
            false
        }
    }

    fn try_divide(&mut self, item: &Item) -> Option<()> {
        let instruction = &item.instruction;
        // The checks need flags, and what DIV makes of them is undefined.
        if item.op.is_last() || item.live != 0 || item.live_behind != 0 {
            return None;
        }
        let memory = instruction.op0_kind() == OpKind::Memory;
        let size = if memory {
            instruction.memory_size().size()
        } else {
            instruction.op0_register().size()
        };
        if size < 4 {
            return None;
        }
        let wide = size == 8;
        let divisor = if memory {
            let access = Access {
                address: Address::of(instruction, self.start)?,
                size: size as u32,
                write: false,
                live: false,
                aligned: 0,
            };
            let mem = self.probe(&access, &item.op);
            self.asm.with_memory(&[], wide, &[0x8b], S2, mem, &[]);
            S2
        } else {
            let guest = instruction.op0_register().full_register().number();
            match self.place(guest) {
                Some(place) => place,
                None => {
                    self.asm.load(S2, register(guest));
                    S2
                }
            }
        };
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        if signed {
            // The dividend is a sign-extended single, the divisor not 0 or -1.
            a.with_registers(wide, &[0x8b], S0, host::RAX);
            a.raw(if wide {
                &[0x48, 0xc1, 0xf9, 63]
            } else {
                &[0xc1, 0xf9, 31]
            });
            a.with_registers(wide, &[0x3b], S0, host::RDX);
            let other = a.jump_if(cc::NE);
            a.with_memory(&[], wide, &[0x8d], S0, at(divisor, 1), &[]);
            a.raw(if wide {
                &[0x48, 0x83, 0xf9, 1]
            } else {
                &[0x83, 0xf9, 1]
            });
            let special = a.jump_if(cc::BE);
            self.push_cold(Cold::Handle(other, site));
            self.push_cold(Cold::Handle(special, site));
        } else {
            // The quotient fits if the upper half is below the divisor.
            a.with_registers(wide, &[0x3b], host::RDX, divisor);
            let other = a.jump_if(cc::AE);
            self.push_cold(Cold::Handle(other, site));
        }
        let extension = if signed { 7 } else { 6 };
        self.asm.with_registers(wide, &[0xf7], extension, divisor);
        Some(())
    }
}
