//! Availability, pending exceptions, saved state, environments, pointers.

use super::machine::{DATA, decode, execute, machine, peek, poke, protected32, run};
use super::random::Random;
use crate::fault::{Exit, StopReason, vector};
use crate::state::{Fpu, cr, reg};
use crate::vp::Vp;

/// FXSAVE, FXSAVE64, FXRSTOR and FXRSTOR64 of [RBX].
const FXSAVE: [u8; 3] = [0x0f, 0xae, 0x03];
const FXSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x03];
const FXRSTOR: [u8; 3] = [0x0f, 0xae, 0x0b];
const FXRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x0b];
/// XSAVE64, XSAVEOPT64 and XRSTOR64 of [RBX].
const XSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x23];
const XSAVEOPT64: [u8; 4] = [0x48, 0x0f, 0xae, 0x33];
const XRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x2b];
/// LDMXCSR [RBX].
const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x13];
/// ADDPS XMM1, XMM2.
const ADDPS: [u8; 3] = [0x0f, 0x58, 0xca];
/// MOVAPS XMM1, XMM2.
const MOVAPS: [u8; 3] = [0x0f, 0x28, 0xca];
/// PADDB MM1, MM2.
const PADDB: [u8; 3] = [0x0f, 0xfc, 0xca];
/// FLD1, FDIV ST, ST(1), FLDZ.
const FLD1: [u8; 2] = [0xd9, 0xe8];
const FDIV: [u8; 2] = [0xd8, 0xf1];
const FLDZ: [u8; 2] = [0xd9, 0xee];
const FWAIT: [u8; 1] = [0x9b];
const FNINIT: [u8; 2] = [0xdb, 0xe3];
const FNSTSW_AX: [u8; 2] = [0xdf, 0xe0];
/// FNSTENV, FLDENV, FNSAVE and FRSTOR of [RBX].
const FNSTENV: [u8; 2] = [0xd9, 0x33];
const FLDENV: [u8; 2] = [0xd9, 0x23];
const FNSAVE: [u8; 2] = [0xdd, 0x33];
const FRSTOR: [u8; 2] = [0xdd, 0x23];

fn at(vp: &mut Vp, address: u64) {
    vp.state.gpr[reg::RBX] = address;
}

fn ok(vp: &mut Vp, bytes: &[u8]) {
    assert_eq!(execute(vp, bytes), Ok(()), "{bytes:02x?}");
}

fn fails(vp: &mut Vp, bytes: &[u8], expected: u8) {
    let fault = execute(vp, bytes).expect_err("an exception");
    assert_eq!((fault.vector, fault.error), (expected, 0), "{bytes:02x?}");
}

#[test]
fn control_bits_make_it_unavailable() {
    type Expected<'a> = [(&'a [u8], u8); 4];
    let cases: [(u64, u64, Expected); 3] = [
        (
            cr::CR0_TS,
            0,
            [
                (&ADDPS, vector::NM),
                (&MOVAPS, vector::NM),
                (&PADDB, vector::NM),
                (&FLD1, vector::NM),
            ],
        ),
        (
            cr::CR0_EM | cr::CR0_TS,
            0,
            [
                (&ADDPS, vector::UD),
                (&MOVAPS, vector::UD),
                (&PADDB, vector::UD),
                (&FLD1, vector::NM),
            ],
        ),
        (
            cr::CR0_TS,
            cr::CR4_OSFXSR,
            [
                (&ADDPS, vector::UD),
                (&MOVAPS, vector::UD),
                (&PADDB, vector::NM),
                (&FLD1, vector::NM),
            ],
        ),
    ];
    for (set, clear, expected) in cases {
        let mut vp = machine();
        vp.update_state(|state| {
            state.cr0 |= set;
            state.cr4 &= !clear;
        });
        for (bytes, exception) in expected {
            fails(&mut vp, bytes, exception);
        }
        // MOVNTI [RBX], EAX uses no vector register.
        at(&mut vp, DATA);
        ok(&mut vp, &[0x0f, 0xc3, 0x03]);
    }
}

#[test]
fn wait_needs_both_bits() {
    let mut vp = machine();
    vp.update_state(|state| state.cr0 = state.cr0 & !cr::CR0_MP | cr::CR0_TS);
    ok(&mut vp, &FWAIT);
    vp.update_state(|state| state.cr0 |= cr::CR0_MP);
    fails(&mut vp, &FWAIT, vector::NM);
}

