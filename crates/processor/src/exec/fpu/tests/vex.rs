//! VEX-encoded instructions against the host, and what makes them unavailable.

use super::differential::{BASE, BASE_NUMBER, Bench, ENCODINGS, aligned, encode, instruction};
use super::machine::{self, DATA, execute, machine, peek, poke};
use super::random::Random;
use crate::fault::{Exit, vector};
use crate::native::{VexForm, usage, vex_feature};
use crate::state::{Fpu, cr};
use crate::vp::{ProcessorMode, Vp};
use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};

/// VADDPS YMM1, YMM2, YMM3.
const VADDPS: [u8; 4] = [0xc5, 0xec, 0x58, 0xcb];
/// VMOVUPS YMM1, [RBX], and back.
const VMOVUPS: [u8; 4] = [0xc5, 0xfc, 0x10, 0x0b];
const VMOVUPS_STORE: [u8; 4] = [0xc5, 0xfc, 0x11, 0x0b];
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];
const VZEROALL: [u8; 3] = [0xc5, 0xfc, 0x77];
/// ANDN EAX, ECX, EDX.
const ANDN: [u8; 5] = [0xc4, 0xe2, 0x70, 0xf2, 0xc2];
/// VMASKMOVPS YMM1, YMM2, [RBX], and the store of YMM1.
const VMASKMOVPS: [u8; 5] = [0xc4, 0xe2, 0x6d, 0x2c, 0x0b];
const VMASKMOVPS_STORE: [u8; 5] = [0xc4, 0xe2, 0x6d, 0x2e, 0x0b];
/// VPGATHERDD YMM1, [RBX + YMM2], YMM3.
const VPGATHERDD: [u8; 6] = [0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x13];
/// VMASKMOVDQU XMM1, XMM2.
const VMASKMOVDQU: [u8; 4] = [0xc5, 0xf9, 0xf7, 0xca];

/// Whether this host can compare at all.
fn comparable() -> bool {
    let has = vex_feature(CpuidFeature::AVX2);
    if !has {
        println!("not compared: this host has no AVX2");
    }
    has
}

fn all_codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        code.encoding() == EncodingKind::VEX
            && code.op_code().is_instruction()
            && code
                .cpuid_features()
                .iter()
                .all(|&feature| vex_feature(feature))
    })
}

fn is_gather(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let kinds = code.op_code();
    (0..kinds.op_count()).any(|i| {
        matches!(
            kinds.op_kind(i),
            K::mem_vsib32x | K::mem_vsib32y | K::mem_vsib64x | K::mem_vsib64y
        )
    })
}

/// Codes whose operands are registers, plain memory and immediates.
pub(super) fn vex_codes() -> impl Iterator<Item = Code> {
    use Mnemonic as M;
    all_codes()
        .filter(|&code| !is_gather(code))
        .filter(|code| !matches!(code.mnemonic(), M::Vldmxcsr | M::Vmaskmovdqu))
}

/// Rounds once where a plain instruction rounds twice.
pub(super) fn fused(code: Code) -> bool {
    code.cpuid_features().contains(&CpuidFeature::FMA)
}

#[test]
fn every_form_equals_the_host() {
    if !comparable() {
        return;
    }
    let mut bench = Bench::new();
    let mut forms = 0;
    for code in vex_codes() {
        let mut random = Random::new(0xc5 ^ code as u64);
        let mut done = 0;
        for _ in 0..ENCODINGS {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            let bytes = encode(&instruction);
            let op = machine::decode(&bench.vp, &bytes);
            bench.runner.prepare(&bytes);
            bench.compare(&op, true, &mut random, &instruction);
            done += 1;
        }
        assert!(done > 0, "{code:?} was never run");
        forms += 1;
    }
    assert!(forms > 500, "{forms} forms");
}

