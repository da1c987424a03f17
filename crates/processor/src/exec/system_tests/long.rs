//! Long mode: interrupt frames, stacks, system calls.

use super::machine::*;
use crate::fault::Exit;
use crate::state::{cr, reg, rflags, seg};
use crate::vp::Event;
use iced_x86::code_asm::*;

#[test]
fn frames_are_aligned_and_hold_five_items_and_an_error_code() {
    let mut m = Machine::long();
    m.gate(13, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.mov(rax, 0x8000_0000_0000_0000u64)?;
        a.mov(rbx, qword_ptr(rax))
    });
    m.state(|s| s.gpr[reg::RSP] = STACK - 3);
    m.until_halt();
    assert_eq!(m.vp.state().gpr[reg::RSP], STACK - 16 - 48);
    assert_eq!(m.stacked(0, 8), 0);
    assert_eq!(m.stacked(1, 8), CODE + 10);
    assert_eq!(m.stacked(2, 8), u64::from(CODE64));
    assert_eq!(m.stacked(4, 8), STACK - 3);
    assert_eq!(m.stacked(5, 8), u64::from(DATA32));
    // No change of level: SS stays.
    assert_eq!(m.vp.state().seg[seg::SS].selector, DATA32);
}

#[test]
fn page_faults_from_user_code_tell_address_and_cause() {
    let mut m = Machine::long();
    m.gate(14, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.enter_user();
    m.asm(64, USER, |a| a.mov(byte_ptr(0x20_0123u64), 1));
    m.until_halt();
    assert_eq!(m.stacked(0, 8), 6);
    assert_eq!(m.vp.state().cr2, 0x20_0123);
    assert_eq!(m.stacked(1, 8), USER);
    assert_ne!(m.stacked(3, 8) & rflags::RF, 0);
    let stack = &m.vp.state().seg[seg::SS];
    assert!(stack.unusable() && stack.selector == 0);
    assert_eq!(m.vp.state().gpr[reg::RSP], STACK - 48);
}

#[test]
fn interrupt_stacks_come_from_the_tss() {
    let mut m = Machine::long();
    m.gate(2, CODE64, HANDLER, 0x8e, 3);
    m.write64(TSS + 0x24 + 16, 0x5808);
    m.asm(64, HANDLER, |a| {
        a.mov(rax, rsp)?;
        a.iretq()
    });
    m.asm(64, CODE, |a| {
        a.nop()?;
        a.hlt()
    });
    m.vp.inject(Event::Nmi);
    assert!(m.vp.step().is_none());
    assert!(!m.vp.can_nmi());
    m.until_halt();
    assert_eq!(m.vp.state().gpr[0], 0x5800 - 40);
    assert_eq!(m.vp.state().gpr[reg::RSP], STACK);
    assert!(m.vp.can_nmi());
}

#[test]
fn a_stack_that_is_not_there_makes_a_double_fault() {
    let mut m = Machine::long();
    m.gate(14, CODE64, HANDLER, 0x8e, 0);
    m.gate(8, CODE64, HANDLER, 0x8e, 1);
    m.write64(TSS + 0x24, 0x5800);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.mov(rsp, 0x40_0100u64)?;
        a.push(rax)
    });
    m.until_halt();
    assert_eq!(m.stacked(0, 8), 0);
    assert_eq!(m.stacked(1, 8), CODE + 10);
    assert_eq!(m.stacked(4, 8), 0x40_0100);
    // Of the second page fault, which pushed the first frame.
    assert_eq!(m.vp.state().cr2, 0x40_00f8);
    assert_eq!(m.vp.state().gpr[reg::RSP], 0x5800 - 48);
}

#[test]
fn system_calls_enter_and_leave_the_kernel() {
    let mut m = Machine::long();
    m.asm(64, HANDLER, |a| {
        a.swapgs()?;
        a.mov(rbx, rcx)?;
        a.mov(r12, r11)?;
        a.pushfq()?;
        a.pop(r13)?;
        a.swapgs()?;
        a.sysretq()
    });
    m.gate(3, CODE64, 0xb000, 0xee, 0);
    m.asm(64, 0xb000, |a| a.hlt());
    m.enter_user();
    m.state(|s| {
        // Kernel 0x38/0x40; user 0x30+16 = 0x40.
        s.msr.star = 0x0030u64 << 48 | 0x0038u64 << 32;
        s.msr.lstar = HANDLER;
        s.msr.sfmask = rflags::IF | rflags::DF;
        s.msr.kernel_gs_base = 0x1234;
    });
    m.asm(64, USER, |a| {
        a.syscall()?;
        a.int3()
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[3], USER + 2);
    assert_ne!(state.gpr[12] & rflags::IF, 0);
    assert_eq!(state.gpr[13] & rflags::IF, 0);
    assert_eq!(state.msr.kernel_gs_base, 0x1234);
    assert_eq!(m.stacked(0, 8), USER + 3);
    assert_eq!(m.stacked(1, 8), u64::from(USER_CODE64));
    assert_eq!(m.stacked(2, 8) & rflags::IF, rflags::IF);
    assert_eq!(m.stacked(4, 8), 0x3b);
}

#[test]
fn iretq_to_user_and_non_canonical_targets() {
    let mut m = Machine::long();
    m.gate(13, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.push(i32::from(USER_DATA32))?;
        a.push(USER_STACK as i32)?;
        a.pushfq()?;
        a.push(i32::from(USER_CODE64))?;
        a.push(USER as i32)?;
        a.iretq()
    });
    // HLT is privileged: #GP from level 3 shows that we arrived.
    m.asm(64, USER, |a| a.hlt());
    m.until_halt();
    assert_eq!(m.stacked(1, 8), USER);
    assert_eq!(m.stacked(2, 8), u64::from(USER_CODE64));
    assert_eq!(m.stacked(4, 8), USER_STACK);
    assert_eq!(m.stacked(5, 8), u64::from(USER_DATA32));
}

