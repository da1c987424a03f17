//! Random programs of x87, MMX and SSE instructions, with faults, exceptions
//! and state that comes and goes: interpreter and translator end in the same
//! state, including the x87's pointers.

use super::differential::{codes, instruction};
use super::machine::{DATA, machine_in, peek, poke};
use super::random::Random;
use super::vex::vex_codes;
use crate::fault::{Exit, vector};
use crate::state::{reg, seg};
use crate::vp::{ProcessorMode, Vp};
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, OpKind};

const CODE: u64 = 0x1000;
const STACK: u64 = 0x5800;
const IDT: u64 = 0x6000;
const GDT: u64 = 0x6400;
const HANDLERS: u64 = 0x6800;
/// Words for FLDCW and LDMXCSR, and areas for what saves and restores state.
const CONTROL: u64 = DATA + 0x200;
const MXCSR: u64 = DATA + 0x240;
const ENVIRONMENT: u64 = DATA + 0x280;
const SAVED: u64 = DATA + 0x300;
const AREA: u64 = DATA + 0x400;
const XSAVED: u64 = DATA + 0x640;
const COMPACTED: u64 = DATA + 0x980;
const WINDOW: (u64, usize) = (DATA - 0x200, 0x1000);
const DEFAULT_PROGRAMS: u64 = 1500;

/// Handlers take away what an exception came of, and go on.
fn handlers() -> Vec<(u8, Vec<u8>)> {
    let handler = |emit: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let mut a = CodeAssembler::new(64).expect("assembler");
        emit(&mut a).expect("assembles");
        a.iretq().expect("assembles");
        a.assemble(0).expect("assembles")
    };
    let available = handler(&|a| {
        a.push(rax)?;
        a.mov(rax, cr0)?;
        a.and(eax, !0xc)?;
        a.mov(cr0, rax)?;
        a.pop(rax)?;
        a.add(r12d, 0x100)
    });
    vec![
        (vector::UD, available.clone()),
        (vector::NM, available),
        (
            vector::GP,
            handler(&|a| {
                a.add(rsp, 8)?;
                a.add(r12d, 0x1_0000)?;
                a.mov(ebx, DATA as u32)
            }),
        ),
        (
            vector::MF,
            handler(&|a| {
                a.add(r12d, 1)?;
                a.fnclex()
            }),
        ),
        (
            vector::XM,
            handler(&|a| {
                a.add(r12d, 0x10)?;
                a.ldmxcsr(dword_ptr(MXCSR))
            }),
        ),
    ]
}