#[test]
fn every_form_translated_equals_the_host() {
    if !comparable() {
        return;
    }
    let mut bench = Bench::with(machine::machine_in(ProcessorMode::Translate));
    for code in vex_codes() {
        let mut random = Random::new(0xc4 ^ code as u64);
        for _ in 0..12 {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            let bytes = encode(&instruction);
            bench.runner.prepare(&bytes);
            for _ in 0..6 {
                bench.fill(&mut random, true, false, aligned(&instruction));
                bench.runner.run(&mut bench.context);
                let exit = machine::run_in_place(&mut bench.vp, &bytes);
                assert_eq!(exit, Exit::Halt, "{instruction}");
                if let Some(difference) = bench.difference() {
                    panic!("{instruction} ({:?}): {difference}", instruction.code());
                }
            }
        }
    }
}

/// Stubs of every form, with registers and with memory, fit with room to spare.
#[test]
fn all_forms_fit() {
    let mut forms = 0;
    for code in vex_codes() {
        let mut random = Random::new(3 ^ code as u64);
        let mut made = [false; 2];
        for _ in 0..40 {
            let Some(mut instruction) = instruction(code, &mut random) else {
                continue;
            };
            let memory = instruction.memory_base() != Register::None;
            if std::mem::replace(&mut made[usize::from(memory)], true) {
                continue;
            }
            let last = instruction.op_count().saturating_sub(1);
            let immediate =
                instruction.op_count() > 0 && instruction.op_kind(last) == OpKind::Immediate8;
            for detail in 0..if immediate { 256 } else { 1 } {
                if immediate {
                    instruction.set_immediate8(detail as u8);
                }
                let Some(form) = VexForm::new(&instruction) else {
                    continue;
                };
                assert!(form.stub().is_some(), "{instruction}");
                forms += 1;
            }
        }
    }
    let (bytes, _) = usage();
    assert!(bytes < 8 << 20, "{forms} forms, {bytes} bytes");
    println!("{forms} forms, {bytes} bytes");
}

/// A gather with three different registers.
fn gather(code: Code, random: &mut Random) -> Option<(Instruction, [usize; 3])> {
    let mut numbers = [0; 3];
    for i in 0..3 {
        numbers[i] = random.below(16);
        if numbers[..i].contains(&numbers[i]) {
            return None;
        }
    }
    use OpCodeOperandKind as K;
    let kinds = code.op_code();
    let first = |i| match kinds.op_kind(i) {
        K::ymm_reg | K::ymm_vvvv | K::mem_vsib32y | K::mem_vsib64y => Register::YMM0,
        _ => Register::XMM0,
    };
    let [result, index, mask] = numbers;
    let scale = random.pick(&[1, 2, 4, 8]);
    let memory = MemoryOperand::with_base_index_scale(BASE, first(1) + index as u32, scale);
    let result = first(0) + result as u32;
    let mask = first(2) + mask as u32;
    let instruction = Instruction::with3(code, result, memory, mask).ok()?;
    Some((instruction, numbers))
}

#[test]
fn gathers_equal_the_host() {
    if !comparable() {
        return;
    }
    let mut bench = Bench::new();
    let mut done = 0;
    for code in all_codes().filter(|&code| is_gather(code)) {
        let mut random = Random::new(0x90 ^ code as u64);
        for _ in 0..200 {
            let Some((instruction, [_, index, _])) = gather(code, &mut random) else {
                continue;
            };
            let bytes = encode(&instruction);
            let op = machine::decode(&bench.vp, &bytes);
            bench.runner.prepare(&bytes);
            for _ in 0..8 {
                bench.fill(&mut random, true, false, true);
                let name = format!("{:?}", code);
                let wide = name.contains("Vgatherq") || name.contains("Vpgatherq");
                // Within 16 bytes behind the operand, which has 48.
                let mut indices = [0u8; 32];
                let size = if wide { 8 } else { 4 };
                for one in indices.chunks_exact_mut(size) {
                    let scale = instruction.memory_index_scale() as usize;
                    one[0] = random.below(1 + 16 / scale) as u8;
                }
                let fpu = &mut bench.vp.state.fpu;
                let at = Fpu::XMM + 16 * index;
                fpu.fxsave[at..at + 16].copy_from_slice(&indices[..16]);
                fpu.upper[16 * index..16 * index + 16].copy_from_slice(&indices[16..]);
                bench.context.image = fpu.fxsave;
                bench.context.upper = fpu.upper;
                bench.runner.run(&mut bench.context);
                assert_eq!(machine::run(&mut bench.vp, &op), Ok(()), "{instruction}");
                let difference = bench.difference();
                assert_eq!(difference, None, "{instruction}");
                done += 1;
            }
        }
    }
    assert!(done > 5000, "{done}");
}

