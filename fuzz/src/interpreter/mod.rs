//! `interpreter`: the software processor runs what the input says, from any
//! mode, over a little memory.
//!
//! An input is: mode ([`Mode::of`]), options ([`option`]), 8 bytes that choose
//! the general registers ([`registers`]) and seed the others, a count of
//! patches of 11 bytes each (page, offset, contents) to the tables in memory,
//! the length of the code (2 bytes) and the code, and then one answer for each
//! exit ([`answer`]).

mod arena;
pub mod layout;
mod mode;
pub mod translated;

pub use mode::{Mode, option};

use crate::Input;
use arena::{Arena, PAGES};
use processor::{
    CodeMap, Completion, Config, Event, Exit, State, TranslateRequest, Vp, cr, reg, rflags, seg,
};
use std::sync::{Arc, LazyLock};

/// Instructions (or blocks of them) and events of one input.
const STEPS: usize = 128;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = Mode::of(input.u8());
    let options = input.u8();
    let seed = input.u64();
    let arena = Arena::get();
    arena.fill(layout::image());
    patch(arena, &mut input);
    let code = Arc::new(CodeMap::new(PAGES, false));
    // Once: CPUID, which it asks, is slow where the host is a virtual machine.
    static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);
    let mut vp = Vp::new(CONFIG.clone(), Box::new(arena), code);
    vp.update_state(|state| {
        mode::enter(state, mode, options);
        registers(state, seed, options & option::UNMASKED != 0);
    });
    // Never taken, as `Vp::step` does not look: repeated instructions give way
    // at their first opportunity.
    vp.requests().kick();
    if options & option::BLOCKS != 0 {
        // While interrupts are disabled, a step is a block and not an instruction.
        vp.request_interrupt_window(true);
    }
    for _ in 0..STEPS {
        if let Some(exit) = vp.step()
            && !answer(&mut vp, exit, &mut input)
        {
            break;
        }
        check(vp.state());
    }
    translate(&mut vp, seed);
}

/// Puts the input's patches and code into memory.
fn patch(arena: Arena, input: &mut Input<'_>) {
    for _ in 0..input.u8() & 31 {
        let page = usize::from(input.u8());
        let offset = usize::from(input.u16() & 0xfff);
        arena.write(page % PAGES * 4096 + offset, input.bytes(8));
    }
    let length = usize::from(input.u16() & 0xfff);
    arena.write(layout::CODE as usize, input.bytes(length));
}

/// General registers: one of 16 kinds of value each. The vector registers: by
/// the generator that `seed` starts.
fn registers(state: &mut State, seed: u64, unmasked: bool) {
    let mut random = seed | 1;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for (index, gpr) in state.gpr[..16].iter_mut().enumerate() {
        *gpr = match seed >> (4 * index) & 15 {
            _ if index == reg::RSP => *gpr,
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => 0x8000_0000_0000_0000,
            4 => 0x5000,
            5 => 0x5ffd,
            6 => 0x3_fffc,
            7 => 0x4_0ff9,
            8 => 0xfee0_0000,
            9 => 0xffff_ffff_8000_5000,
            10 => 0x7fff_ffff_ffff,
            11 => layout::CODE,
            12 => layout::TABLES + 0x3028,
            13 => 0x10,
            14 => next() & 0xffff,
            _ => next(),
        };
    }
    for at in (processor::Fpu::ST..416).step_by(8) {
        state.fpu.fxsave[at..at + 8].copy_from_slice(&next().to_le_bytes());
    }
    if unmasked {
        let control = next();
        state.fpu.set_mxcsr(control as u32 & 0xffff);
        state.fpu.fxsave[..2].copy_from_slice(&(control >> 16 & 0x0f7f).to_le_bytes()[..2]);
        // The tags of the abridged image.
        state.fpu.fxsave[4] = (control >> 32) as u8;
    }
}

/// Answers an exit with the next bytes of the input. False: the end.
fn answer(vp: &mut Vp, exit: Exit, input: &mut Input<'_>) -> bool {
    match exit {
        Exit::TripleFault | Exit::Halt if input.is_empty() => return false,
        Exit::TripleFault => {
            vp.reset(input.u8() & 1 != 0);
            vp.startup(8);
            // As a start-up IPI to 0x8000 does; the code is seen through CS.
        }
        Exit::Halt | Exit::InterruptWindow | Exit::Kicked => {
            vp.complete(Completion::Done);
            outside(vp, input);
        }
        Exit::Cpuid { default, .. } => vp.complete(Completion::Cpuid(default)),
        Exit::MmioRead { gpa, size } | Exit::MmioWrite { gpa, size, .. } => {
            assert!((1..=8).contains(&size) && (gpa & 0xfff) + u64::from(size) <= 0x1000);
            complete(vp, input);
        }
        _ => complete(vp, input),
    }
    true
}

fn complete(vp: &mut Vp, input: &mut Input<'_>) {
    let choice = input.u8();
    vp.complete(match choice {
        0 | 1 => Completion::Done,
        2 => Completion::Retry,
        3 => Completion::Fault {
            vector: 13,
            error: 0,
        },
        4 => Completion::Fault {
            vector: 6,
            error: 0,
        },
        5 => Completion::Value(input.u64()),
        _ => Completion::Value(u64::from(choice)),
    });
}

/// Something happens between two instructions.
fn outside(vp: &mut Vp, input: &mut Input<'_>) {
    match input.u8() % 8 {
        0 | 1 => vp.request_interrupt_window(false),
        2 if vp.can_nmi() => vp.inject(Event::Nmi),
        3 | 4 if vp.can_interrupt() => vp.inject(Event::Interrupt(input.u8())),
        5 => {
            let vector = input.u8() & 31;
            vp.inject(Event::Exception {
                vector,
                error: u32::from(input.u8()),
            });
        }
        6 => vp.gpa_space_changed(),
        7 => vp.flush_page(input.u64()),
        _ => vp.request_nmi_window(input.u8() & 1 != 0),
    }
}

/// What holds between any two instructions (Intel SDM 3A 2.5, 4.1, 9.8.5).
fn check(state: &State) {
    assert_eq!(state.gpr[reg::ZERO], 0);
    assert!(state.cpl <= 3);
    assert!(
        state.rflags() & !rflags::ALL == rflags::FIXED,
        "{:x}",
        state.rflags()
    );
    let paging = state.cr0 & cr::CR0_PG != 0;
    assert!(!paging || state.protected());
    let long = paging && state.efer & cr::EFER_LME != 0;
    assert_eq!(state.long_mode(), long);
    assert!(!long || state.cr4 & cr::CR4_PAE != 0);
    assert!(!state.v86() || state.cpl == 3 && !long);
    assert!(state.protected() || state.cpl == 0);
    assert!(state.code64() || state.rip <= u64::from(u32::MAX));
    assert!(state.cr4 & cr::CR4_PCIDE == 0 || long);
    assert!(!state.code64() || !state.seg[seg::CS].big());
    assert!(state.fpu.mxcsr() <= 0xffff);
}

/// Addresses translated for somebody outside, with every kind of access.
fn translate(vp: &mut Vp, seed: u64) {
    for linear in [0, layout::CODE, 0x4_0000, 0x20_0000, 0x4000_0000, seed] {
        let request = TranslateRequest {
            write: seed & 1 != 0,
            execute: seed & 2 != 0,
            user: seed & 4 != 0,
            exempt: seed & 8 != 0,
            mark: seed & 16 != 0,
        };
        let _ = vp.translate(linear, request);
    }
}
