//! System instructions: interpreter and translator end in the same state,
//! with the supervisor's and with user code's rights.

use super::tests::{Random, machine, run};
use crate::Vp;
use crate::fault::Exit;
use crate::state::{cr, rflags, seg};
use crate::vp::ProcessorMode;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const CODE: u64 = 0x1000;
/// Where SYSCALL goes.
const KERNEL: u64 = 0x1800;
const PROGRAMS: u64 = 150;

/// One instruction or a few that leave RSP as it was.
fn supervisor(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.displacement();
    match random.below(24) {
        0 => a.cli(),
        1 => {
            a.sti()?;
            a.nop()
        }
        2 => a.stac(),
        3 => a.clac(),
        4 => a.swapgs(),
        5 => {
            a.pushfq()?;
            a.pop(random.wide())
        }
        6 => {
            // IF and status flags alone, or more.
            let value = random.next() as i32 & (rflags::ALL & !(rflags::TF | rflags::VM)) as i32;
            let image = if random.below(2) == 0 {
                value & (rflags::ARITH | rflags::IF) as i32
            } else {
                value & !(rflags::IOPL | rflags::NT | rflags::RF) as i32
            };
            a.push(image)?;
            a.popfq()
        }
        7 => a.mov(random.wide(), cr2),
        8 => a.mov(random.wide(), cr4),
        9 => a.mov(random.wide(), cr0),
        10 => {
            a.cld()?;
            a.std()
        }
        11 => a.cld(),
        12 => {
            a.mov(cr2, random.wide())?;
            a.mov(random.wide(), cr3)
        }
        13 => a.mov(random.wide(), qword_ptr(rbx + at).gs()),
        _ => anyone(a, random, at),
    }
}

/// What every privilege may do.
fn anyone(a: &mut CodeAssembler, random: &mut Random, at: i32) -> Result<(), IcedError> {
    match random.below(16) {
        0 => {
            a.push(qword_ptr(rbx + at))?;
            a.pop(random.wide())
        }
        1 => {
            a.push(qword_ptr(rsp - 8))?;
            a.pop(qword_ptr(rbx + at))
        }
        2 => string(a, random, |a| a.rep().stosb()),
        3 => string(a, random, |a| a.rep().stosq()),
        4 => string(a, random, |a| a.rep().movsb()),
        5 => string(a, random, |a| a.rep().movsd()),
        6 => string(a, random, |a| a.stosw()),
        7 => string(a, random, |a| a.movsq()),
        8 => {
            a.and(r9d, 127)?;
            a.bts(qword_ptr(rbx + at), r9)
        }
        9 => {
            a.and(r10d, 63)?;
            a.lock().btr(dword_ptr(rbx + at), r10d)
        }
        10 => {
            a.and(r11d, 31)?;
            a.bt(dword_ptr(rbx + at), r11d)
        }
        11 => {
            a.push(rbx)?;
            a.lock().cmpxchg16b(xmmword_ptr(rsi))?;
            a.pop(rbx)
        }
        12 => a.mov(random.narrow(), ds),
        13 => a.rdfsbase(random.wide()),
        14 => a.pcmpistri(random.vector(), random.vector(), 12),
        _ => a.pcmpestri(random.vector(), xmmword_ptr(rbx + at), 13),
    }
}

/// With pointers to the data, a short count, and RSI at a multiple of 16.
fn string(
    a: &mut CodeAssembler,
    random: &mut Random,
    instruction: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let count = random.below(20) as u32;
    a.lea(rdi, qword_ptr(rbx + random.displacement()))?;
    a.lea(rsi, qword_ptr(rbx + random.displacement()))?;
    a.mov(ecx, count)?;
    instruction(a)?;
    a.lea(rsi, qword_ptr(rbx - 64))
}

fn arithmetic(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    match random.below(4) {
        0 => a.add(random.wide(), random.wide()),
        1 => a.sub(random.narrow(), random.next() as i32),
        2 => a.adc(random.wide(), random.wide()),
        _ => a.setbe(byte_ptr(rbx)),
    }
}

fn prepare(vp: &mut Vp) {
    vp.update_state(|state| {
        state.cr4 |= cr::CR4_FSGSBASE | cr::CR4_SMAP;
        state.efer |= cr::EFER_SCE;
        state.msr.lstar = KERNEL;
        state.msr.star = 0x10 << 32 | 0x20 << 48;
        state.msr.kernel_gs_base = 64;
        state.seg[seg::GS].base = 0;
        state.seg[seg::FS].base = 0x1234_5678_9abc;
        state.seg[seg::DS].selector = 0x2b;
        state.system_flags = rflags::FIXED;
    });
}

