//! The guest's vector and x87 registers in the host's.
//!
//! The first instruction of a region that needs them asks whether they are in
//! place ([`Emitter::want`]); if not, Rust notes that they shall be, and the
//! stub that leads back into emitted code loads them ([`emit_load`]). Whatever
//! leads to Rust saves them ([`emit_save`]): Rust may use vector registers as
//! it likes, and finds the x87 empty, with the host's control word.
//!
//! # What is in place
//!
//! [`Link::vectors`] and [`Link::x87`] say it, one by one. x87 registers come
//! and go by FXRSTOR and FXSAVE, which take XMM registers and MXCSR along: with
//! x87 in place, the XMM registers are the guest's, too, whether vector
//! instructions may use them or not. So FXSAVE always saves what belongs there.
//!
//! The pointers to the last x87 instruction and its operand are never the
//! host's: FXSAVE would tell the guest where translated code lies. Those in the
//! state are kept up by emission, see [`super::x87`].
//!
//! Upper halves of YMM registers come with XMM registers, once an AVX
//! instruction has asked for them. [`Fpu::upper_used`] says whether they differ
//! from zero: code that uses them sets it, VZEROUPPER clears it, and while it is
//! clear there is nothing to save and to load. Without them in place, those of
//! the host are clear, so that a guest that uses only SSE does not pay for
//! merging.
//!
//! # How long it stays
//!
//! A region that has asked once does not ask again behind a handler: what it
//! holds ([`Site::held`](super::emit::Site)) is in place again when it goes on,
//! or it does not go on. Beyond that, what was not used between two calls of
//! Rust is not loaded again until it is asked for.

use super::asm::{Asm, Mem, cc, host};
use super::emit::{Cold, Emitter};
use super::flow::Item;
use super::layout::{Link, S0, field, image, upper_half, upper_used};
use crate::Vp;
use crate::exec::vex::XCR0_AVX;
use crate::state::{Fpu, cr};
use iced_x86::Mnemonic;

/// A unit whose registers are brought into the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unit {
    /// XMM registers and MXCSR, for vector instructions.
    Vectors = 1,
    /// x87 and MMX registers and the x87's words.
    X87 = 2,
    /// Upper halves of YMM registers; [`Unit::Vectors`] comes with them.
    Upper = 4,
}

/// A set of [`Unit`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Units(u8);

impl Units {
    /// No unit.
    pub(super) const NONE: Self = Self(0);

    /// `unit` is one of them.
    pub(super) fn has(self, unit: Unit) -> bool {
        self.0 & unit as u8 != 0
    }

    /// These and `unit`.
    pub(super) fn with(self, unit: Unit) -> Self {
        let more = match unit {
            Unit::Upper => Unit::Vectors as u8,
            _ => 0,
        };
        Self(self.0 | unit as u8 | more)
    }

    /// These without upper halves.
    pub(super) fn without_upper(self) -> Self {
        Self(self.0 & !(Unit::Upper as u8))
    }
}

/// MXCSR with all exceptions masked.
const MASKED: u32 = 0x1f80;
/// The x87's exception masks.
const EXCEPTIONS: u16 = 0x3f;
/// Status word: error summary, and its copy.
const PENDING: u16 = 1 << 7 | 1 << 15;

impl Unit {
    /// Not 0 while the unit's registers are in place.
    fn in_place(self) -> Mem {
        match self {
            Self::Vectors => field!(vectors),
            Self::X87 => field!(x87),
            Self::Upper => field!(upper),
        }
    }

    /// Set when the unit is used.
    fn used(self) -> Mem {
        match self {
            Self::Vectors | Self::Upper => field!(vectors_used),
            Self::X87 => field!(x87_used),
        }
    }
}

impl Emitter<'_> {
    /// The unit's registers are in place behind this. Flags that are live
    /// before `item` stay.
    pub(super) fn want(&mut self, item: &Item, unit: Unit) {
        if self.held.has(unit) {
            return;
        }
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        let missing = if item.live == 0 {
            // CMP in_place, 0
            a.with_memory(&[], true, &[0x83], 7, unit.in_place(), &[0]);
            a.jump_if(cc::E)
        } else {
            a.load(S0, unit.in_place());
            let missing = a.jump_if_rcx_zero();
            // JMP over the next jump
            a.raw(&[0xeb, 5]);
            self.short(missing);
            self.asm.jump()
        };
        // MOV used, 1
        self.asm
            .with_memory(&[], false, &[0xc6], 0, unit.used(), &[1]);
        if unit == Unit::Upper {
            self.upper_used(Fpu::UPPER_USED as u8);
        }
        self.held = self.held.with(unit);
        self.push_cold(Cold::Unit(missing, site, unit));
    }

    /// Notes whether upper halves may differ from zero.
    fn upper_used(&mut self, used: u8) {
        // MOV upper_used, used
        let value = [used, 0, 0, 0];
        self.asm
            .with_memory(&[], true, &[0xc7], 0, upper_used(), &value);
    }

    /// VZEROUPPER or VZEROALL: nothing of upper halves need be saved until they
    /// are used again.
    pub(super) fn zero_upper(&mut self, item: &Item) {
        let mark = self.mark();
        self.want(item, Unit::Upper);
        let all = item.instruction.mnemonic() == Mnemonic::Vzeroall;
        self.asm.raw(&[0xc5, if all { 0xfc } else { 0xf8 }, 0x77]);
        self.upper_used(0);
        self.resume_here(&mark);
        self.held = self.held.without_upper();
    }
}

