//! The code around translated code: into it, out of it, and from it to Rust
//! functions and back.

use super::area::Area;
use super::asm::{Asm, Mem, at, cc, host};
use super::layout::{PLACES, S0, S1, S2, field, flags, register};
use super::tlb::{INDEX_MASK, STORES};
use super::{cells, refill, runtime, units};

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stubs {
    /// Enters code: see [`Enter`].
    pub enter: u64,
    /// Calls [`runtime::edge`] with the number in [`S1`].
    pub edge: u64,
    /// Calls [`runtime::access`] with the number in [`S1`].
    pub access: u64,
    /// Calls [`runtime::handle`] with the number in [`S1`].
    pub handle: u64,
    /// Calls [`runtime::vectors`] with the number in [`S1`].
    pub vectors: u64,
    /// Calls [`super::refill::promote`] with the number in [`S1`].
    pub promote: u64,
    /// Fill the cell at [`S1`] for the linear address in [`S0`], for
    /// supervisor's and user's code, and for loads and stores. Uses all scratch
    /// registers and the flags but [`S1`]; CF tells that there is none.
    pub refill: [[u64; 2]; 2],
    /// Calls [`super::refill::refill`] with the cell at [`S1`].
    pub missed: u64,
    /// Calls [`runtime::x87`] with the number in [`S1`].
    pub x87: u64,
    /// Calls [`runtime::upper`] with the number in [`S1`].
    pub upper: u64,
    /// Where a return through an empty shadow stack would lead.
    pub bottom: u64,
}

/// Runs code from the given address on, with GS pointing to the processor,
/// until a Rust function says to leave.
pub(super) type Enter = unsafe extern "sysv64" fn(u64);

const SAVED: [u8; 6] = [
    host::RBX,
    host::RBP,
    host::R12,
    host::R13,
    host::R14,
    host::R15,
];

/// Emits the stubs at the area's start.
pub(super) fn emit(area: &mut Area) -> Option<Stubs> {
    let mut a = Asm::new(area.next());
    let mut stubs = Stubs::default();
    let reload = a.here();
    emit_reload(&mut a);
    stubs.enter = a.here();
    for register in SAVED {
        push(&mut a, register);
    }
    a.lea(host::RSP, super::asm::at(host::RSP, -8));
    a.store(field!(host_stack), host::RSP);
    a.copy(host::RAX, host::RDI);
    a.jump_to(reload);
    let leave = a.here();
    // RSP is the host's.
    a.lea(host::RSP, super::asm::at(host::RSP, 8));
    for &register in SAVED.iter().rev() {
        pop(&mut a, register);
    }
    a.raw(&[0xc3]);
    let call = a.here();
    emit_spill(&mut a);
    a.load(host::RDI, field!(this));
    a.with_registers(false, &[0x8b], host::RSI, S1);
    a.with_registers(false, &[0xff], 2, S2);
    // TEST RAX, RAX
    a.with_registers(true, &[0x85], host::RAX, host::RAX);
    a.jump_if_to(super::asm::cc::NE, reload);
    a.jump_to(leave);
    stubs.edge = a.here();
    a.constant(S2, runtime::edge as *const () as u64);
    a.jump_to(call);
    stubs.access = a.here();
    a.constant(S2, runtime::access as *const () as u64);
    a.jump_to(call);
    stubs.handle = a.here();
    a.constant(S2, runtime::handle as *const () as u64);
    a.jump_to(call);
    stubs.vectors = a.here();
    a.constant(S2, runtime::vectors as *const () as u64);
    a.jump_to(call);
    stubs.promote = a.here();
    a.constant(S2, refill::promote as *const () as u64);
    a.jump_to(call);
    stubs.missed = a.here();
    a.constant(S2, refill::refill as *const () as u64);
    a.jump_to(call);
    for user in [false, true] {
        for write in [false, true] {
            stubs.refill[usize::from(user)][usize::from(write)] = a.here();
            emit_refill(&mut a, user, write);
        }
    }
    stubs.x87 = a.here();
    a.constant(S2, runtime::x87 as *const () as u64);
    a.jump_to(call);
    stubs.upper = a.here();
    a.constant(S2, runtime::upper as *const () as u64);
    a.jump_to(call);
    stubs.bottom = a.here();
    a.store(field!(target), S2);
    a.constant(S2, runtime::bottom as *const () as u64);
    a.jump_to(call);
    area.place(a.bytes()).then_some(stubs)
}

