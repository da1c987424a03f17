//! XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV and XSETBV.

use super::differential::{BASE_NUMBER, Bench};
use super::machine::{DATA, decode, execute, machine, peek, poke, protected32, run};
use super::random::Random;
use crate::fault::vector;
use crate::state::{Fpu, cr, reg};
use crate::vp::Vp;

/// XSAVE64, XSAVEOPT64, XSAVEC64 and XRSTOR64 of [RBX].
const XSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x23];
const XSAVEOPT64: [u8; 4] = [0x48, 0x0f, 0xae, 0x33];
const XSAVEC64: [u8; 4] = [0x48, 0x0f, 0xc7, 0x23];
const XRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x2b];
/// XSAVE and XRSTOR of [EBX].
const XSAVE: [u8; 3] = [0x0f, 0xae, 0x23];
const XRSTOR: [u8; 3] = [0x0f, 0xae, 0x2b];
const XGETBV: [u8; 3] = [0x0f, 0x01, 0xd0];
const XSETBV: [u8; 3] = [0x0f, 0x01, 0xd1];
const SIZE: usize = 832;

fn ok(vp: &mut Vp, bytes: &[u8]) {
    assert_eq!(execute(vp, bytes), Ok(()), "{bytes:02x?}");
}

fn fails(vp: &mut Vp, bytes: &[u8], expected: u8) {
    let fault = execute(vp, bytes).expect_err("an exception");
    assert_eq!((fault.vector, fault.error), (expected, 0), "{bytes:02x?}");
}

/// With AVX enabled, all components asked for, and an area at `at`.
fn prepared(at: u64) -> Option<Vp> {
    let mut vp = machine();
    if !vp.config.features.avx() {
        println!("not tested: this host has no AVX");
        return None;
    }
    vp.state.gpr[reg::RAX] = 7;
    vp.state.gpr[reg::RDX] = 0;
    vp.state.gpr[reg::RBX] = at;
    vp.state.fpu.initialize_x87();
    Some(vp)
}