/// VEXTRACTF128 or VINSERTF128 between a register's upper half and the state.
fn move_upper(a: &mut Asm, opcode: u8, number: usize) {
    let Mem::Vp(disp) = upper_half(number) else {
        return;
    };
    let extend = if number < 8 { 0xe3 } else { 0x63 };
    // The source of the other half: the register itself, or none.
    let vvvv = if opcode == INSERT {
        !(number as u8) & 15
    } else {
        15
    };
    let low = (number as u8 & 7) << 3;
    a.raw(&[0x65, 0xc4, extend, vvvv << 3 | 5, opcode, low | 4, 0x25]);
    a.raw(&(disp as u32).to_le_bytes());
    a.raw(&[1]);
}

/// Opcodes for [`move_upper`].
const INSERT: u8 = 0x18;
const EXTRACT: u8 = 0x19;
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// Saves upper halves that are in place, and leaves the host's clear.
fn emit_save_upper(a: &mut Asm) {
    is_zero(a, field!(upper));
    let none = a.jump_if(cc::E);
    is_zero(a, upper_used());
    let clear = a.jump_if(cc::E);
    for number in 0..16 {
        move_upper(a, EXTRACT, number);
    }
    a.raw(&VZEROUPPER);
    a.bind(clear);
    a.bind(none);
}

/// Loads upper halves that are to be in place.
fn emit_load_upper(a: &mut Asm) {
    is_zero(a, field!(upper));
    let none = a.jump_if(cc::E);
    a.raw(&VZEROUPPER);
    is_zero(a, upper_used());
    let clear = a.jump_if(cc::E);
    for number in 0..16 {
        move_upper(a, INSERT, number);
    }
    a.bind(clear);
    a.bind(none);
}

/// MOVUPS between a vector register and the image.
fn move_vector(a: &mut Asm, opcode: u8, number: usize) {
    let mem = image(Fpu::XMM + 16 * number);
    a.with_memory(&[], false, &[0x0f, opcode], number as u8, mem, &[]);
}

/// CMP of a quadword with 0.
fn is_zero(a: &mut Asm, mem: Mem) {
    a.with_memory(&[], true, &[0x83], 7, mem, &[0]);
}

/// An instruction of the group 0F AE: 0 FXSAVE, 1 FXRSTOR, 2 LDMXCSR, 3 STMXCSR.
fn group_15(a: &mut Asm, number: u8, mem: Mem) {
    a.with_memory(&[], number < 2, &[0x0f, 0xae], number, mem, &[]);
}

const FXSAVE: u8 = 0;
const FXRSTOR: u8 = 1;
const LDMXCSR: u8 = 2;
const STMXCSR: u8 = 3;

/// Saves what is in place, and gives Rust the host's control words and an empty
/// x87. Overwrites flags, RAX, RCX and RDX.
pub(super) fn emit_save(a: &mut Asm) {
    is_zero(a, field!(x87));
    let x87 = a.jump_if(cc::NE);
    is_zero(a, field!(vectors));
    let none = a.jump_if(cc::E);
    for number in 0..16 {
        move_vector(a, 0x11, number);
    }
    emit_save_upper(a);
    group_15(a, STMXCSR, image(Fpu::MXCSR));
    group_15(a, LDMXCSR, field!(host_mxcsr));
    let done = a.jump();
    a.bind(x87);
    emit_save_x87(a);
    a.bind(none);
    a.bind(done);
}