/// A machine with descriptor tables and handlers.
fn prepared(mode: ProcessorMode) -> Vp {
    let mut vp = machine_in(mode);
    vp.warm = 2;
    poke(&mut vp, GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    poke(&mut vp, GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    let mut at = HANDLERS;
    for (number, code) in handlers() {
        poke(&mut vp, at, &code);
        let gate = at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        poke(&mut vp, IDT + 16 * u64::from(number), &gate.to_le_bytes());
        at += 64;
    }
    vp.update_state(|state| {
        (state.gdtr.base, state.gdtr.limit) = (GDT, 0x17);
        (state.idtr.base, state.idtr.limit) = (IDT, 0x1ff);
        state.seg[seg::CS].selector = 8;
        state.seg[seg::SS].selector = 16;
    });
    vp
}

/// An instruction of the pool, on memory around RBX.
fn any(a: &mut CodeAssembler, pool: &[Code], random: &mut Random) -> Result<(), IcedError> {
    let code = random.pick(pool);
    let Some(mut one) = instruction(code, random) else {
        return Ok(());
    };
    if (0..one.op_count()).any(|i| one.op_kind(i) == OpKind::Memory) {
        // The handler of #GP aligns RBX.
        one.set_memory_displacement64((32 * random.below(4)) as u64);
        one.set_memory_displ_size(1);
    }
    a.add_instruction(one)
}

/// What is rarer: control, state, faults, flags.
fn special(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let control = word_ptr(CONTROL + 2 * random.below(8) as u64);
    match random.below(32) {
        0..=3 => a.fldcw(control),
        4 => a.fninit(),
        5 => a.fnclex(),
        6 => a.fnstenv(ptr(ENVIRONMENT)),
        7 => a.fldenv(ptr(ENVIRONMENT)),
        8 => a.fnsave(ptr(SAVED)),
        9 => a.frstor(ptr(SAVED)),
        10..=12 => a.fxsave64(ptr(AREA)),
        13 => a.fxrstor64(ptr(AREA)),
        14 => {
            a.mov(rax, cr0)?;
            a.or(eax, if random.below(3) == 0 { 0xc } else { 8 })?;
            a.mov(cr0, rax)
        }
        15 => a.clts(),
        16 => a.ldmxcsr(dword_ptr(MXCSR + 4 * random.below(4) as u64)),
        17 => a.stmxcsr(dword_ptr(rbx)),
        18 => a.wait(),
        19 => a.emms(),
        20 => a.mov(rbx, DATA as i64 - 80 + random.below(96) as i64),
        21 => a.mov(rbx, 0x8000_0000_0000_0000u64 as i64),
        22 => a.adc(rax, rcx),
        23 => {
            a.push(rdx)?;
            a.pop(rsi)
        }
        24 => {
            a.pushfq()?;
            a.pop(rdi)
        }
        25 => a.fnstcw(word_ptr(rbx)),
        kind => {
            a.mov(eax, random.below(8) as u32)?;
            a.xor(edx, edx)?;
            match kind {
                26 | 27 => a.xsave64(ptr(XSAVED)),
                28 => a.xsaveopt64(ptr(XSAVED)),
                29 => a.xsavec64(ptr(COMPACTED)),
                30 => a.xrstor64(ptr(COMPACTED)),
                _ => a.xrstor64(ptr(XSAVED)),
            }
        }
    }
}

fn program(pool: &[Code], random: &mut Random) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    let mut function = a.create_label();
    // Some programs have none of what makes the interpreter do the work.
    let specials = random.pick(&[0, 1, 4]);
    a.mov(ebp, 6 + random.below(6) as u32)?;
    a.set_label(&mut again)?;
    for _ in 0..4 + random.below(20) {
        match random.below(12) {
            0 => {
                let mut skip = a.create_label();
                match random.below(4) {
                    0 => a.jb(skip)?,
                    1 => a.jne(skip)?,
                    2 => a.jp(skip)?,
                    _ => a.js(skip)?,
                }
                any(&mut a, pool, random)?;
                a.set_label(&mut skip)?;
                a.nop()?;
            }
            1 => a.call(function)?,
            kind if kind < 2 + specials => special(&mut a, random)?,
            _ => any(&mut a, pool, random)?,
        }
    }
    a.fxsave64(ptr(AREA))?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    any(&mut a, pool, random)?;
    any(&mut a, pool, random)?;
    a.ret()?;
    a.assemble(CODE)
}

/// What a program leaves behind.
#[derive(PartialEq, Debug)]
struct End {
    exit: Exit,
    gpr: Vec<u64>,
    rip: u64,
    rflags: u64,
    upper: Vec<u128>,
    /// FCW to MXCSR.
    words: Vec<u8>,
    stack: Vec<[u8; 10]>,
    xmm: Vec<u128>,
    memory: Vec<u8>,
}

fn run(vp: &mut Vp, code: &[u8], masked: bool, random: &mut Random) -> End {
    poke(vp, CODE, &[0x90; 4096]);
    for (at, piece) in (CODE..).step_by(1024).zip(code.chunks(1024)) {
        poke(vp, at, piece);
    }
    let mut memory = vec![0; WINDOW.1];
    memory.fill_with(|| random.next() as u8);
    poke(vp, WINDOW.0, &memory);
    let other = |value: u16| if masked { value | 0x3f } else { value };
    for (at, word) in (CONTROL..).step_by(2).zip([
        0x37f,
        0x27f,
        0x7f,
        0xf7f,
        other(0x360),
        other(0x37a),
        other(random.next() as u16),
        other(0x340),
    ]) {
        poke(vp, at, &word.to_le_bytes());
    }
    for (at, word) in (MXCSR..)
        .step_by(4)
        .zip([0x1f80u32, 0x1f80, 0xffc0, 0x3f80])
    {
        let unmasked = if masked {
            0
        } else {
            random.next() as u32 & 0x1f80
        };
        let word = if at == MXCSR { word } else { word & !unmasked };
        poke(vp, at, &word.to_le_bytes());
    }
    let mut image = random.image(masked);
    image[0] |= if masked { 0x3f } else { 0 };
    poke(vp, AREA, &image);
    poke(vp, XSAVED, &image);
    poke(vp, XSAVED + 512, &[0; 64]);
    poke(vp, COMPACTED, &image);
    poke(vp, COMPACTED + 512, &[0; 64]);
    poke(vp, COMPACTED + 527, &[0x80]);
    poke(vp, XSAVED + 512, &[random.below(4) as u8]);
    let mut image = random.image(masked);
    image[0] |= 0x3f;
    vp.update_state(|state| {
        state.fpu.fxsave = image;
        state.cr0 &= !0xc;
    });
    let avx = vp.config.features.avx();
    for number in 0..16 {
        vp.state.gpr[number] = random.next();
        let upper = u128::from(random.next());
        vp.state.fpu.set_upper(number, if avx { upper } else { 0 });
    }
    // Counts exceptions.
    vp.state.gpr[12] = 0;
    vp.state.gpr[reg::RBX] = DATA - 64 + random.below(64) as u64;
    vp.state.gpr[reg::RSP] = STACK;
    vp.state.set_rflags(0);
    vp.state.rip = CODE;
    vp.code_written = false;
    let exit = vp.run();
    let fpu = &vp.state.fpu;
    End {
        exit,
        gpr: vp.state.gpr[..16].to_vec(),
        rip: vp.state.rip,
        rflags: vp.state.rflags(),
        upper: (0..16).map(|number| fpu.upper(number)).collect(),
        words: fpu.fxsave[..28].to_vec(),
        stack: (0..8).map(|number| fpu.st(number)).collect(),
        xmm: (0..16).map(|number| fpu.xmm(number)).collect(),
        memory: peek(vp, WINDOW.0, WINDOW.1),
    }
}

/// x87 and MMX, with some SSE.
fn pool() -> Vec<Code> {
    use iced_x86::CpuidFeature as F;
    let stack = |code: &Code| {
        matches!(
            code.cpuid_features().first(),
            Some(F::FPU | F::FPU387 | F::MMX)
        )
    };
    let all: Vec<Code> = codes().collect();
    let mut pool: Vec<Code> = all.iter().copied().filter(stack).collect();
    pool = [pool.clone(), pool.clone(), pool, all].concat();
    pool
}

/// AVX and the BMIs, with some SSE and often VZEROUPPER.
fn vex_pool() -> Vec<Code> {
    use iced_x86::CpuidFeature as F;
    let vex: Vec<Code> = vex_codes().collect();
    let sse = |code: &Code| matches!(code.cpuid_features().first(), Some(F::SSE | F::SSE2));
    let mut pool = [vex.clone(), vex, codes().filter(sse).collect()].concat();
    pool.extend([Code::VEX_Vzeroupper; 120]);
    pool
}

#[test]
fn random_programs_end_as_interpreted() {
    compare(&pool(), 4);
}

#[test]
fn random_programs_with_avx_end_as_interpreted() {
    if machine_in(ProcessorMode::Interpret).config.features.avx() {
        compare(&vex_pool(), 20);
    } else {
        println!("not compared: this host has no AVX");
    }
}

/// At least one of `rare` programs meets an exception.
fn compare(pool: &[Code], rare: u64) {
    let setting = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let programs = setting("PARTITA_TRANSLATOR_PROGRAMS", DEFAULT_PROGRAMS);
    let seed = setting("PARTITA_TRANSLATOR_SEED", 1);
    let mut interpreter = prepared(ProcessorMode::Interpret);
    let mut translator = prepared(ProcessorMode::Translate);
    if !translator.translates() {
        println!("not compared: this host cannot run the translator");
        return;
    }
    let mut exceptions = 0;
    for number in seed..seed + programs {
        let mut random = Random::new(number);
        let masked = random.below(3) != 0;
        let code = program(pool, &mut random).expect("a program");
        let start = random.next();
        let expected = run(&mut interpreter, &code, masked, &mut Random::new(start));
        let seen = run(&mut translator, &code, masked, &mut Random::new(start));
        assert_eq!(expected.exit, Exit::Halt, "seed {number}");
        assert_eq!(seen, expected, "seed {number}, code {code:02x?}");
        exceptions += u64::from(expected.gpr[12] != 0);
    }
    assert!(
        exceptions * rare > programs,
        "{exceptions} programs with exceptions"
    );
}