/// Finds a cell's translation in the table in use.
fn emit_refill(a: &mut Asm, user: bool, write: bool) {
    let half = if write { STORES } else { 0 };
    a.copy(S2, S0);
    // SHR R15, 8; AND R15D, index: 16 bytes for each page.
    a.raw(&[0x49, 0xc1, 0xef, 8, 0x41, 0x81, 0xe7]);
    a.raw(&((INDEX_MASK >> 8) as u32).to_le_bytes());
    a.add(S2, field!(table));
    a.add(S0, at(S2, half));
    a.compare(S0, 0xfff);
    let other = a.jump_if(cc::A);
    // CMP CX, page_limit
    a.with_memory(&[0x66], false, &[0x3b], S0, at(S1, cells::PAGE_LIMIT), &[]);
    let crosses = a.jump_if(cc::A);
    a.load(S0, at(S2, half));
    a.load(S2, at(S2, half + 8));
    a.store(at(S1, cells::ADDEND as i32), S2);
    // DEC countdown
    a.with_memory(&[], false, &[0xff], 1, at(S1, cells::COUNTDOWN), &[]);
    let review = a.jump_if(cc::E);
    // TEST RCX, RCX: pages of the lower half are negative here.
    a.with_registers(true, &[0x85], S0, S0);
    let mut unfit = vec![a.jump_if(if user { cc::NS } else { cc::S })];
    if !user {
        a.load(S2, field!(table));
        // CMP R15, kernel_table
        a.with_memory(&[], true, &[0x3b], S2, field!(kernel_table), &[]);
        unfit.push(a.jump_if(cc::NE));
    }
    a.store(at(S1, 0), S0);
    // MOVZX ECX, page_limit
    a.with_memory(
        &[],
        false,
        &[0x0f, 0xb7],
        S0,
        at(S1, cells::PAGE_LIMIT),
        &[],
    );
    a.store(at(S1, cells::LIMIT as i32), S0);
    // CMP logged, 0
    a.with_memory(&[], false, &[0x80], 7, at(S1, cells::LOGGED), &[0]);
    let logged = a.jump_if(cc::NE);
    // MOV logged, 1
    a.with_memory(&[], false, &[0xc6], 0, at(S1, cells::LOGGED), &[1]);
    let Mem::Vp(logs) = field!(logs) else { return };
    let log = Mem::Vp(logs + 8 * usize::from(user));
    a.load(S0, log);
    a.store(at(S0, 0), S1);
    a.lea(S0, at(S0, 8));
    a.store(log, S0);
    a.bind(logged);
    // CLC
    a.raw(&[0xf8, 0xc3]);
    // Only for this once: what the cell held goes with another addend.
    for fix in unfit {
        a.bind(fix);
    }
    a.load(S0, field!(no_stack_page));
    a.store(at(S1, 0), S0);
    // MOV limit, 0
    let limit = at(S1, cells::LIMIT as i32);
    a.with_memory(&[], true, &[0xc7], 0, limit, &[0; 4]);
    a.raw(&[0xf8, 0xc3]);
    for fix in [other, crosses, review] {
        a.bind(fix);
    }
    // STC
    a.raw(&[0xf9, 0xc3]);
}

fn push(a: &mut Asm, register: u8) {
    if register > 7 {
        a.raw(&[0x41]);
    }
    a.raw(&[0x50 | register & 7]);
}

fn pop(a: &mut Asm, register: u8) {
    if register > 7 {
        a.raw(&[0x41]);
    }
    a.raw(&[0x58 | register & 7]);
}

/// Everything from host registers to the state; then the host's stack.
fn emit_spill(a: &mut Asm) {
    for (number, place) in PLACES.iter().enumerate() {
        if let Some(place) = place {
            a.store(register(number), *place);
        }
    }
    // LAHF; SETO AL; MOV flags, AX
    a.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    a.with_memory(&[0x66], false, &[0x89], host::RAX, flags(), &[]);
    a.store(field!(shadow), host::RSP);
    a.load(host::RSP, field!(host_stack));
    units::emit_save(a);
}

/// The reverse, and on to the address in RAX.
fn emit_reload(a: &mut Asm) {
    a.store(field!(resume), host::RAX);
    a.load(host::RSP, field!(shadow));
    units::emit_load(a);
    // MOVZX EAX, flags; ADD AL, 7Fh; SAHF
    a.with_memory(&[], false, &[0x0f, 0xb7], host::RAX, flags(), &[]);
    a.raw(&[0x04, 0x7f, 0x9e]);
    for (number, place) in PLACES.iter().enumerate() {
        if let Some(place) = place {
            a.load(*place, register(number));
        }
    }
    a.jump_through(field!(resume));
}