#[test]
fn sti_holds_interrupts_off_for_one_instruction() {
    let mut m = Machine::long();
    m.asm(64, CODE, |a| {
        a.sti()?;
        a.nop()?;
        a.hlt()
    });
    m.vp.request_interrupt_window(true);
    assert!(m.vp.step().is_none());
    assert!(!m.vp.can_interrupt());
    assert!(m.vp.step().is_none());
    assert_eq!(m.vp.step(), Some(Exit::InterruptWindow));
    assert_eq!(m.vp.state().rip, CODE + 2);
}

#[test]
fn sidt_is_privileged_under_umip_and_stores_ten_bytes() {
    let mut m = Machine::long();
    m.gate(13, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.sidt(ptr(0x5000u64))?;
        a.hlt()
    });
    m.until_halt();
    assert_eq!(m.read(0x5000, 2), 0xfff);
    assert_eq!(m.read(0x5002, 8), IDT);
    m.enter_user();
    m.state(|s| s.cr4 |= cr::CR4_UMIP);
    m.asm(64, USER, |a| a.sidt(ptr(0x5000u64)));
    m.until_halt();
    assert_eq!(m.stacked(1, 8), USER);
}

#[test]
fn cpuid_and_hypercalls_are_answered_from_outside() {
    use crate::fault::Completion;
    let mut m = Machine::long();
    m.asm(64, CODE, |a| {
        a.mov(eax, 0x4000_0000)?;
        a.cpuid()?;
        a.vmcall()?;
        a.vmmcall()?;
        a.hlt()
    });
    let expected = Exit::Cpuid {
        leaf: 0x4000_0000,
        subleaf: 0,
        default: [0; 4],
    };
    assert_eq!(m.run(), expected);
    m.vp.complete(Completion::Cpuid([1, 2, 3, 4]));
    assert_eq!(m.run(), Exit::Hypercall);
    let state = m.vp.state();
    assert_eq!(
        (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2]),
        (1, 2, 3, 4)
    );
    m.vp.complete(Completion::Retry);
    assert_eq!(m.run(), Exit::Hypercall);
    assert_eq!(m.vp.state().rip, CODE + 7);
    m.vp.complete(Completion::Done);
    assert_eq!(m.run(), Exit::Hypercall);
    m.vp.complete(Completion::Done);
    m.until_halt();
}

#[test]
fn compatibility_code_enters_and_leaves_by_interrupts() {
    let mut m = Machine::long();
    m.gate(0x80, CODE64, HANDLER, 0xee, 0);
    m.gate(3, CODE64, 0xb000, 0xee, 0);
    m.asm(64, 0xb000, |a| a.hlt());
    m.asm(64, HANDLER, |a| {
        a.mov(rbx, qword_ptr(rsp + 8))?;
        a.iretq()
    });
    m.enter_user();
    m.state(|s| {
        s.seg[seg::CS].selector = USER_CODE32;
        s.seg[seg::CS].attributes = 0xc0fb;
    });
    m.asm(32, USER, |a| {
        a.int(0x80)?;
        a.push(0x55)?;
        a.int3()
    });
    m.until_halt();
    assert_eq!(m.vp.state().gpr[3], u64::from(USER_CODE32));
    assert_eq!(m.stacked(1, 8), u64::from(USER_CODE32));
    assert_eq!(m.stacked(3, 8), USER_STACK - 4);
    assert_eq!(m.read(USER_STACK - 4, 4), 0x55);
}

#[test]
fn a_masked_trap_flag_does_not_step_into_the_kernel() {
    let mut m = Machine::long();
    m.gate(1, CODE64, 0xb000, 0x8e, 0);
    m.asm(64, 0xb000, |a| {
        a.inc(r8)?;
        a.hlt()
    });
    m.asm(64, HANDLER, |a| {
        a.nop()?;
        a.sysretq()
    });
    m.enter_user();
    m.state(|s| {
        s.msr.star = 0x0030u64 << 48 | 0x0038u64 << 32;
        s.msr.lstar = HANDLER;
        s.msr.sfmask = rflags::TF;
        s.system_flags |= rflags::TF;
    });
    m.asm(64, USER, |a| {
        a.syscall()?;
        a.nop()
    });
    m.until_halt();
    // SYSRET traps on the flag that it loads: the step over SYSCALL ends
    // behind SYSCALL.
    assert_eq!(m.vp.state().gpr[8], 1);
    assert_eq!(m.stacked(0, 8), USER + 2);
    assert_eq!(m.stacked(1, 8), u64::from(USER_CODE64));
}

#[test]
fn supervisor_access_prevention_follows_ac() {
    let mut m = Machine::long();
    m.gate(14, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    // All pages are user pages: take that from all but the one at 0x5000.
    for page in (0..64).filter(|&page| page != 5) {
        m.write64(0x13000 + page * 8, page << 12 | 3);
    }
    m.write32(0x5000, 77);
    m.asm(64, CODE, |a| {
        a.stac()?;
        a.mov(ecx, dword_ptr(0x5000u64))?;
        a.clac()?;
        a.mov(ebx, dword_ptr(0x5000u64))
    });
    m.state(|s| s.cr4 |= cr::CR4_SMAP | cr::CR4_SMEP);
    m.until_halt();
    assert_eq!(m.vp.state().gpr[1], 77);
    assert_eq!(m.vp.state().cr2, 0x5000);
    assert_eq!(m.stacked(0, 8), 1);
    assert_eq!(m.stacked(1, 8), CODE + 13);
}