fn compare(programs: impl Fn(&mut Random) -> Result<Vec<u8>, IcedError>, start: fn(&mut Vp)) {
    let mut interpreter = machine(ProcessorMode::Interpret);
    let mut translator = machine(ProcessorMode::Translate);
    if !translator.translates() {
        println!("not compared: this host cannot run the translator");
        return;
    }
    for number in 1..=PROGRAMS {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let code = programs(&mut random).expect("a program");
        let seed = random.0;
        let ends = [&mut interpreter, &mut translator].map(|vp| {
            prepare(vp);
            let end = run(vp, &code, &mut Random(seed), start);
            let state = &vp.state;
            let hidden = (
                state.cpl,
                state.seg,
                state.msr.kernel_gs_base,
                vp.mmu.data_set,
                vp.mode_key,
                vp.attention,
            );
            (end, hidden)
        });
        assert_eq!(ends[0].0.exit, Exit::Halt, "program {number}");
        assert_eq!(ends[1], ends[0], "program {number}, code {code:02x?}");
    }
}

#[test]
fn supervisor_programs_end_as_interpreted() {
    let program = |random: &mut Random| {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.mov(ebp, 12 + random.below(20) as u32)?;
        a.lea(rsi, qword_ptr(rbx - 64))?;
        a.set_label(&mut again)?;
        for _ in 0..6 + random.below(16) {
            match random.below(3) {
                0 => arithmetic(&mut a, random)?,
                _ => supervisor(&mut a, random)?,
            }
            // The pointers of CMPXCHG16B.
            a.lea(rsi, qword_ptr(rbx - 64))?;
        }
        a.dec(ebp)?;
        a.jne(again)?;
        a.hlt()?;
        a.assemble(CODE)
    };
    compare(program, |_| {});
}

#[test]
fn system_calls_end_as_interpreted() {
    let program = |random: &mut Random| {
        let mut user = CodeAssembler::new(64)?;
        let mut again = user.create_label();
        user.mov(ebp, 12 + random.below(20) as u32)?;
        user.set_label(&mut again)?;
        for _ in 0..2 + random.below(8) {
            match random.below(4) {
                0 => user.syscall()?,
                1 => arithmetic(&mut user, random)?,
                _ => {
                    user.lea(rsi, qword_ptr(rbx - 64))?;
                    let at = random.displacement();
                    anyone(&mut user, random, at)?;
                }
            }
        }
        user.dec(ebp)?;
        user.jne(again)?;
        user.mov(eax, 0x7777)?;
        user.xor(r15d, r15d)?;
        user.syscall()?;
        let mut code = user.assemble(CODE)?;
        code.resize((KERNEL - CODE) as usize, 0x90);
        let mut kernel = CodeAssembler::new(64)?;
        let mut done = kernel.create_label();
        kernel.swapgs()?;
        kernel.mov(r12, rax)?;
        kernel.pushfq()?;
        kernel.pop(r13)?;
        kernel.test(r15, r15)?;
        kernel.je(done)?;
        kernel.push(rcx)?;
        kernel.push(r11)?;
        for _ in 0..random.below(5) {
            arithmetic(&mut kernel, random)?;
        }
        kernel.pop(r11)?;
        kernel.pop(rcx)?;
        kernel.mov(r15d, 1)?;
        kernel.swapgs()?;
        kernel.sysretq()?;
        kernel.set_label(&mut done)?;
        kernel.hlt()?;
        code.extend(kernel.assemble(KERNEL)?);
        Ok(code)
    };
    compare(program, |vp| {
        let masks = [
            rflags::AC | rflags::TF | rflags::IF | rflags::DF,
            rflags::AC | rflags::TF | rflags::ARITH | rflags::IF | rflags::DF,
            rflags::TF | rflags::DF,
        ];
        let mask = masks[(vp.state.gpr[8] % 3) as usize];
        assert_eq!(vp.write_msr(0xc000_0084, mask), Some(true));
        vp.state.gpr[15] = 1;
        vp.update_state(|state| {
            state.cpl = 3;
            state.seg[seg::CS].attributes = 0xa0fb;
            state.seg[seg::SS].attributes = 0xc0f3;
        });
    });
}