/// Divides by zero with the exception unmasked.
fn divided() -> Vp {
    let mut vp = machine();
    ok(&mut vp, &FNINIT);
    ok(&mut vp, &FLDZ);
    ok(&mut vp, &FLD1);
    vp.state
        .fpu
        .set_control_status(0x37b, vp.state.fpu.status());
    vp.state.rip = 0x1234;
    ok(&mut vp, &FDIV);
    vp
}

#[test]
fn a_pending_exception_waits_for_the_next_instruction() {
    let mut vp = divided();
    assert!(vp.state.fpu.pending());
    assert_eq!(vp.state.fpu.instruction_pointer(), 0x1234);
    assert_eq!(vp.state.fpu.opcode(), 0x0f1);
    let one = vp.state.fpu.st(0);
    for bytes in [&FLD1[..], &FDIV, &FWAIT, &PADDB, &FRSTOR, &FLDENV] {
        at(&mut vp, DATA);
        fails(&mut vp, bytes, vector::MF);
    }
    assert_eq!(vp.state.fpu.st(0), one, "the dividend is still there");
    ok(&mut vp, &ADDPS);
    ok(&mut vp, &FNSTSW_AX);
    assert_eq!(
        vp.state.gpr[reg::RAX] & 0x80bf,
        0x8084,
        "busy, error summary, divide by zero"
    );
    // FNCLEX.
    ok(&mut vp, &[0xdb, 0xe2]);
    ok(&mut vp, &FLD1);
}

#[test]
fn without_ne_execution_goes_on() {
    let mut vp = divided();
    vp.update_state(|state| state.cr0 &= !cr::CR0_NE);
    ok(&mut vp, &FWAIT);
    ok(&mut vp, &FLD1);
    assert_eq!(vp.state.fpu.control(), 0x37b);
    assert!(vp.state.fpu.pending());
}

#[test]
fn pointers_are_the_guests() {
    let mut vp = machine();
    ok(&mut vp, &FNINIT);
    poke(&mut vp, DATA, &1.5f64.to_le_bytes());
    at(&mut vp, DATA - 8);
    vp.state.rip = 0x7654;
    // FLD QWORD [RBX + 8]
    ok(&mut vp, &[0xdd, 0x43, 0x08]);
    assert_eq!(vp.state.fpu.instruction_pointer(), 0x7654);
    assert_eq!(vp.state.fpu.data_pointer(), 0, "no exception");
    poke(&mut vp, DATA, &0x7ff0_0000_0000_0001u64.to_le_bytes());
    vp.state.fpu.set_control_status(0x37e, 0);
    ok(&mut vp, &[0xdd, 0x43, 0x08]);
    assert_eq!(vp.state.fpu.data_pointer(), DATA);
    assert_eq!(vp.state.fpu.opcode(), 0x543);
    // Control instructions leave them alone.
    vp.state.rip = 0x8888;
    ok(&mut vp, &FNSTSW_AX);
    assert_eq!(vp.state.fpu.instruction_pointer(), 0x7654);
}

#[test]
fn a_store_that_faults_changes_nothing() {
    let mut vp = machine();
    ok(&mut vp, &FNINIT);
    ok(&mut vp, &FLD1);
    let before = vp.state.fpu.fxsave;
    at(&mut vp, 0x8000_0000_0000_0000);
    // FSTP QWORD [RBX]
    fails(&mut vp, &[0xdd, 0x1b], vector::GP);
    assert_eq!(vp.state.fpu.fxsave, before);
}

#[test]
fn an_unmasked_invalid_store_leaves_memory() {
    let mut vp = machine();
    ok(&mut vp, &FNINIT);
    vp.state.fpu.set_control_status(0x37e, 0);
    poke(&mut vp, DATA, &[0xaa; 8]);
    at(&mut vp, DATA);
    // FSTP QWORD [RBX] with an empty stack.
    ok(&mut vp, &[0xdd, 0x1b]);
    assert_eq!(peek(&mut vp, DATA, 8), [0xaa; 8]);
    assert!(vp.state.fpu.pending());
    assert_eq!(vp.state.fpu.top(), 0, "not popped");
}

fn random_state(vp: &mut Vp, seed: u64) {
    let image = Random::new(seed).image(false);
    vp.state.fpu.fxsave = image;
    vp.state.fpu.set_opcode(0x2a5);
    vp.state.fpu.set_instruction_pointer(0x1234_5678_9abc);
    vp.state.fpu.set_data_pointer(0xdead_beef_cafe);
}

