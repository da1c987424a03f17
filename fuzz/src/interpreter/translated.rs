//! `translator`: inputs of the `interpreter` target, run by the translator and
//! compared with the interpreter at every step.
//!
//! Before the code run as is, it is entered several times from one loop head:
//! see [`repeat`].

use super::arena::{Arena, PAGES};
use super::{Mode, answer, layout, mode, option, patch, registers};
use crate::Input;
use processor::{CodeMap, Config, Exit, ProcessorMode, Requests, Vp};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Runs, each up to an exit, of one input.
const RUNS: usize = 48;
/// Kicks before an input is given up.
const MOST_KICKS: usize = 3;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = match input.u8() {
        // Only 64-bit code is translated; others for the ways there and back.
        choice if choice < 0xc0 => Mode::Long,
        choice => Mode::of(choice),
    };
    let options = input.u8() & !option::BLOCKS;
    let seed = input.u64();
    let arena = Arena::get();
    arena.fill(layout::image());
    patch(arena, &mut input);
    single(arena);
    repeat(arena, seed);
    static CONFIG: LazyLock<Config> = LazyLock::new(|| Config {
        mode: ProcessorMode::Check,
        ..Config::default()
    });
    let code = Arc::new(CodeMap::new(PAGES, true));
    let mut vp = Vp::new(CONFIG.clone(), Box::new(arena), code);
    assert!(vp.translates(), "the translator needs BMI2 and FSGSBASE");
    vp.translate_after(2);
    vp.update_state(|state| {
        mode::enter(state, mode, options);
        registers(state, seed, options & option::UNMASKED != 0);
    });
    let before = tables(arena);
    watch(Some(vp.requests()));
    let mut kicks = 0;
    for _ in 0..RUNS {
        let exit = vp.run();
        if let Some(difference) = vp.difference() {
            // Tables that are changed without telling the TLB mean what it holds.
            assert!(tables(arena) != before, "{difference}");
            break;
        }
        if exit == Exit::Kicked {
            kicks += 1;
        }
        if kicks > MOST_KICKS || !answer(&mut vp, exit, &mut input) {
            break;
        }
    }
    watch(None);
}

/// Takes the REP prefix from string instructions that store. One that
/// overwrites itself may go on or not, as on processors: it depends on what
/// the TLB holds.
fn single(arena: Arena) {
    let page = (layout::CODE >> 12) as usize;
    let bytes: Vec<u8> = arena
        .words(page)
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for (i, near) in bytes.windows(5).enumerate() {
        let stores = near[1..]
            .iter()
            .any(|byte| matches!(byte, 0xa4 | 0xa5 | 0xaa | 0xab));
        if matches!(near[0], 0xf2 | 0xf3) && stores {
            arena.write((layout::CODE as usize) + i, &[0x90]);
        }
    }
}

/// The page tables without their accessed and dirty bits.
fn tables(arena: Arena) -> Vec<u64> {
    let first = (layout::TABLES >> 12) as usize;
    (first..first + 16)
        .flat_map(|page| arena.words(page))
        .map(|entry| entry & !0x60)
        .collect()
}

/// Writes a jump back to the code's start behind its first bytes, so that it
/// is a loop: what is entered once is not translated.
fn repeat(arena: Arena, seed: u64) {
    let at = 8 + (seed >> 8 & 0x7f);
    let back = (at as i32 + 5).wrapping_neg();
    let mut jump = [0xe9, 0, 0, 0, 0];
    jump[1..].copy_from_slice(&back.to_le_bytes());
    if seed & 3 != 0 {
        arena.write((layout::CODE + at) as usize, &jump);
    }
}

/// The processor that runs now: it is kicked now and then, for it may be in a
/// loop without end.
fn watch(requests: Option<Requests>) {
    static RUNNING: Mutex<Option<Requests>> = Mutex::new(None);
    static THREAD: LazyLock<()> = LazyLock::new(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_micros(500));
                let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(requests) = &*running {
                    requests.kick();
                }
            }
        });
    });
    LazyLock::force(&THREAD);
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = requests;
}
