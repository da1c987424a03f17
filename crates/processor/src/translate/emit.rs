//! Emits one region of guest code.

use super::area::Area;
use super::asm::{Asm, Fix, Mem, ShortFix, at, cc};
use super::checks::{Check, Hot};
use super::flow::Item;
use super::layout::{GUEST_RSP, S0, S1, S2, field, register, segment_base};
use super::links::{Edge, Way};
use super::stubs::Stubs;
use super::swap::Swaps;
use super::tlb::{INDEX_MASK, STORES};
use super::units::{Unit, Units};
use crate::op::Op;
use crate::state::seg;
use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Register};

/// An effective address in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Guest register number.
    pub base: Option<u8>,
    /// Guest register number, and log2 of the scale.
    pub index: Option<(u8, u8)>,
    /// Displacement, or the whole address.
    pub displacement: i64,
    /// FS or GS.
    pub segment: Option<u8>,
}

impl Address {
    /// `[register + displacement]`.
    pub(super) fn based(register: usize, displacement: i64) -> Self {
        Self {
            base: Some(register as u8),
            index: None,
            displacement,
            segment: None,
        }
    }

    /// The memory operand of an instruction decoded for address 0, which lies
    /// `start` further. `None` for addresses of 32 bits and of vectors.
    pub(super) fn of(instruction: &Instruction, start: u64) -> Option<Self> {
        let displacement = instruction.memory_displacement64() as i64;
        let number = |register: Register| register.is_gpr64().then(|| register.number() as u8);
        let segment = match instruction.memory_segment() {
            Register::FS => Some(seg::FS as u8),
            Register::GS => Some(seg::GS as u8),
            _ => None,
        };
        let index = match instruction.memory_index() {
            Register::None => None,
            index => {
                let scale = instruction.memory_index_scale().trailing_zeros() as u8;
                Some((number(index)?, scale))
            }
        };
        let (base, displacement) = match instruction.memory_base() {
            Register::None if index.is_none() && instruction.memory_displ_size() < 4 => {
                return None;
            }
            Register::None => (None, displacement),
            Register::RIP => (None, displacement.wrapping_add(start as i64)),
            base => (Some(number(base)?), displacement),
        };
        Some(Self {
            base,
            index,
            displacement,
            segment,
        })
    }
}

/// A place where Rust is called: what it needs to do the instruction's work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// The instruction, for its handler.
    pub op: Op,
    /// The linear address that the op counts from.
    pub start: u64,
    /// The access, where it is one that missed.
    pub access: Option<MissedAccess>,
    /// Code to run again once the access has a translation.
    pub retry: u64,
    /// Code behind the instruction.
    pub resume: u64,
    /// What code here relies on to be in place.
    pub held: Units,
    /// The last x87 instruction: its offset from `start` plus one, 0 if it lies
    /// before the region.
    pub pointer: u16,
}

/// An access whose translation emitted code did not find.
#[derive(Clone, Copy, Debug)]
pub(super) struct MissedAccess {
    pub address: Address,
    pub size: u32,
    pub write: bool,
    pub aligned: u8,
}

/// How an access is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Where.
    pub address: Address,
    /// Bytes.
    pub size: u32,
    /// Stores, too.
    pub write: bool,
    /// Status flags must be kept.
    pub live: bool,
    /// Address bits that must be 0: none, or those of 16 or 32 bytes.
    pub aligned: u8,
}

/// Code out of the way, emitted behind the region.
pub(super) enum Cold {
    /// Calls [`super::runtime::access`].
    Access(Fix, u32),
    /// A look at the table for an access to the stack: the way in, the way
    /// back, and the access.
    Stack(Fix, u64, Access, u32),
    /// Calls [`super::runtime::handle`].
    Handle(Fix, u32),
    /// Fills a check's cell: the way in, the way back, the cell.
    Check(Fix, u64, u32),
    /// Calls [`super::refill::promote`].
    Promote(Fix, u32),
    /// Calls for a unit: [`super::runtime::vectors`], [`super::runtime::x87`].
    Unit(Fix, u32, Unit),
    /// An edge's way out.
    Edge(Vec<Fix>, u32),
    /// The same out of a loop that has exchanged registers.
    SwapEdge(Fix, u32),
    /// A jump through an edge's slot, and its way out.
    Slot(Vec<Fix>, u32),
    /// The way out of an edge with a slot.
    SlotOut(Vec<Fix>, u32),
}