fn fails(vp: &mut Vp, bytes: &[u8], expected: u8) {
    let fault = execute(vp, bytes).expect_err("an exception");
    assert_eq!((fault.vector, fault.error), (expected, 0), "{bytes:02x?}");
}

#[test]
fn the_operating_system_must_have_enabled_it() {
    if !comparable() {
        return;
    }
    for (clear_cr4, xcr0, set_cr0, expected) in [
        (cr::CR4_OSXSAVE, 7, 0, vector::UD),
        (cr::CR4_OSXSAVE, 7, cr::CR0_TS, vector::UD),
        (0, 3, 0, vector::UD),
        (0, 3, cr::CR0_TS, vector::UD),
        (0, 1, 0, vector::UD),
        (0, 7, cr::CR0_TS, vector::NM),
        (0, 7, cr::CR0_TS | cr::CR0_EM, vector::NM),
    ] {
        let mut vp = machine();
        vp.update_state(|state| {
            state.cr4 &= !clear_cr4;
            state.cr0 |= set_cr0;
            state.xcr0 = xcr0;
            state.gpr[BASE_NUMBER] = DATA;
        });
        for bytes in [
            &VADDPS[..],
            &VMOVUPS,
            &VMOVUPS_STORE,
            &VZEROUPPER,
            &VZEROALL,
            &VMASKMOVPS,
            &VPGATHERDD,
            &VMASKMOVDQU,
            // VLDMXCSR and VSTMXCSR.
            &[0xc5, 0xf8, 0xae, 0x13],
            &[0xc5, 0xf8, 0xae, 0x1b],
        ] {
            fails(&mut vp, bytes, expected);
        }
        assert_eq!(execute(&mut vp, &ANDN), Ok(()), "no vector registers");
    }
    // Neither CR0.EM nor CR4.OSFXSR matters.
    let mut vp = machine();
    vp.update_state(|state| {
        state.cr0 |= cr::CR0_EM;
        state.cr4 &= !cr::CR4_OSFXSR;
    });
    assert_eq!(execute(&mut vp, &VADDPS), Ok(()));
}

#[test]
fn prefixes_and_modes_that_have_no_vex() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    for prefix in [0x66, 0xf2, 0xf3, 0xf0, 0x48] {
        for encoding in [&VADDPS[..], &ANDN] {
            let bytes = [&[prefix], encoding].concat();
            let mut padded = bytes.clone();
            padded.resize(32, 0x90);
            poke(&mut vp, 0x1000, &padded);
            let op = crate::decode::Decoder::new(vp.decode_mode())
                .single(&padded)
                .expect("decodes");
            let fault = machine::run(&mut vp, &op).expect_err("#UD");
            assert_eq!(fault.vector, vector::UD, "{bytes:02x?}");
        }
    }
    // In real mode the same bytes are an LDS or LES of a register: #UD.
    for bytes in [&VADDPS[..], &ANDN] {
        let mut padded = bytes.to_vec();
        padded.resize(32, 0x90);
        let op = crate::decode::Decoder::new(4)
            .single(&padded)
            .expect("decodes");
        let fault = machine::run(&mut vp, &op).expect_err("#UD");
        assert_eq!(fault.vector, vector::UD, "{bytes:02x?}");
    }
}

