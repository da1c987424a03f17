//! Virtual-8086 mode.

use super::machine::*;
use crate::state::{cr, rflags, seg};
use iced_x86::code_asm::*;

/// Enters virtual-8086 mode at 0:USER by IRETD, flags with `extra`.
fn enter(extra: u32) -> Machine {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.asm(32, CODE, |a| {
        for selector in [0x4444, 0x3333, 0x2222, 0x1111, 0x0100] {
            a.push(selector)?;
        }
        a.push(0x5000)?;
        a.push(0x20202 | extra as i32)?;
        a.push(0)?;
        a.push(USER as i32)?;
        a.iretd()
    });
    m
}

#[test]
fn interrupts_fault_without_iopl_and_the_frame_holds_all_segments() {
    let mut m = enter(0);
    m.asm(16, USER, |a| {
        a.mov(ax, ds)?;
        a.int(0x21)
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[0] & 0xffff, 0x2222);
    assert!(!state.v86());
    assert!(state.seg[seg::DS].unusable());
    assert_eq!(m.stacked(0, 4), 0);
    assert_eq!(m.stacked(1, 4), USER + 2);
    assert_eq!(m.stacked(2, 4), 0);
    assert_ne!(m.stacked(3, 4) & rflags::VM, 0);
    let rest: Vec<u64> = (4..10).map(|i| m.stacked(i, 4)).collect();
    assert_eq!(rest, [0x5000, 0x0100, 0x1111, 0x2222, 0x3333, 0x4444]);
}

#[test]
fn with_vme_interrupts_go_to_the_programs_own_table() {
    let mut m = enter(0);
    m.state(|s| {
        s.cr4 |= cr::CR4_VME;
        s.seg[seg::TR].limit = 0x200;
    });
    // The redirection bitmap is the 32 bytes before the I/O bitmap, all clear.
    m.write16(TSS + 0x66, 0x88);
    m.write16(0x21 * 4, 0xc000);
    m.write16(0x21 * 4 + 2, 0);
    m.asm(16, 0xc000, |a| {
        a.mov(bx, 0x77)?;
        a.iret()
    });
    m.asm(16, USER, |a| {
        a.int(0x21)?;
        a.cli()?;
        a.pushf()?;
        a.pop(cx)?;
        a.hlt()
    });
    m.until_halt();
    // HLT is privileged.
    assert_eq!(m.stacked(1, 4), USER + 5);
    let state = m.vp.state();
    assert_eq!(state.gpr[3] & 0xffff, 0x77);
    // CLI cleared VIF, which PUSHF shows as IF; IOPL shows as 3.
    assert_eq!(state.gpr[1] & 0x3200, 0x3000);
}