#[test]
fn fxsave_and_fxrstor() {
    for seed in 0..50 {
        let mut vp = machine();
        random_state(&mut vp, seed);
        let before = vp.state.fpu.fxsave;
        poke(&mut vp, DATA, &[0x55; 512]);
        at(&mut vp, DATA);
        ok(&mut vp, &FXSAVE64);
        let saved = peek(&mut vp, DATA, 512);
        assert_eq!(saved[..28], before[..28]);
        assert_eq!(saved[28..32], 0xffffu32.to_le_bytes());
        assert_eq!(saved[32..416], before[32..416]);
        assert_eq!(saved[464..], [0x55; 48], "software's bytes");
        vp.state.fpu = Fpu::power_on();
        ok(&mut vp, &FXRSTOR64);
        assert_eq!(vp.state.fpu.fxsave, before);
        ok(&mut vp, &FXSAVE);
        let narrow = peek(&mut vp, DATA, 32);
        assert_eq!(narrow[8..16], [0xbc, 0x9a, 0x78, 0x56, 0, 0, 0, 0]);
        assert_eq!(narrow[16..24], [0xfe, 0xca, 0xef, 0xbe, 0, 0, 0, 0]);
        ok(&mut vp, &FXRSTOR);
        assert_eq!(vp.state.fpu.instruction_pointer(), 0x5678_9abc);
    }
}

#[test]
fn eight_registers_outside_64_bit_code() {
    let mut vp = machine();
    random_state(&mut vp, 3);
    let before = vp.state.fpu.clone();
    protected32(&mut vp);
    poke(&mut vp, DATA, &[0x55; 512]);
    at(&mut vp, DATA);
    ok(&mut vp, &FXSAVE);
    let saved = peek(&mut vp, DATA, 512);
    assert_eq!(saved[160..288], before.fxsave[160..288]);
    assert_eq!(saved[288..], [0x55; 224]);
    vp.state.fpu.fxsave[160..416].fill(0);
    ok(&mut vp, &FXRSTOR);
    assert_eq!(vp.state.fpu.xmm(7), before.xmm(7));
    assert_eq!(vp.state.fpu.xmm(8), 0);
}

#[test]
fn bad_images_are_refused() {
    let mut vp = machine();
    let before = vp.state.fpu.fxsave;
    poke(&mut vp, DATA + 24, &0x1_0000u32.to_le_bytes());
    at(&mut vp, DATA);
    fails(&mut vp, &FXRSTOR64, vector::GP);
    at(&mut vp, DATA + 24);
    fails(&mut vp, &LDMXCSR, vector::GP);
    at(&mut vp, DATA + 8);
    for bytes in [&FXRSTOR64, &FXSAVE64, &XSAVE64, &XRSTOR64] {
        fails(&mut vp, bytes, vector::GP);
    }
    assert_eq!(vp.state.fpu.fxsave, before);
    poke(&mut vp, DATA + 24, &0xa5a5u32.to_le_bytes());
    at(&mut vp, DATA + 24);
    ok(&mut vp, &LDMXCSR);
    assert_eq!(vp.state.fpu.mxcsr(), 0xa5a5);
}

#[test]
fn xsave_and_xrstor() {
    let mut vp = machine();
    vp.update_state(|state| state.xcr0 = 3);
    random_state(&mut vp, 11);
    let before = vp.state.fpu.fxsave;
    poke(&mut vp, DATA, &[0; 576]);
    at(&mut vp, DATA);
    vp.state.gpr[reg::RAX] = u64::MAX;
    vp.state.gpr[reg::RDX] = u64::MAX;
    ok(&mut vp, &XSAVE64);
    let saved = peek(&mut vp, DATA, 576);
    assert_eq!(saved[512], 3);
    assert_eq!(saved[32..416], before[32..416]);
    vp.state.fpu = Fpu::power_on();
    ok(&mut vp, &XRSTOR64);
    assert_eq!(vp.state.fpu.fxsave, before);
    // SSE absent from the area: initialized, but MXCSR comes from memory.
    poke(&mut vp, DATA + 512, &[1]);
    ok(&mut vp, &XRSTOR64);
    assert_eq!(vp.state.fpu.fxsave[160..416], [0; 256]);
    assert_eq!(vp.state.fpu.fxsave[24..28], before[24..28]);
    // Only x87 asked for, and absent.
    poke(&mut vp, DATA + 512, &[2]);
    vp.state.gpr[reg::RAX] = 1;
    ok(&mut vp, &XRSTOR64);
    assert_eq!((vp.state.fpu.control(), vp.state.fpu.status()), (0x37f, 0));
    assert_eq!(vp.state.fpu.fxsave[160..416], [0; 256]);
}