fn header(vp: &mut Vp, at: u64) -> [u64; 2] {
    let bytes = peek(vp, at + 512, 16);
    [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")))
}

/// An area of the host's, aligned as XSAVE wants it.
#[repr(C, align(64))]
struct Area([u8; SIZE]);

#[test]
fn areas_equal_the_hosts() {
    if prepared(DATA).is_none() || !is_x86_feature_detected!("xsavec") {
        return;
    }
    let mut bench = Bench::new();
    let mut random = Random::new(13);
    let mut area = Box::new(Area([0; SIZE]));
    for round in 0..2000 {
        let bytes = random.pick(&[XSAVE64, XSAVEOPT64, XSAVEC64, XRSTOR64]);
        bench.fill(&mut random, true, false, true);
        // What the host saves of x87 pointers is about other code.
        bench.vp.state.fpu.fxsave[6..24].fill(0);
        bench.context.image[6..24].fill(0);
        // Nothing in its initial configuration: how well a processor notices
        // is its own affair.
        for number in 0..16 {
            bench.vp.state.fpu.set_upper(number, u128::MAX);
            bench.vp.state.fpu.fxsave[Fpu::XMM + 16 * number] |= 1;
        }
        bench.context.upper = bench.vp.state.fpu.upper;
        bench.context.image = bench.vp.state.fpu.fxsave;
        area.0.fill_with(|| random.next() as u8);
        // Sometimes in compacted format.
        area.0[512..576].fill(0);
        let present = random.below(8) as u8;
        area.0[512] = present;
        if random.below(2) == 0 {
            area.0[520] = present | random.below(8) as u8;
            area.0[527] = 0x80;
        }
        area.0[..24].copy_from_slice(&bench.context.image[..24]);
        area.0[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
        for index in 0..8 {
            area.0[Fpu::ST + 16 * index + 10..Fpu::ST + 16 * index + 16].fill(0);
        }
        poke(&mut bench.vp, DATA - 512, &area.0);
        let mask = random.below(8) as u64;
        for (number, value) in [(reg::RAX, mask), (reg::RDX, 0)] {
            bench.vp.state.gpr[number] = value;
            bench.context.gpr[number] = value;
        }
        bench.vp.state.gpr[BASE_NUMBER] = DATA - 512;
        bench.context.gpr[BASE_NUMBER] = area.0.as_ptr() as u64;
        let op = decode(&bench.vp, &bytes);
        bench.runner.prepare(&bytes);
        bench.runner.run(&mut bench.context);
        let what = format!("round {round}, {bytes:02x?}, mask {mask}, present {present}");
        assert_eq!(run(&mut bench.vp, &op), Ok(()), "{what}");
        let mut ours = peek(&mut bench.vp, DATA - 512, SIZE);
        // MXCSR_MASK has AMD's bit for misaligned operands; reserved bytes of
        // the legacy area.
        area.0[30] &= !2;
        ours[30] &= !2;
        area.0[5] = 0;
        ours[5] = 0;
        area.0[416..512].fill(0);
        ours[416..512].fill(0);
        assert_eq!(ours[..512], area.0[..512], "{what}");
        assert_eq!(ours[512..576], area.0[512..576], "{what}");
        assert_eq!(ours[576..], area.0[576..], "{what}");
        for index in 0..16 {
            let at = Fpu::XMM + 16 * index;
            assert_eq!(
                bench.vp.state.fpu.fxsave[at..at + 16],
                bench.context.image[at..at + 16],
                "{what}"
            );
        }
        for index in 0..16 {
            let ours = bench.vp.state.fpu.upper(index).to_le_bytes();
            let host = &bench.context.upper[16 * index..16 * index + 16];
            assert_eq!(ours, host, "{what}, YMM{index}");
        }
        let image = &bench.context.image;
        assert_eq!(bench.vp.state.fpu.fxsave[24..28], image[24..28], "{what}");
        assert_eq!(bench.vp.state.fpu.fxsave[32..160], image[32..160], "{what}");
        assert_eq!(bench.vp.state.fpu.fxsave[..5], image[..5], "{what}");
    }
}

#[test]
fn what_is_initial_is_left_out() {
    let Some(mut vp) = prepared(DATA) else { return };
    poke(&mut vp, DATA, &[0x55; SIZE]);
    poke(&mut vp, DATA + 512, &[0; 64]);
    vp.state.fpu.set_upper(9, 77);
    ok(&mut vp, &XSAVEOPT64);
    assert_eq!(header(&mut vp, DATA), [4, 0]);
    assert_eq!(peek(&mut vp, DATA, 24), [0x55; 24]);
    // MXCSR goes with the request.
    assert_eq!(peek(&mut vp, DATA + 24, 4), 0x1f80u32.to_le_bytes());
    assert_eq!(peek(&mut vp, DATA + 160, 256), [0x55; 256]);
    assert_eq!(peek(&mut vp, DATA + 576 + 9 * 16, 1), [77]);
    // XSAVEC: not even MXCSR, and the format.
    poke(&mut vp, DATA, &[0x55; SIZE]);
    vp.state.fpu.upper_used = 0;
    ok(&mut vp, &XSAVEC64);
    assert_eq!(header(&mut vp, DATA), [0, 1 << 63 | 7]);
    assert_eq!(peek(&mut vp, DATA, 512), [0x55; 512]);
    assert_eq!(peek(&mut vp, DATA + 528, 48), [0x55; 48]);
    assert_eq!(peek(&mut vp, DATA + 576, 256), [0x55; 256]);
    // Unless it has another value.
    vp.state.fpu.set_mxcsr(0x1fa0);
    ok(&mut vp, &XSAVEC64);
    assert_eq!(header(&mut vp, DATA), [2, 1 << 63 | 7]);
    assert_eq!(peek(&mut vp, DATA + 24, 4), 0x1fa0u32.to_le_bytes());
    // XSAVE saves all, and tells what is in use.
    ok(&mut vp, &XSAVE64);
    assert_eq!(header(&mut vp, DATA)[0], 0);
    assert_eq!(peek(&mut vp, DATA + 160, 256), [0; 256]);
    assert_eq!(peek(&mut vp, DATA + 576, 256), [0; 256]);
    // Upper halves that became zero are initial again.
    vp.state.fpu.set_upper(3, 1);
    vp.state.fpu.set_upper(3, 0);
    ok(&mut vp, &XSAVE64);
    assert_eq!(header(&mut vp, DATA)[0], 0);
}

#[test]
fn restoring_initializes_what_is_absent() {
    let Some(mut vp) = prepared(DATA) else { return };
    for compacted in [false, true] {
        poke(&mut vp, DATA, &[0; SIZE]);
        poke(&mut vp, DATA + 24, &0x1fbfu32.to_le_bytes());
        if compacted {
            poke(&mut vp, DATA + 520, &(1u64 << 63 | 7).to_le_bytes());
        }
        vp.state.fpu.set_upper(15, 1);
        vp.state.fpu.set_xmm(15, 1);
        vp.state.fpu.set_mxcsr(0x1fa0);
        // AVX alone.
        vp.state.gpr[reg::RAX] = 4;
        ok(&mut vp, &XRSTOR64);
        assert_eq!((vp.state.fpu.upper(15), vp.state.fpu.xmm(15)), (0, 1));
        // MXCSR comes with AVX in standard format only.
        let expected = if compacted { 0x1fa0 } else { 0x1fbf };
        assert_eq!(vp.state.fpu.mxcsr(), expected);
        vp.state.gpr[reg::RAX] = 7;
        ok(&mut vp, &XRSTOR64);
        assert_eq!(vp.state.fpu.xmm(15), 0);
        let expected = if compacted { 0x1f80 } else { 0x1fbf };
        assert_eq!(vp.state.fpu.mxcsr(), expected);
    }
}

#[test]
fn bad_areas_are_refused() {
    let Some(mut vp) = prepared(DATA) else { return };
    let standard = [(512, 8u8), (519, 0x80), (520, 1), (528, 1), (535, 1)];
    // Compacted: a component that is not there, one that the format has not,
    // and reserved bytes up to the end of the header.
    let compacted = [(520, 8), (512, 4), (528, 1), (536, 1), (575, 1)];
    for (format, cases) in [(0u64, standard), (1 << 63 | 3, compacted)] {
        for (offset, value) in cases {
            poke(&mut vp, DATA, &[0; SIZE]);
            poke(&mut vp, DATA + 520, &format.to_le_bytes());
            let old = peek(&mut vp, DATA + offset, 1)[0];
            poke(&mut vp, DATA + offset, &[old | value]);
            vp.state.fpu.set_upper(1, 5);
            fails(&mut vp, &XRSTOR64, vector::GP);
            assert_eq!(vp.state.fpu.upper(1), 5);
        }
    }
    // MXCSR's reserved bits matter if MXCSR is loaded.
    poke(&mut vp, DATA, &[0; SIZE]);
    poke(&mut vp, DATA + 26, &[1]);
    for (mask, refused) in [(1, false), (2, true), (4, true), (7, true)] {
        vp.state.gpr[reg::RAX] = mask;
        if refused {
            fails(&mut vp, &XRSTOR64, vector::GP);
        } else {
            ok(&mut vp, &XRSTOR64);
        }
    }
    // Components that XCR0 has not are not asked for, and may not be there.
    vp.update_state(|state| state.xcr0 = 3);
    poke(&mut vp, DATA, &[0; SIZE]);
    poke(&mut vp, DATA + 512, &[4]);
    fails(&mut vp, &XRSTOR64, vector::GP);
    for offset in [8, 16, 32, 63] {
        vp.state.gpr[reg::RBX] = DATA + offset;
        for bytes in [XSAVE64, XSAVEOPT64, XSAVEC64, XRSTOR64] {
            fails(&mut vp, &bytes, vector::GP);
        }
    }
}

/// The upper halves lie beyond the canonical addresses, the rest does not.
#[test]
fn only_what_is_needed_is_touched() {
    let Some(mut vp) = prepared((1 << 47) - 576) else {
        return;
    };
    // Every address below is memory-mapped I/O to this machine, so nothing
    // can be done without an exit; but a fault would come first.
    vp.state.fpu.set_upper(0, 1);
    for bytes in [XSAVE64, XSAVEOPT64, XSAVEC64] {
        fails(&mut vp, &bytes, vector::GP);
    }
    assert_eq!(vp.state.fpu.upper(0), 1);
}

#[test]
fn eight_registers_outside_64_bit_code() {
    let Some(mut vp) = prepared(DATA) else { return };
    (0..16).for_each(|number| vp.state.fpu.set_upper(number, 3));
    protected32(&mut vp);
    poke(&mut vp, DATA, &[0x55; SIZE]);
    poke(&mut vp, DATA + 512, &[0; 64]);
    ok(&mut vp, &XSAVE);
    assert_eq!(peek(&mut vp, DATA + 576 + 7 * 16, 1), [3]);
    assert_eq!(peek(&mut vp, DATA + 576 + 8 * 16, 128), [0x55; 128]);
    poke(&mut vp, DATA + 512, &[0]);
    ok(&mut vp, &XRSTOR);
    assert_eq!((vp.state.fpu.upper(7), vp.state.fpu.upper(8)), (0, 3));
}

#[test]
fn availability() {
    let Some(mut vp) = prepared(DATA) else { return };
    vp.update_state(|state| state.cr0 |= cr::CR0_TS);
    for bytes in [XSAVE64, XSAVEOPT64, XSAVEC64, XRSTOR64] {
        fails(&mut vp, &bytes, vector::NM);
    }
    ok(&mut vp, &[0x31, 0xc9]);
    ok(&mut vp, &XGETBV);
    vp.update_state(|state| state.cr4 &= !cr::CR4_OSXSAVE);
    for bytes in [XSAVE64, XSAVEOPT64, XSAVEC64, XRSTOR64] {
        fails(&mut vp, &bytes, vector::UD);
    }
    fails(&mut vp, &XGETBV, vector::UD);
    fails(&mut vp, &XSETBV, vector::UD);
}

#[test]
fn xcr0_has_rules() {
    let Some(mut vp) = prepared(DATA) else { return };
    vp.state.gpr[reg::RCX] = 0;
    for (value, valid) in [
        (0u64, false),
        (1, true),
        (2, false),
        (3, true),
        (4, false),
        (5, false),
        (6, false),
        (7, true),
        (0xf, false),
        (0x1f, false),
        (0xe7, false),
        (1 << 32 | 7, false),
        (1 << 63 | 7, false),
    ] {
        vp.state.gpr[reg::RAX] = value & 0xffff_ffff | 0xdead << 32;
        vp.state.gpr[reg::RDX] = value >> 32;
        if valid {
            ok(&mut vp, &XSETBV);
            assert_eq!(vp.state.xcr0, value);
            ok(&mut vp, &XGETBV);
            assert_eq!((vp.state.gpr[reg::RAX], vp.state.gpr[reg::RDX]), (value, 0));
        } else {
            fails(&mut vp, &XSETBV, vector::GP);
        }
    }
    vp.state.gpr[reg::RAX] = 7;
    vp.state.gpr[reg::RCX] = 1;
    fails(&mut vp, &XSETBV, vector::GP);
    vp.state.gpr[reg::RCX] = 2;
    fails(&mut vp, &XGETBV, vector::GP);
    vp.state.gpr[reg::RCX] = 0;
    vp.update_state(|state| state.cpl = 3);
    fails(&mut vp, &XSETBV, vector::GP);
    ok(&mut vp, &XGETBV);
}

#[test]
fn xgetbv_of_1_tells_what_is_in_use() {
    let Some(mut vp) = prepared(DATA) else { return };
    let used = |vp: &mut Vp| {
        vp.state.gpr[reg::RCX] = 1;
        ok(vp, &XGETBV);
        assert_eq!(vp.state.gpr[reg::RDX], 0);
        vp.state.gpr[reg::RAX]
    };
    assert_eq!(used(&mut vp), 0);
    vp.state.fpu.set_upper(4, 1);
    assert_eq!(used(&mut vp), 4);
    vp.state.fpu.set_mxcsr(0x1fa0);
    assert_eq!(used(&mut vp), 6);
    vp.state.fpu.set_tags(1);
    assert_eq!(used(&mut vp), 7);
    vp.update_state(|state| state.xcr0 = 3);
    assert_eq!(used(&mut vp), 3);
}
