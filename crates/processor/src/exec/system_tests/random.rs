//! Hostile code: whatever a guest executes, the processor neither panics nor
//! hangs, and its invariants hold.

use super::machine::*;
use crate::fault::{Completion, Exit};
use crate::state::{cr, rflags, seg};

/// A small generator (xorshift), so that every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// First opcode bytes of the instructions that touch segments, tables and
/// modes.
const SYSTEM: [&[u8]; 36] = [
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x48, 0xcf],
    &[0xcf],
    &[0xcb],
    &[0xca],
    &[0xea],
    &[0x9a],
    &[0xff],
    &[0x8e],
    &[0xcd],
    &[0xcc],
    &[0x9d],
    &[0x9c],
    &[0xfb],
    &[0xf3, 0x6c],
    &[0xf3, 0x6e],
    &[0x66, 0x0f, 0x38, 0x82],
    &[0x48, 0x0f, 0x07],
    &[0xf3, 0x0f, 0xae],
    &[0xe4],
];

fn program(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 200 {
        if random.below(4) != 0 {
            let index = random.below(SYSTEM.len() as u64) as usize;
            bytes.extend_from_slice(SYSTEM[index]);
        }
        for _ in 0..random.below(6) {
            bytes.push(random.next() as u8);
        }
    }
    bytes
}

/// Selectors that mean something, and some that do not.
fn selector(random: &mut Random) -> u64 {
    random.below(0x70) | if random.below(8) == 0 { 0x8000 } else { 0 }
}

fn prepare(random: &mut Random) -> Machine {
    let mut m = match random.below(3) {
        0 => Machine::real(),
        1 => Machine::protected(),
        _ => Machine::long(),
    };
    for at in (GDT + 0x48..GDT + 0x80).step_by(8) {
        // Mostly present system and code descriptors with small bases.
        let value = random.next() & 0x000f_ff00_ffff_ffff | random.below(0x100) << 40;
        m.write64(at, value & 0xffff_ff0f_ffff_ffff);
    }
    for vector in 0..32 {
        let kind = [0x8e, 0x8f, 0x85, 0x86, 0xee][random.below(5) as usize];
        let target = if kind == 0x85 {
            0x48
        } else {
            selector(random) as u16
        };
        m.gate(
            vector,
            target,
            HANDLER + random.below(64),
            kind,
            random.below(8) as u8,
        );
    }
    let code = program(random);
    m.write(CODE, &code);
    let user = program(random);
    m.write(USER, &user);
    let handler = program(random);
    m.write(HANDLER, &handler);
    for at in (STACK - 64..STACK + 64).step_by(4) {
        let value = if random.below(2) == 0 {
            selector(random)
        } else {
            CODE + random.below(64)
        };
        m.write32(at, value as u32);
    }
    if random.below(3) == 0 {
        m.enter_user();
    }
    let values: Vec<u64> = (0..8)
        .map(|_| match random.below(4) {
            0 => selector(random),
            1 => random.next(),
            2 => random.below(1 << 16),
            _ => 0xc000_0080 + random.below(8),
        })
        .collect();
    let flags = random.next() & (rflags::ALL & !rflags::VM);
    let dr7 = random.next() & 0xffff_23ff;
    let odd = random.below(4) == 0;
    m.state(|s| {
        for (i, value) in values.into_iter().enumerate().filter(|(i, _)| *i != 4) {
            s.gpr[i] = value;
        }
        s.set_rflags(flags);
        if odd {
            s.dr = [CODE, STACK, USER, 0x60];
            s.dr7 = dr7 | 0x400;
            s.cr4 |= cr::CR4_VME | cr::CR4_DE | cr::CR4_PVI;
        }
    });
    m
}

fn check(m: &Machine, seed: u64) {
    let state = m.vp.state();
    assert!(state.cpl <= 3, "seed {seed}");
    assert_eq!(state.gpr[16], 0, "seed {seed}");
    assert!(
        !state.long_mode() || state.cr0 & cr::CR0_PG != 0,
        "seed {seed}"
    );
    assert!(!state.v86() || state.cpl == 3, "seed {seed}");
    assert_eq!(state.system_flags & rflags::ARITH, 0, "seed {seed}");
    assert!(!(state.code64() && state.seg[seg::CS].big()), "seed {seed}");
}

#[test]
fn random_system_code_is_survived() {
    for seed in 1..3000u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut m = prepare(&mut random);
        for _ in 0..120 {
            let Some(exit) = m.vp.step() else { continue };
            if exit == Exit::TripleFault {
                break;
            }
            let answer = match (exit, random.below(8)) {
                (_, 0) => Completion::Fault {
                    vector: 13,
                    error: 0,
                },
                (Exit::Cpuid { default, .. }, _) => Completion::Cpuid(default),
                (Exit::IoWrite { .. } | Exit::WriteMsr { .. }, _) => Completion::Done,
                (Exit::MmioWrite { .. } | Exit::WriteCr8 { .. }, _) => Completion::Done,
                _ => Completion::Value(random.next()),
            };
            m.vp.complete(answer);
            check(&m, seed);
        }
        check(&m, seed);
    }
}