#[test]
fn xrstor_headers() {
    let mut vp = machine();
    vp.update_state(|state| state.xcr0 = 3);
    at(&mut vp, DATA);
    vp.state.gpr[reg::RAX] = 3;
    for (offset, value) in [(512, 4u8), (519, 0x80), (520, 1), (527, 0x40), (535, 1)] {
        poke(&mut vp, DATA, &[0; 576]);
        poke(&mut vp, DATA + offset, &[value]);
        fails(&mut vp, &XRSTOR64, vector::GP);
    }
    poke(&mut vp, DATA, &[0; 576]);
    poke(&mut vp, DATA + 536, &[0xff; 40]);
    ok(&mut vp, &XRSTOR64);
    vp.update_state(|state| state.cr4 &= !cr::CR4_OSXSAVE);
    fails(&mut vp, &XSAVE64, vector::UD);
}

#[test]
fn xsaveopt_leaves_out_what_is_initial() {
    let mut vp = machine();
    ok(&mut vp, &FNINIT);
    vp.state.fpu.fxsave[Fpu::ST..Fpu::ST + 128].fill(0);
    vp.state.fpu.set_xmm(3, 77);
    poke(&mut vp, DATA, &[0x55; 576]);
    at(&mut vp, DATA);
    vp.state.gpr[reg::RAX] = 3;
    vp.state.gpr[reg::RDX] = 0;
    ok(&mut vp, &XSAVEOPT64);
    let saved = peek(&mut vp, DATA, 520);
    assert_eq!(saved[..24], [0x55; 24]);
    assert_eq!(saved[160 + 48], 77);
    assert_eq!(saved[512] & 3, 2);
    assert_eq!(saved[513], 0x55, "other components' bits stay");
}

#[test]
fn environments_in_protected_and_real_formats() {
    let mut vp = machine();
    protected32(&mut vp);
    random_state(&mut vp, 5);
    vp.state.fpu.set_control_status(0x37f, 0x2800);
    vp.state.fpu.set_tags(0x81);
    let before = vp.state.fpu.clone();
    at(&mut vp, DATA);
    ok(&mut vp, &FNSTENV);
    let wide = peek(&mut vp, DATA, 28);
    let field =
        |at: usize| u32::from_le_bytes([wide[at], wide[at + 1], wide[at + 2], wide[at + 3]]);
    assert_eq!(field(0), 0xffff_037f);
    assert_eq!(field(4), 0xffff_2800);
    assert_eq!(field(8) & 0x3ffc, 0x3ffc, "registers 1 to 6 are empty");
    assert_eq!(field(12), 0x5678_9abc);
    assert_eq!(field(16), 0x2a5 << 16);
    assert_eq!(field(20), 0xbeef_cafe);
    // 16 bits.
    ok(&mut vp, &[0x66, 0xd9, 0x33]);
    let narrow = peek(&mut vp, DATA, 14);
    assert_eq!(narrow[6..8], [0xbc, 0x9a]);
    assert_eq!(narrow[10..12], [0xfe, 0xca]);
    // Loading the wide one again gives the same state but for high halves.
    poke(&mut vp, DATA, &wide);
    vp.state.fpu.set_top(2);
    ok(&mut vp, &FLDENV);
    assert_eq!(vp.state.fpu.top(), 5);
    assert_eq!(vp.state.fpu.tags(), 0x81);
    assert_eq!(
        vp.state.fpu.fxsave[32..160],
        before.fxsave[32..160],
        "physical registers stay"
    );
    // Real mode.
    vp.update_state(|state| state.cr0 &= !cr::CR0_PE);
    ok(&mut vp, &FNSTENV);
    let real = peek(&mut vp, DATA, 28);
    assert_eq!(real[12..14], [0xbc, 0x9a]);
    assert_eq!(real[16..20], (0x0567_8000u32 | 0x2a5).to_le_bytes());
    vp.state.fpu.set_instruction_pointer(0);
    ok(&mut vp, &FLDENV);
    assert_eq!(vp.state.fpu.instruction_pointer(), 0x5678_9abc);
    assert_eq!(vp.state.fpu.opcode(), 0x2a5);
}