#[test]
fn thirty_two_bit_code_has_eight_registers() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    machine::protected32(&mut vp);
    for number in 0..16 {
        vp.state.fpu.set_xmm(number, 5);
        vp.state.fpu.set_upper(number, 7);
    }
    assert_eq!(execute(&mut vp, &VZEROUPPER), Ok(()));
    for number in 0..16 {
        let expected = if number < 8 { 0 } else { 7 };
        assert_eq!(vp.state.fpu.upper(number), expected);
        assert_eq!(vp.state.fpu.xmm(number), 5);
    }
    assert_eq!(execute(&mut vp, &VZEROALL), Ok(()));
    assert_eq!(vp.state.fpu.xmm(7), 0);
    assert_eq!(vp.state.fpu.xmm(8), 5);
    assert_eq!(execute(&mut vp, &VADDPS), Ok(()));
}

#[test]
fn upper_halves_are_cleared_or_kept() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    (0..16).for_each(|number| vp.state.fpu.set_upper(number, 7));
    // ADDPS XMM1, XMM2 keeps them; VADDPS XMM1, XMM2, XMM3 clears its own.
    assert_eq!(execute(&mut vp, &[0x0f, 0x58, 0xca]), Ok(()));
    assert_eq!(vp.state.fpu.upper(1), 7);
    assert_eq!(execute(&mut vp, &[0xc5, 0xe8, 0x58, 0xcb]), Ok(()));
    assert_eq!((vp.state.fpu.upper(1), vp.state.fpu.upper(2)), (0, 7));
    assert_eq!(execute(&mut vp, &VZEROUPPER), Ok(()));
    assert!((0..16).all(|number| vp.state.fpu.upper(number) == 0));
    // The halves that were there do not come back.
    assert_eq!(execute(&mut vp, &VADDPS), Ok(()));
    assert_eq!(vp.state.fpu.upper(5), 0);
}

/// The first address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 47;

#[test]
fn alignment_matters_to_few() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    vp.state.gpr[BASE_NUMBER] = DATA - 1;
    assert_eq!(execute(&mut vp, &VMOVUPS), Ok(()));
    assert_eq!(execute(&mut vp, &VMOVUPS_STORE), Ok(()));
    // VADDPS YMM1, YMM2, [RBX]; then VMOVAPS both ways, VMOVNTDQ.
    assert_eq!(execute(&mut vp, &[0xc5, 0xec, 0x58, 0x0b]), Ok(()));
    for bytes in [
        &[0xc5, 0xfc, 0x28, 0x0b],
        &[0xc5, 0xfc, 0x29, 0x0b],
        &[0xc5, 0xfd, 0xe7, 0x0b],
    ] {
        vp.state.gpr[BASE_NUMBER] = DATA + 16;
        fails(&mut vp, bytes, vector::GP);
        vp.state.gpr[BASE_NUMBER] = DATA + 32;
        assert_eq!(execute(&mut vp, bytes), Ok(()), "{bytes:02x?}");
    }
}

#[test]
fn what_masks_leave_out_does_not_fault() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    let set = |vp: &mut Vp, number, upper, low| {
        vp.state.fpu.set_xmm(number, low);
        vp.state.fpu.set_upper(number, upper);
    };
    set(&mut vp, 1, 1, u128::MAX);
    set(&mut vp, 2, 0, 0);
    vp.state.gpr[BASE_NUMBER] = NOT_CANONICAL;
    assert_eq!(execute(&mut vp, &VMASKMOVPS_STORE), Ok(()));
    assert_eq!(execute(&mut vp, &VMASKMOVPS), Ok(()));
    assert_eq!((vp.state.fpu.xmm(1), vp.state.fpu.upper(1)), (0, 0));
    // The last element only, which lies in memory; the others are at the end
    // of the address space.
    set(&mut vp, 1, 0, 9);
    set(&mut vp, 2, 1 << 127, 0);
    vp.state.gpr[BASE_NUMBER] = 0u64.wrapping_sub(28);
    poke(&mut vp, 0, &[1, 2, 3, 4]);
    assert_eq!(execute(&mut vp, &VMASKMOVPS), Ok(()));
    assert_eq!(vp.state.fpu.upper(1), 0x0403_0201 << 96);
    vp.state.fpu.set_upper(1, 0x0807_0605 << 96);
    assert_eq!(execute(&mut vp, &VMASKMOVPS_STORE), Ok(()));
    assert_eq!(peek(&mut vp, 0, 5), [5, 6, 7, 8, 0]);
    // The first element is canonical, the fifth is not: no store is made.
    set(&mut vp, 2, 1 << 31, 1 << 31);
    vp.state.gpr[BASE_NUMBER] = NOT_CANONICAL - 16;
    fails(&mut vp, &VMASKMOVPS_STORE, vector::GP);
}