/// Everything that a region refers to by number.
#[derive(Default)]
pub(super) struct Numbered {
    pub sites: Vec<Site>,
    pub edges: Vec<Edge>,
    /// By the number of their cells.
    pub checks: Vec<Check>,
}

/// What emission needs of the translator.
pub(super) struct Context<'a> {
    pub area: &'a mut Area,
    pub numbered: &'a mut Numbered,
    pub stubs: Stubs,
    pub user: bool,
    /// Entries of a counted region before it is hot.
    pub hot_after: u64,
    /// Values from outside are recorded: the handlers fetch them.
    pub recorded: bool,
    /// The negated page of empty cells.
    pub nothing: u64,
}

/// The region under way.
pub(super) struct Emitter<'a> {
    pub asm: Asm,
    pub context: Context<'a>,
    pub cold: Vec<(bool, Cold)>,
    /// Registers that have changed places.
    pub swaps: Swaps,
    /// Linear address of the region.
    pub start: u64,
    /// Where the region's code starts.
    pub entry: u64,
    pub info: InstructionInfoFactory,
    pub encoder: Encoder,
    /// A branch to the region's start stays in this version of it.
    pub own_loop: bool,
    /// What only hot regions have.
    pub hot: Option<Hot>,
    /// Where backward branches to the region's start lead, if not to its entry.
    pub head: Option<u64>,
    /// The last item of the loop that has exchanged registers.
    pub loop_end: Option<usize>,
    /// What is known to be in place.
    pub held: Units,
    /// See [`Site::pointer`].
    pub pointer: u16,
}

/// A state of emission to go back to.
pub(super) struct Mark {
    at: u64,
    cold: usize,
    sites: usize,
    held: Units,
    pointer: u16,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(context: Context<'a>, start: u64) -> Self {
        let base = context.area.next();
        Self {
            asm: Asm::new(base),
            context,
            cold: Vec::new(),
            swaps: Swaps::default(),
            start,
            entry: base,
            info: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            own_loop: true,
            hot: None,
            head: None,
            loop_end: None,
            held: Units::NONE,
            pointer: 0,
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            at: self.asm.here(),
            cold: self.cold.len(),
            sites: self.context.numbered.sites.len(),
            held: self.held,
            pointer: self.pointer,
        }
    }

    /// Undoes what was emitted since `mark`.
    pub(super) fn back_to(&mut self, mark: &Mark) {
        self.asm.truncate(mark.at);
        self.cold.truncate(mark.cold);
        self.context.numbered.sites.truncate(mark.sites);
        self.swaps.forget_sites(mark.sites);
        self.held = mark.held;
        self.pointer = mark.pointer;
        self.forget_scratch();
    }

    /// A new site for an instruction.
    pub(super) fn site(&mut self, op: &Op, access: Option<MissedAccess>) -> u32 {
        // Rust comes back without scratch registers.
        self.forget_scratch();
        let number = self.context.numbered.sites.len() as u32;
        self.context.numbered.sites.push(Site {
            op: *op,
            start: self.start,
            access,
            retry: self.asm.here(),
            resume: 0,
            held: self.held,
            pointer: self.pointer,
        });
        self.note_return(Some(number), None);
        number
    }

    /// Sites since `mark` go on here.
    pub(super) fn resume_here(&mut self, mark: &Mark) {
        let here = self.asm.here();
        for site in &mut self.context.numbered.sites[mark.sites..] {
            site.resume = here;
        }
    }

    /// Calls the instruction's handler.
    pub(super) fn call_handler(&mut self, item: &Item) {
        let mark = self.mark();
        let site = self.site(&item.op, None);
        let stub = self.context.stubs.handle;
        self.leave_to(site, stub);
        self.resume_here(&mark);
        // Rust has noted it, and the handler may have changed it.
        self.pointer = 0;
    }