fn emit_save_x87(a: &mut Asm) {
    // The pointers are the state's.
    a.load(host::RAX, image(Fpu::FIP));
    a.load(host::RDX, image(Fpu::FDP));
    // MOVZX ECX, FOP
    a.with_memory(&[], false, &[0x0f, 0xb7], host::RCX, image(Fpu::FOP), &[]);
    group_15(a, FXSAVE, image(0));
    emit_save_upper(a);
    a.store(image(Fpu::FIP), host::RAX);
    a.store(image(Fpu::FDP), host::RDX);
    a.with_memory(&[0x66], false, &[0x89], host::RCX, image(Fpu::FOP), &[]);
    // MXCSR_MASK is no part of the state.
    a.with_memory(&[], false, &[0xc7], 0, image(Fpu::MXCSR + 4), &[0; 4]);
    // EMMS
    a.raw(&[0x0f, 0x77]);
    // MOVZX EAX, host_control; CMP AX, FCW
    a.with_memory(
        &[],
        false,
        &[0x0f, 0xb7],
        host::RAX,
        field!(host_control),
        &[],
    );
    a.with_memory(&[0x66], false, &[0x3b], host::RAX, image(0), &[]);
    let same = a.jump_if(cc::E);
    // FLDCW
    a.with_memory(&[], false, &[0xd9], 5, field!(host_control), &[]);
    a.bind(same);
    group_15(a, LDMXCSR, field!(host_mxcsr));
}

/// Loads what is to be in place. Overwrites flags.
pub(super) fn emit_load(a: &mut Asm) {
    is_zero(a, field!(x87));
    let x87 = a.jump_if(cc::NE);
    is_zero(a, field!(vectors));
    let none = a.jump_if(cc::E);
    for number in 0..16 {
        move_vector(a, 0x10, number);
    }
    emit_load_upper(a);
    group_15(a, STMXCSR, field!(host_mxcsr));
    group_15(a, LDMXCSR, image(Fpu::MXCSR));
    let done = a.jump();
    a.bind(x87);
    group_15(a, STMXCSR, field!(host_mxcsr));
    // FNSTCW
    a.with_memory(&[], false, &[0xd9], 7, field!(host_control), &[]);
    group_15(a, FXRSTOR, image(0));
    emit_load_upper(a);
    a.bind(none);
    a.bind(done);
}

impl Vp {
    /// The unit's instructions can run as themselves: no exception can come of
    /// them but those of their memory operands.
    pub(super) fn unit_usable(&self, unit: Unit) -> bool {
        let state = &self.state;
        let mxcsr = state.fpu.mxcsr();
        if state.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 || mxcsr >> 16 != 0 {
            return false;
        }
        match unit {
            Unit::Vectors => state.cr4 & cr::CR4_OSFXSR != 0 && mxcsr & MASKED == MASKED,
            Unit::Upper => {
                state.cr4 & cr::CR4_OSXSAVE != 0
                    && state.xcr0 & XCR0_AVX == XCR0_AVX
                    && self.unit_usable(Unit::Vectors)
            }
            Unit::X87 => {
                state.fpu.control() & EXCEPTIONS == EXCEPTIONS && state.fpu.status() & PENDING == 0
            }
        }
    }

    /// The unit is to be in place, if it can be.
    pub(super) fn place_unit(&mut self, unit: Unit) -> bool {
        let usable = self.unit_usable(unit);
        if usable {
            match unit {
                Unit::Vectors => self.link.vectors = 1,
                Unit::X87 => self.link.x87 = 1,
                Unit::Upper => (self.link.vectors, self.link.upper) = (1, 1),
            }
        }
        usable
    }

    /// Chooses what is loaded on the way into emitted code that holds `held`.
    /// False if that can not be.
    pub(super) fn renew_units(&mut self, held: Units) -> bool {
        let link = &self.link;
        if link.vectors | link.x87 == 0 {
            return held == Units::NONE;
        }
        let (vectors, x87) = (held.has(Unit::Vectors), held.has(Unit::X87));
        let upper = held.has(Unit::Upper);
        let keep_vectors = link.vectors != 0
            && (vectors || link.vectors_used != 0)
            && self.unit_usable(Unit::Vectors);
        let keep_x87 = link.x87 != 0 && (x87 || link.x87_used != 0) && self.unit_usable(Unit::X87);
        let keep_upper = link.upper != 0 && keep_vectors && self.unit_usable(Unit::Upper);
        if upper {
            // Code that holds them does not say any more that it uses them.
            self.state.fpu.use_upper();
        }
        let link = &mut self.link;
        link.upper = u64::from(keep_upper);
        (link.vectors, link.x87) = (u64::from(keep_vectors), u64::from(keep_x87));
        // What is held may be used without a further question.
        (link.vectors_used, link.x87_used) = (u8::from(vectors), u8::from(x87));
        (keep_vectors || !vectors) && (keep_x87 || !x87) && (keep_upper || !upper)
    }
}

impl Link {
    /// Nothing is in place.
    pub(super) fn forget_units(&mut self) {
        (self.vectors, self.x87, self.upper) = (0, 0, 0);
    }
}