#[test]
fn a_gather_stops_at_the_element_that_faults() {
    if !comparable() {
        return;
    }
    /// VPGATHERQQ YMM1, [RBX + YMM2], YMM3.
    const VPGATHERQQ: [u8; 6] = [0xc4, 0xe2, 0xe5, 0x91, 0x0c, 0x13];
    let pair = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
    let mut vp = machine();
    let words: Vec<u8> = (11..=14u64).flat_map(u64::to_le_bytes).collect();
    poke(&mut vp, DATA, &words);
    vp.state.gpr[BASE_NUMBER] = DATA;
    vp.state.fpu.set_xmm(1, pair(1, 2));
    vp.state.fpu.set_upper(1, pair(3, 4));
    vp.state.fpu.set_xmm(2, pair(8, 0));
    vp.state.fpu.set_upper(2, pair(NOT_CANONICAL, 16));
    // All but the second, by their signs alone.
    vp.state.fpu.set_xmm(3, pair(1 << 63, 1));
    vp.state.fpu.set_upper(3, pair(1 << 63, 1 << 63));
    fails(&mut vp, &VPGATHERQQ, vector::GP);
    assert_eq!(vp.state.fpu.xmm(1), pair(12, 2), "the first is there");
    assert_eq!(vp.state.fpu.upper(1), pair(3, 4));
    assert_eq!(vp.state.fpu.xmm(3), 0, "and not asked for any more");
    assert_eq!(vp.state.fpu.upper(3), u128::MAX);
    vp.state.fpu.set_xmm(2, pair(NOT_CANONICAL, NOT_CANONICAL));
    vp.state.fpu.set_upper(2, pair(24, 16));
    assert_eq!(execute(&mut vp, &VPGATHERQQ), Ok(()));
    assert_eq!(vp.state.fpu.xmm(1), pair(12, 2));
    assert_eq!(vp.state.fpu.upper(1), pair(14, 13));
    assert_eq!((vp.state.fpu.xmm(3), vp.state.fpu.upper(3)), (0, 0));
    // Two of the three registers the same: #UD.
    for bytes in [
        [0xc4, 0xe2, 0xe5, 0x91, 0x1c, 0x13],
        [0xc4, 0xe2, 0xe5, 0x91, 0x0c, 0x0b],
        [0xc4, 0xe2, 0xe5, 0x91, 0x0c, 0x1b],
    ] {
        fails(&mut vp, &bytes, vector::UD);
    }
}

#[test]
fn masked_bytes_are_stored() {
    if !comparable() {
        return;
    }
    let mut vp = machine();
    poke(&mut vp, DATA - 8, &[0; 16]);
    vp.state.gpr[crate::state::reg::RDI] = DATA - 8;
    let bytes: [u8; 16] = std::array::from_fn(|i| i as u8 + 1);
    vp.state.fpu.set_xmm(1, u128::from_le_bytes(bytes));
    vp.state.fpu.set_xmm(2, 0x80 << 56 | 0x80 << 64);
    assert_eq!(execute(&mut vp, &VMASKMOVDQU), Ok(()));
    let mut expected = [0; 16];
    (expected[7], expected[8]) = (8, 9);
    assert_eq!(peek(&mut vp, DATA - 8, 16), expected);
}