    fn leave_to(&mut self, number: u32, stub: u64) {
        self.put_back();
        self.asm.constant(S1, u64::from(number));
        self.asm.jump_to(stub);
    }

    // ---- addresses ---------------------------------------------------------

    /// Base register and displacement, if that is all and the register is in
    /// a host register.
    pub(super) fn simple(&self, address: &Address) -> Option<(u8, i32)> {
        if address.index.is_some() || address.segment.is_some() {
            return None;
        }
        let base = self.place(usize::from(address.base?) & 15)?;
        Some((base, i32::try_from(address.displacement).ok()?))
    }

    /// Computes an address, and `extra` to it. `temporary` may be overwritten;
    /// flags stay.
    pub(super) fn address(&mut self, address: &Address, extra: i64, to: u8, temporary: u8) {
        let places = |guest: Option<u8>| guest.and_then(|guest| self.place(usize::from(guest)));
        let base_place = places(address.base);
        let index_place = places(address.index.map(|(index, _)| index));
        let a = &mut self.asm;
        let displacement = address.displacement.wrapping_add(extra);
        let base = address.base.map(|base| {
            base_place.unwrap_or_else(|| {
                a.load(to, register(usize::from(base)));
                to
            })
        });
        let index = address.index.map(|(index, scale)| {
            let place = index_place.unwrap_or_else(|| {
                a.load(temporary, register(usize::from(index)));
                temporary
            });
            (place, scale)
        });
        match (base, index, i32::try_from(displacement)) {
            (Some(base), None, Ok(0)) if base == to => {}
            (Some(base), index, Ok(disp)) => a.lea(to, Mem::At { base, index, disp }),
            (None, Some((index, scale)), Ok(disp)) => {
                a.lea(to, Mem::Scaled { index, scale, disp });
            }
            (None, None, _) => a.constant(to, displacement as u64),
            // Displacements beyond 32 bits come without registers only.
            (Some(base), index, Err(_)) => {
                a.lea(
                    to,
                    Mem::At {
                        base,
                        index,
                        disp: address.displacement as i32,
                    },
                );
                a.lea(to, at(to, extra as i32));
            }
            (None, Some((index, scale)), Err(_)) => {
                a.lea(
                    to,
                    Mem::Scaled {
                        index,
                        scale,
                        disp: address.displacement as i32,
                    },
                );
                a.lea(to, at(to, extra as i32));
            }
        }
        if let Some(segment) = address.segment {
            a.load(temporary, segment_base(usize::from(segment)));
            a.lea(
                to,
                Mem::At {
                    base: to,
                    index: Some((temporary, 0)),
                    disp: 0,
                },
            );
        }
    }

    /// Finds the host's address of an access: the operand to use. Uses all
    /// scratch registers; afterwards [`S2`] is free, and [`S1`] (sometimes
    /// [`S0`] as well) belongs to the operand.
    pub(super) fn probe(&mut self, access: &Access, op: &Op) -> Mem {
        if let Some(mem) = self.checked(access, op) {
            return mem;
        }
        self.forget_scratch();
        let missed = MissedAccess {
            address: access.address,
            size: access.size,
            write: access.write,
            aligned: access.aligned,
        };
        let site = self.site(op, Some(missed));
        let half = if access.write { STORES } else { 0 };
        if let Some((GUEST_RSP, disp)) = self.simple(&access.address)
            && access.size <= 8
            && access.aligned == 0
        {
            return self.probe_stack(access, disp, site);
        }
        if access.live {
            self.probe_keeping_flags(access, half, site)
        } else {
            self.probe_plain(access, half, site)
        }
    }

