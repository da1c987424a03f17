//! Breakpoints and single stepping.

use super::machine::*;
use crate::state::rflags;
use iced_x86::code_asm::*;

fn machine() -> Machine {
    let mut m = Machine::long();
    m.gate(1, CODE64, HANDLER, 0x8e, 0);
    m
}

#[test]
fn instruction_breakpoints_fault_once_and_rf_passes_them() {
    let mut m = machine();
    m.asm(64, HANDLER, |a| {
        a.inc(r8)?;
        a.mov(r9, qword_ptr(rsp))?;
        a.mov(r10, qword_ptr(rsp + 16))?;
        a.mov(rax, dr6)?;
        // Set RF in the image.
        a.or(dword_ptr(rsp + 16), 0x10000)?;
        a.iretq()
    });
    m.asm(64, CODE, |a| {
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    m.state(|s| {
        s.dr[1] = CODE + 1;
        s.dr7 = 0x400 | 1 << 2;
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[8], 1);
    assert_eq!(state.gpr[9], CODE + 1);
    assert_eq!(state.gpr[10] & rflags::RF, 0);
    assert_eq!(state.gpr[0] & 0xf, 2);
    assert_eq!(state.system_flags & rflags::RF, 0);
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    let mut m = machine();
    m.asm(64, HANDLER, |a| {
        a.mov(r9, qword_ptr(rsp))?;
        a.mov(rax, dr6)?;
        a.hlt()
    });
    m.asm(64, CODE, |a| {
        a.mov(bl, byte_ptr(0x5002u64))?;
        a.mov(byte_ptr(0x5002u64), 7)?;
        a.nop()?;
        a.hlt()
    });
    m.state(|s| {
        s.dr[0] = 0x5000;
        // Four bytes, writes.
        s.dr7 = 0x400 | 1 | 0xd << 16;
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[9], CODE + 15);
    assert_eq!(state.gpr[0] & 0xf, 1);
    assert_eq!(m.read(0x5002, 1), 7);
}

#[test]
fn single_steps_trap_behind_each_instruction_but_not_inside_handlers() {
    let mut m = machine();
    m.gate(0x30, CODE64, 0xb000, 0x8e, 0);
    m.asm(64, 0xb000, |a| {
        a.nop()?;
        a.iretq()
    });
    m.asm(64, HANDLER, |a| {
        a.inc(r8)?;
        a.mov(r9, qword_ptr(rsp))?;
        a.mov(rax, dr6)?;
        a.iretq()
    });
    m.asm(64, CODE, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.int(0x30)?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100)?;
        a.popfq()?;
        a.hlt()
    });
    m.until_halt();
    let state = m.vp.state();
    // NOP, NOP (INT and its handler run through), PUSHFQ, AND, POPFQ.
    assert_eq!(state.gpr[8], 5);
    assert_eq!(state.gpr[0] & 0x4000, 0x4000);
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut m = machine();
    m.asm(64, HANDLER, |a| {
        a.mov(rax, dr6)?;
        a.mov(rbx, dr7)?;
        a.hlt()
    });
    m.asm(64, CODE, |a| a.mov(rcx, dr0));
    m.state(|s| s.dr7 = 0x2400);
    m.until_halt();
    let state = m.vp.state();
    assert_ne!(state.gpr[0] & 0x2000, 0);
    assert_eq!(state.gpr[3], 0x400);
    assert_eq!(m.stacked(0, 8), CODE);
}

#[test]
fn icebp_and_int3_push_the_address_behind_them() {
    let mut m = machine();
    m.gate(3, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| {
        a.mov(r9, qword_ptr(rsp))?;
        a.hlt()
    });
    m.asm(64, CODE, |a| a.db(&[0xf1]));
    m.until_halt();
    assert_eq!(m.vp.state().gpr[9], CODE + 1);
    assert_eq!(m.vp.state().dr6 & 0xe00f, 0);
    m.asm(64, CODE, |a| a.int3());
    m.state(|s| s.rip = CODE);
    m.until_halt();
    assert_eq!(m.vp.state().gpr[9], CODE + 1);
}

#[test]
fn icebp_takes_the_breakpoint_that_a_load_of_ss_held_back() {
    // INT 1 is another exception in front of the one held back.
    for (code, traps) in [([0xf1, 0x90], 1), ([0xcd, 0x01], 2)] {
        let mut m = machine();
        m.asm(64, HANDLER, |a| {
            a.inc(r8)?;
            a.mov(rax, dr6)?;
            a.iretq()
        });
        m.asm(64, CODE, |a| {
            a.mov(ss, word_ptr(0x5000u64))?;
            a.db(&code)?;
            a.hlt()
        });
        m.write32(0x5000, 0);
        m.state(|s| {
            s.dr[1] = 0x5000;
            // Breakpoint 1: data, four bytes.
            s.dr7 = 0x400 | 1 << 2 | 0xf << 20;
        });
        m.until_halt();
        assert_eq!(m.vp.state().gpr[8], traps);
        assert_eq!(m.vp.state().gpr[0] & 0xf, 2);
    }
}

#[test]
fn port_breakpoints_need_debugging_extensions() {
    for (extensions, hits) in [(0, 0), (crate::state::cr::CR4_DE, 1)] {
        let mut m = machine();
        m.asm(64, HANDLER, |a| {
            a.inc(r8)?;
            a.iretq()
        });
        m.asm(64, CODE, |a| {
            a.out(0x81, al)?;
            a.nop()?;
            a.hlt()
        });
        m.state(|s| {
            s.cr4 |= extensions;
            s.dr[3] = 0x80;
            // Breakpoint 3: I/O, two bytes.
            s.dr7 = 0x400 | 1 << 6 | 0x6 << 28;
        });
        assert_eq!(
            m.run(),
            crate::fault::Exit::IoWrite {
                port: 0x81,
                size: 1,
                value: 0
            }
        );
        m.vp.complete(crate::fault::Completion::Done);
        m.until_halt();
        assert_eq!(m.vp.state().gpr[8], hits);
    }
}
