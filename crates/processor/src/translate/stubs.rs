//! The code around translated code: into it, out of it, and from it to Rust
//! functions and back.

use super::area::Area;
use super::asm::{Asm, host};
use super::layout::{PLACES, S1, S2, field, flags, image, register};
use super::runtime;
use crate::state::Fpu;

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
    stubs.bottom = a.here();
    a.store(field!(target), S2);
    a.constant(S2, runtime::bottom as *const () as u64);
    a.jump_to(call);
    area.place(a.bytes()).then_some(stubs)
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
    // CMP vectors, 0
    a.with_memory(&[], true, &[0x83], 7, field!(vectors), &[0]);
    let none = a.jump_if(super::asm::cc::E);
    for number in 0..16 {
        move_vector(a, 0x11, number);
    }
    // STMXCSR and LDMXCSR
    a.with_memory(&[], false, &[0x0f, 0xae], 3, image(Fpu::MXCSR), &[]);
    a.with_memory(&[], false, &[0x0f, 0xae], 2, field!(host_mxcsr), &[]);
    a.bind(none);
}

/// MOVUPS between a vector register and the image.
fn move_vector(a: &mut Asm, opcode: u8, number: usize) {
    let mem = image(Fpu::XMM + 16 * number);
    a.with_memory(&[], false, &[0x0f, opcode], number as u8, mem, &[]);
}

/// The reverse, and on to the address in RAX.
fn emit_reload(a: &mut Asm) {
    a.store(field!(resume), host::RAX);
    a.load(host::RSP, field!(shadow));
    a.with_memory(&[], true, &[0x83], 7, field!(vectors), &[0]);
    let none = a.jump_if(super::asm::cc::E);
    for number in 0..16 {
        move_vector(a, 0x10, number);
    }
    a.with_memory(&[], false, &[0x0f, 0xae], 3, field!(host_mxcsr), &[]);
    a.with_memory(&[], false, &[0x0f, 0xae], 2, image(Fpu::MXCSR), &[]);
    a.bind(none);
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