    fn probe_plain(&mut self, access: &Access, half: i32, site: u32) -> Mem {
        self.address(&access.address, 0, S0, S1);
        let a = &mut self.asm;
        // Shorter in time than PEXT.
        a.copy(S1, S0);
        a.shift_right(S1, 8);
        a.and32(S1, (INDEX_MASK >> 8) as u32);
        a.add(S1, field!(table));
        a.load(S2, at(S1, half));
        a.add_registers(S2, S0);
        a.compare(S2, 4096 - access.size as i32);
        let miss = a.jump_if(cc::A);
        self.push_cold(Cold::Access(miss, site));
        let a = &mut self.asm;
        if access.aligned != 0 {
            // TEST R15B, mask
            a.raw(&[0x41, 0xf6, 0xc7, access.aligned]);
            let miss = a.jump_if(cc::NE);
            self.push_cold(Cold::Access(miss, site));
        }
        self.asm.load(S1, at(S1, half + 8));
        Mem::At {
            base: S0,
            index: Some((S1, 0)),
            disp: 0,
        }
    }

    fn probe_keeping_flags(&mut self, access: &Access, half: i32, site: u32) -> Mem {
        self.address(&access.address, 0, S0, S1);
        self.look_up();
        let a = &mut self.asm;
        a.load(S2, at(S1, half));
        if access.aligned != 0 {
            a.lea(
                S2,
                Mem::At {
                    base: S2,
                    index: Some((S0, 0)),
                    disp: 0,
                },
            );
            let mask = match access.aligned {
                15 => field!(aligned_mask),
                _ => field!(aligned_mask_32),
            };
            a.extract(S0, S2, mask);
        } else {
            // The last byte lies in the page, so the first one does: the page
            // before has another slot.
            let disp = access.size as i32 - 1;
            a.lea(
                S2,
                Mem::At {
                    base: S2,
                    index: Some((S0, 0)),
                    disp,
                },
            );
            a.extract(S0, S2, field!(page_mask));
        }
        let hit = a.jump_if_rcx_zero();
        let miss = a.jump();
        self.push_cold(Cold::Access(miss, site));
        self.short(hit);
        self.asm.load(S1, at(S1, half + 8));
        if let Some((base, disp)) = self.simple(&access.address) {
            return Mem::At {
                base,
                index: Some((S1, 0)),
                disp,
            };
        }
        self.address(&access.address, 0, S0, S2);
        Mem::At {
            base: S0,
            index: Some((S1, 0)),
            disp: 0,
        }
    }

    /// The stack stays in one page for long: a look at that page alone.
    fn probe_stack(&mut self, access: &Access, disp: i32, site: u32) -> Mem {
        let base = GUEST_RSP;
        let a = &mut self.asm;
        a.load(S0, field!(stack_page));
        let index = Some((base, 0));
        let miss = if access.live {
            a.lea(
                S0,
                Mem::At {
                    base: S0,
                    index,
                    disp,
                },
            );
            // In the page and aligned, so that it does not run out of the page
            // at either end. What is not aligned takes the long way.
            a.constant(S1, !0xfff | u64::from(access.size - 1));
            // PEXT RCX, RCX, R14
            a.raw(&[0xc4, 0xc2, 0xf2, 0xf5, 0xce]);
            let hit = a.jump_if_rcx_zero();
            let miss = a.jump();
            self.short(hit);
            miss
        } else {
            a.lea(
                S0,
                Mem::At {
                    base: S0,
                    index,
                    disp,
                },
            );
            a.compare(S0, 4096 - access.size as i32);
            a.jump_if(cc::A)
        };
        self.asm.load(S1, field!(stack_addend));
        let back = self.asm.here();
        self.push_cold(Cold::Stack(miss, back, *access, site));
        Mem::At {
            base,
            index: Some((S1, 0)),
            disp,
        }
    }

    /// The whole look for an access to the stack, which remembers the page
    /// where it may be written.
    fn find_stack_page(&mut self, back: u64, access: &Access, site: u32) {
        let half = if access.write { STORES } else { 0 };
        self.address(&access.address, 0, S0, S1);
        self.look_up();
        let a = &mut self.asm;
        a.load(S2, at(S1, half));
        let disp = access.size as i32 - 1;
        a.lea(
            S0,
            Mem::At {
                base: S0,
                index: Some((S2, 0)),
                disp,
            },
        );
        a.extract(S0, S0, field!(page_mask));
        let hit = a.jump_if_rcx_zero();
        self.leave_to(site, self.context.stubs.access);
        self.short(hit);
        let a = &mut self.asm;
        a.load(S1, at(S1, half + 8));
        if access.write {
            a.store(field!(stack_page), S2);
            a.store(field!(stack_addend), S1);
        }
        a.jump_to(back);
    }