#[test]
fn saving_and_restoring_registers() {
    for prefix in [&[][..], &[0x66]] {
        let mut vp = machine();
        random_state(&mut vp, 17);
        vp.state.fpu.set_control_status(0x37f, 0x1800);
        let before = vp.state.fpu.clone();
        at(&mut vp, DATA);
        ok(&mut vp, &[prefix, &FNSAVE].concat());
        assert_eq!((vp.state.fpu.control(), vp.state.fpu.status()), (0x37f, 0));
        assert_eq!(vp.state.fpu.tags(), 0);
        ok(&mut vp, &[prefix, &FRSTOR].concat());
        assert_eq!(vp.state.fpu.fxsave[..6], before.fxsave[..6]);
        assert_eq!(vp.state.fpu.fxsave[32..160], before.fxsave[32..160]);
    }
}

#[test]
fn masked_moves_touch_only_their_bytes() {
    let mut vp = machine();
    poke(&mut vp, DATA - 8, &[0x11; 16]);
    vp.state.gpr[reg::RDI] = DATA - 8;
    vp.state.fpu.set_xmm(1, u128::from_le_bytes([0xaa; 16]));
    vp.state.fpu.set_xmm(2, 0x80 | 0xff << 64 | 0x80 << 120);
    // MASKMOVDQU XMM1, XMM2
    let op = decode(&vp, &[0x66, 0x0f, 0xf7, 0xca]);
    assert_eq!(run(&mut vp, &op), Ok(()));
    let mut expected = [0x11; 16];
    for index in [0, 8, 15] {
        expected[index] = 0xaa;
    }
    assert_eq!(peek(&mut vp, DATA - 8, 16), expected);
    // MASKMOVQ MM1, MM2
    vp.state.fpu.enter_mmx();
    vp.state.fpu.set_mm(1, 0xbbbb_bbbb_bbbb_bbbb);
    vp.state.fpu.set_mm(2, 0x8000);
    ok(&mut vp, &[0x0f, 0xf7, 0xca]);
    assert_eq!(peek(&mut vp, DATA - 7, 1), [0xbb]);
    // An empty mask touches nothing at all.
    vp.state.fpu.set_xmm(2, 0);
    vp.state.gpr[reg::RDI] = 0x8000_0000_0000_0000;
    assert_eq!(run(&mut vp, &op), Ok(()));
}

#[test]
fn later_extensions_are_undefined() {
    let mut vp = machine();
    // VADDPS of AVX-512, VAESENC of 32 bytes, 3DNow! PFADD, XSAVES, EXTRQ.
    for bytes in [
        &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xca][..],
        &[0xc4, 0xe2, 0x75, 0xdc, 0xc2],
        &[0x0f, 0x0f, 0xca, 0x9e],
        &[0x0f, 0xc7, 0x2b],
        &[0x66, 0x0f, 0x79, 0xca],
    ] {
        at(&mut vp, DATA);
        fails(&mut vp, bytes, vector::UD);
    }
}

#[test]
fn nonsense_from_outside_reaches_no_host_exception() {
    let mut vp = machine();
    vp.update_state(|state| {
        state.fpu.fxsave = [0xff; 512];
        // All exceptions raised and unmasked, but ES clear.
        state.fpu.fxsave[0..4].copy_from_slice(&[0, 0, 0x3f, 0]);
    });
    ok(&mut vp, &FLD1);
    assert!(vp.state.fpu.pending());
    ok(&mut vp, &ADDPS);
    assert_eq!(vp.state.fpu.mxcsr(), 0xffff);
}

#[test]
fn device_memory_is_asked_for() {
    let mut vp = machine();
    at(&mut vp, 0x10_0000);
    // MOVUPS XMM1, [RBX] and FLD QWORD [RBX]
    for bytes in [&[0x0f, 0x10, 0x0b][..], &[0xdd, 0x03]] {
        let before = vp.state.fpu.fxsave;
        let op = decode(&vp, bytes);
        assert!((op.run)(&mut vp, &op).is_err());
        assert_eq!(
            vp.stop,
            StopReason::Exit(Exit::MmioRead {
                gpa: 0x10_0000,
                size: 8
            })
        );
        assert_eq!(vp.state.fpu.fxsave, before);
    }
}
