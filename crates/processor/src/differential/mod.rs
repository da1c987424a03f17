//! Random programs in random machines: interpreter and translator end in the
//! same state.
//!
//! A program ([`program`]) is made of instructions of every form that user
//! code has ([`pool`]), in loops, branches, calls and returns of every kind,
//! with memory operands around boundaries of pages whose neighbours are
//! contiguous, apart, absent, read-only, another privilege's, or code. It
//! overwrites its own instructions, directly and through another mapping, has
//! services change the mapping, and is run again after devices have changed
//! code and tables. The machine ([`machine`]) has handlers of its own
//! ([`handlers`]): an instruction that faults is passed over, so that a
//! program goes on behind its faults; vector, error code, CR2, RIP and RSP of
//! each are logged. In some programs another thread asks for attention at
//! random instants: the state must then be one that the interpreter has been
//! in, and interrupts in between change nothing.
//!
//! Everything is compared: all registers and flags, the FXSAVE image, all
//! memory with the page tables' accessed and dirty bits and the log, and each
//! exit. The one exception are the status flags of an exception's frame: those
//! that the instruction or its successors overwrite before they are read need
//! not be exact. A handler that goes on behind the instruction clears them.
//!
//! `PARTITA_DIFFERENTIAL_PROGRAMS` sets the number of programs,
//! `PARTITA_DIFFERENTIAL_SEED` the seed, and `PARTITA_DIFFERENTIAL_FIRST` the
//! number of the first program. A difference prints seed, number, disassembly
//! and both states of the smallest program that still differs.

mod assemble;
mod compare;
mod handlers;
mod machine;
mod operands;
mod pool;
mod program;
mod smaller;
mod watch;

use compare::{Pair, Verdict, shrink};
use watch::Watch;

const DEFAULT_PROGRAMS: u64 = 4000;
const DEFAULT_SEED: u64 = 0x6469_6666;
/// Programs that share a pair of machines, one after the other.
const TOGETHER: u64 = 24;
/// Differences that are shown.
const SHOWN: usize = 3;

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
}

/// Compares programs; panics with all differences.
fn compare(seed: u64, first: u64, programs: u64) {
    let watch = Watch::new();
    let mut pair = Pair::new();
    if !pair.translates() {
        println!("not compared: this host cannot run the translator");
        return;
    }
    let mut found = Vec::new();
    let (mut useless, mut instructions) = (0, 0);
    for number in first..first + programs {
        if number % TOGETHER == 0 {
            instructions += pair.blocks;
            pair = Pair::new();
        }
        let program = program::make(seed, number);
        match pair.compare(&program, &watch) {
            Verdict::Same => {}
            Verdict::Useless => useless += 1,
            Verdict::Different(text) => {
                let small = shrink(&program, &watch);
                let text = small.map_or_else(
                    || format!("(only after the programs before it)\n{text}"),
                    |(_, text)| text,
                );
                println!("seed {seed:#x}, program {number}:\n{text}");
                found.push(number);
                pair = Pair::new();
                if found.len() >= SHOWN {
                    break;
                }
            }
        }
    }
    println!(
        "seed {seed:#x}: {programs} programs, {} instructions, {useless} of no use; forms {:?}",
        instructions + pair.blocks,
        pool::Pool::get().sizes()
    );
    assert!(found.is_empty(), "seed {seed:#x}, programs {found:?}");
}

#[test]
fn programs() {
    let seed = setting("PARTITA_DIFFERENTIAL_SEED", DEFAULT_SEED);
    let first = setting("PARTITA_DIFFERENTIAL_FIRST", 0);
    let programs = setting("PARTITA_DIFFERENTIAL_PROGRAMS", DEFAULT_PROGRAMS);
    compare(seed, first, programs);
}

#[test]
fn fresh_programs() {
    use std::hash::{BuildHasher, RandomState};
    let programs = setting("PARTITA_DIFFERENTIAL_PROGRAMS", DEFAULT_PROGRAMS);
    compare(RandomState::new().hash_one(0) >> 8, 0, programs / 2);
}