    /// The slot for the address in [`S0`]: its entry for loads is at [`S1`].
    /// Uses [`S2`]; flags stay.
    fn look_up(&mut self) {
        let a = &mut self.asm;
        a.extract(S1, S0, field!(index_mask));
        a.load(S2, field!(table));
        a.lea(
            S1,
            Mem::At {
                base: S1,
                index: Some((S1, 0)),
                disp: 0,
            },
        );
        a.lea(
            S1,
            Mem::At {
                base: S2,
                index: Some((S1, 3)),
                disp: 0,
            },
        );
    }

    /// Binds a short jump that is short by construction.
    pub(super) fn short(&mut self, fix: ShortFix) {
        let fits = self.asm.bind_short(fix);
        debug_assert!(fits);
    }

    /// The way out of an edge, which its slot leads to at first.
    fn slot_out(&mut self, edge: u32) {
        let out = self.asm.here();
        self.leave_to(edge, self.context.stubs.edge);
        let way = &mut self.context.numbered.edges[edge as usize].way;
        match way {
            Way::Patch(_) => {}
            Way::Slot(slot, old) => {
                *old = out;
                self.context.area.set_slot(*slot, out);
            }
            Way::Gate(gate) => {
                gate.out = out;
                self.context.area.set_slot(gate.slot, out);
            }
        }
    }

    // ---- the end -----------------------------------------------------------

    /// Emits what is out of the way. False when slots or room run out.
    pub(super) fn finish(&mut self) -> bool {
        for (swapped, cold) in std::mem::take(&mut self.cold) {
            self.swaps.now = swapped;
            match cold {
                Cold::Access(fix, site) => {
                    self.asm.bind(fix);
                    self.leave_to(site, self.context.stubs.access);
                }
                Cold::Stack(fix, back, access, site) => {
                    self.asm.bind(fix);
                    self.find_stack_page(back, &access, site);
                }
                Cold::Check(fix, back, cell) => {
                    self.asm.bind(fix);
                    self.emit_refill(back, cell);
                }
                Cold::Promote(fix, site) => {
                    self.asm.bind(fix);
                    self.leave_to(site, self.context.stubs.promote);
                }
                Cold::Handle(fix, site) => {
                    self.asm.bind(fix);
                    self.leave_to(site, self.context.stubs.handle);
                }
                Cold::Unit(fix, site, unit) => {
                    self.asm.bind(fix);
                    let stubs = &self.context.stubs;
                    let stub = match unit {
                        Unit::Vectors => stubs.vectors,
                        Unit::X87 => stubs.x87,
                        Unit::Upper => stubs.upper,
                    };
                    self.leave_to(site, stub);
                }
                Cold::Edge(fixes, edge) => {
                    for fix in fixes {
                        self.asm.bind(fix);
                    }
                    self.leave_to(edge, self.context.stubs.edge);
                }
                Cold::SwapEdge(fix, edge) => {
                    self.asm.bind(fix);
                    self.end_swaps();
                    let fix = self.asm.jump();
                    self.asm.bind(fix);
                    let at = self.asm.address(fix);
                    self.context.numbered.edges[edge as usize].way = Way::Patch(at);
                    self.leave_to(edge, self.context.stubs.edge);
                }
                Cold::Slot(fixes, edge) => {
                    for fix in fixes {
                        self.asm.bind(fix);
                    }
                    self.end_swaps();
                    if let Way::Slot(slot, _) = self.context.numbered.edges[edge as usize].way {
                        self.asm.jump_through(Mem::Near(slot));
                    }
                    self.slot_out(edge);
                }
                Cold::SlotOut(fixes, edge) => {
                    for fix in fixes {
                        self.asm.bind(fix);
                    }
                    self.slot_out(edge);
                }
            }
        }
        self.finish_swaps();
        self.context.area.place(self.asm.bytes())
    }
}
