//! Real and protected mode: interrupts, gates, tasks.

use super::machine::*;
use crate::state::{cr, rflags, seg};
use iced_x86::code_asm::*;

#[test]
fn real_mode_interrupts_push_and_restore() {
    let mut m = Machine::real();
    m.write16(0x21 * 4, HANDLER as u16);
    m.write16(0x21 * 4 + 2, 0);
    m.asm(16, CODE, |a| {
        a.sti()?;
        a.int(0x21)?;
        a.hlt()
    });
    m.asm(16, HANDLER, |a| {
        a.pushf()?;
        a.pop(bx)?;
        a.mov(ax, 0x1234)?;
        a.iret()
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[0] & 0xffff, 0x1234);
    assert_eq!(state.gpr[3] & rflags::IF, 0);
    assert_ne!(state.rflags() & rflags::IF, 0);
    assert_eq!(state.gpr[4], STACK);
}

#[test]
fn from_real_mode_to_64_bit_code() {
    let mut tables = Machine::long();
    let mut m = Machine::real();
    // The descriptor and page tables of the other machine.
    for page in [GDT, 0x10000, 0x11000, 0x12000, 0x13000] {
        for at in (page..page + 0x1000).step_by(8) {
            let value = tables.read(at, 8);
            m.write64(at, value);
        }
    }
    tables.write64(0, 0);
    m.write16(0x500, 0xfff);
    m.write32(0x502, GDT as u32);
    m.asm(16, CODE, |a| {
        a.lgdt(ptr(0x500))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // JMP FAR CODE32:0x8100 with a 32-bit offset.
        a.db(&[0x66, 0xea, 0x00, 0x81, 0x00, 0x00, CODE32 as u8, 0])
    });
    m.asm(32, 0x8100, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ss, eax)?;
        a.mov(eax, cr::CR4_PAE as u32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x10000)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0x00, 0x82, 0x00, 0x00, CODE64 as u8, 0])
    });
    m.asm(64, 0x8200, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.hlt()
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[0], 0x1122_3344_5566_7788);
    assert!(state.code64());
    assert_ne!(state.efer & cr::EFER_LMA, 0);
}

#[test]
fn exceptions_from_user_code_switch_stacks_and_push_error_codes() {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.enter_user();
    m.asm(32, USER, |a| {
        a.mov(eax, 0x73)?;
        a.mov(fs, eax)
    });
    // Beyond the GDT.
    m.state(|s| s.gdtr.limit = 0x4f);
    m.until_halt();
    assert_eq!(m.stacked(0, 4), 0x70);
    assert_eq!(m.stacked(1, 4), USER + 5);
    assert_eq!(m.stacked(2, 4), u64::from(USER_CODE32));
    let flags = m.stacked(3, 4);
    assert_eq!(flags & (rflags::RF | rflags::IF), rflags::RF | rflags::IF);
    assert_eq!(m.stacked(4, 4), USER_STACK);
    assert_eq!(m.stacked(5, 4), u64::from(USER_DATA32));
    let state = m.vp.state();
    assert_eq!(state.cpl, 0);
    assert_eq!(state.gpr[4], STACK - 24);
    assert_eq!(state.system_flags & (rflags::IF | rflags::RF), 0);
}

#[test]
fn software_interrupts_need_the_gates_dpl() {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.gate(0x80, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.enter_user();
    m.asm(32, USER, |a| a.int(0x80));
    m.until_halt();
    // The IDT entry, not external, and RIP at the instruction.
    assert_eq!(m.stacked(0, 4), 0x80 << 3 | 2);
    assert_eq!(m.stacked(1, 4), USER);
}

#[test]
fn call_gates_copy_parameters_and_return_drops_them() {
    let mut m = Machine::protected();
    // Selector 0x48: a gate for level 3 with two parameters.
    let gate = (HANDLER & 0xffff) | u64::from(CODE32) << 16 | 2 << 32 | 0xec << 40;
    m.write64(GDT + 0x48, gate);
    m.enter_user();
    m.state(|s| s.system_flags &= !rflags::IOPL);
    m.gate(3, CODE32, 0xb000, 0xee, 0);
    m.asm(32, 0xb000, |a| a.hlt());
    m.asm(32, USER, |a| {
        a.push(0x1111)?;
        a.push(0x2222)?;
        a.db(&[0x9a, 0, 0, 0, 0, 0x4b, 0])?;
        a.int3()
    });
    m.asm(32, HANDLER, |a| {
        a.mov(eax, dword_ptr(esp + 8))?;
        a.mov(ebx, dword_ptr(esp + 12))?;
        a.mov(ecx, dword_ptr(esp + 16))?;
        a.retf_1(8)
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!((state.gpr[0], state.gpr[3]), (0x2222, 0x1111));
    assert_eq!(state.gpr[1], USER_STACK - 8);
    // INT3's frame: back at level 3 with the parameters dropped.
    assert_eq!(m.stacked(1, 4), u64::from(USER_CODE32));
    assert_eq!(m.stacked(3, 4), USER_STACK);
}

#[test]
fn outer_returns_drop_privileged_data_segments() {
    let mut m = Machine::protected();
    m.gate(3, CODE32, HANDLER, 0xee, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.asm(32, CODE, |a| {
        a.push(i32::from(USER_DATA32))?;
        a.push(USER_STACK as i32)?;
        a.pushfd()?;
        a.push(i32::from(USER_CODE32))?;
        a.push(USER as i32)?;
        a.mov(eax, i32::from(USER_DATA32))?;
        a.mov(fs, eax)?;
        a.iretd()
    });
    m.asm(32, USER, |a| {
        a.mov(ax, ds)?;
        a.mov(bx, fs)?;
        a.int3()
    });
    m.until_halt();
    assert_eq!(m.vp.state().gpr[0] & 0xffff, 0);
    assert_eq!(m.vp.state().gpr[3] & 0xffff, u64::from(USER_DATA32));
    assert!(m.vp.state().seg[seg::DS].unusable());
}

/// A second task at selector 0x48 whose TSS is at 0x3800.
fn second_task(m: &mut Machine, eip: u64) {
    m.write64(GDT + 0x48, 0x0000_8900_3800_0067);
    let tss = 0x3800;
    m.write32(tss + 0x20, eip as u32);
    m.write32(tss + 0x24, 2);
    m.write32(tss + 0x28, 0xaaaa);
    m.write32(tss + 0x38, 0x5800);
    for (i, selector) in [DATA32, CODE32, DATA32, DATA32, 0, 0]
        .into_iter()
        .enumerate()
    {
        m.write32(tss + 0x48 + 4 * i as u64, u32::from(selector));
    }
}

#[test]
fn tasks_switch_by_call_and_return_by_iret() {
    let mut m = Machine::protected();
    second_task(&mut m, HANDLER);
    m.asm(32, CODE, |a| {
        a.mov(ebx, 0x55)?;
        a.db(&[0x9a, 0, 0, 0, 0, 0x48, 0])?;
        a.hlt()
    });
    m.asm(32, HANDLER, |a| {
        a.mov(ecx, eax)?;
        a.pushfd()?;
        a.pop(edx)?;
        a.mov(dword_ptr(0x5000), edx)?;
        a.str(edx)?;
        a.mov(dword_ptr(0x5004), edx)?;
        a.iretd()
    });
    m.until_halt();
    // In the new task: NT, its own TR; its registers were kept apart.
    assert_ne!(m.read(0x5000, 4) & rflags::NT, 0);
    assert_eq!(m.read(0x5004, 4), 0x48);
    let state = m.vp.state();
    assert_eq!(state.gpr[3], 0x55);
    assert_eq!(state.gpr[1], 0);
    assert_eq!(state.seg[seg::TR].selector, TASK);
    assert_ne!(state.cr0 & cr::CR0_TS, 0);
    // Saved on the way back, available again, its EIP behind the IRET.
    assert_eq!(m.read(0x3800 + 0x2c, 4), 0xaaaa);
    assert_eq!(m.read(GDT + 0x48 + 5, 1), 0x89);
    assert_eq!(m.read(GDT + u64::from(TASK) + 5, 1), 0x8b);
    assert_eq!(m.read(0x3800, 2), u64::from(TASK));
}

#[test]
fn double_faults_can_go_through_a_task_gate() {
    let mut m = Machine::protected();
    second_task(&mut m, HANDLER);
    m.asm(32, HANDLER, |a| a.hlt());
    // Only #DF has a gate, so UD2 leads to #NP, and that to #DF... by way of
    // the contributory #NP of vector 11.
    m.gate(8, 0x48, 0, 0x85, 0);
    m.asm(32, CODE, |a| {
        a.xor(eax, eax)?;
        a.div(eax)
    });
    m.until_halt();
    // The error code 0 is on the new task's stack; the old EIP in its TSS.
    assert_eq!(m.vp.state().gpr[4], 0x57fc);
    assert_eq!(m.stacked(0, 4), 0);
    assert_eq!(m.read(TSS + 0x20, 4), CODE + 2);
    assert_eq!(m.vp.state().seg[seg::TR].selector, 0x48);
}

#[test]
fn no_idt_at_all_is_a_triple_fault() {
    let mut m = Machine::protected();
    m.state(|s| s.idtr.limit = 0);
    m.asm(32, CODE, |a| a.ud2());
    assert_eq!(m.run(), crate::fault::Exit::TripleFault);
    assert_eq!(m.vp.state().rip, CODE);
}

#[test]
fn selector_questions_are_answered_by_privilege() {
    let mut m = Machine::protected();
    m.gate(3, CODE32, HANDLER, 0xee, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.enter_user();
    m.asm(32, USER, |a| {
        a.mov(ecx, i32::from(USER_DATA32))?;
        a.lar(eax, ecx)?;
        a.lsl(ebx, ecx)?;
        a.verw(cx)?;
        a.setz(dl)?;
        a.mov(ecx, i32::from(DATA32))?;
        a.verr(cx)?;
        a.setz(dh)?;
        a.int3()
    });
    m.until_halt();
    let state = m.vp.state();
    assert_eq!(state.gpr[0], 0x00cf_f300);
    assert_eq!(state.gpr[3], 0xffff_ffff);
    assert_eq!(state.gpr[2] & 0xffff, 0x0001);
}

#[test]
fn port_access_follows_the_bitmap() {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.write16(TSS + 0x66, 0x68);
    m.state(|s| s.seg[seg::TR].limit = 0x80);
    // Port 0x10 allowed, 0x11 not.
    m.write(TSS + 0x68, &[0xff, 0xff, 0xfe, 0xff]);
    m.enter_user();
    m.asm(32, USER, |a| {
        a.in_(al, 0x10)?;
        a.in_(ax, 0x10)
    });
    assert_eq!(
        m.run(),
        crate::fault::Exit::IoRead {
            port: 0x10,
            size: 1
        }
    );
    m.vp.complete(crate::fault::Completion::Value(0x7f));
    m.until_halt();
    assert_eq!(m.vp.state().gpr[0] & 0xff, 0x7f);
    assert_eq!(m.stacked(0, 4), 0);
    assert_eq!(m.stacked(1, 4), USER + 2);
}

#[test]
fn repeated_output_commits_each_element() {
    let mut m = Machine::protected();
    m.write(0x5000, b"abc");
    m.asm(32, CODE, |a| {
        a.mov(esi, 0x5000)?;
        a.mov(ecx, 3)?;
        a.mov(edx, 0xe9)?;
        a.rep().outsb()?;
        a.hlt()
    });
    for (i, byte) in b"abc".iter().enumerate() {
        let exit = m.run();
        let value = u32::from(*byte);
        assert_eq!(
            exit,
            crate::fault::Exit::IoWrite {
                port: 0xe9,
                size: 1,
                value
            }
        );
        assert_eq!(m.vp.state().gpr[1], 3 - i as u64);
        m.vp.complete(crate::fault::Completion::Done);
    }
    m.until_halt();
    assert_eq!(m.vp.state().gpr[6], 0x5003);
    assert_eq!(m.vp.state().system_flags & rflags::RF, 0);
}

#[test]
fn a_new_tasks_bad_stack_is_the_new_tasks_fault() {
    let mut m = Machine::protected();
    second_task(&mut m, HANDLER);
    // SS of the new task: a null selector.
    m.write32(0x3800 + 0x50, 0);
    m.gate(10, CODE32, 0xb000, 0x8e, 0);
    m.asm(32, 0xb000, |a| a.hlt());
    m.asm(32, CODE, |a| a.db(&[0xea, 0, 0, 0, 0, 0x48, 0]));
    // No stack to push the frame on: #TS cannot be delivered either.
    assert_eq!(m.run(), crate::fault::Exit::TripleFault);
    assert_eq!(m.vp.state().rip, HANDLER);
    assert_eq!(m.vp.state().seg[seg::TR].selector, 0x48);
    // A jump leaves the old task available.
    assert_eq!(m.read(GDT + u64::from(TASK) + 5, 1), 0x89);
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut m = Machine::protected();
    m.gate(6, CODE32, HANDLER, 0x86, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.asm(32, CODE, |a| a.ud2());
    m.until_halt();
    assert_eq!(m.vp.state().gpr[4], STACK - 6);
    assert_eq!(m.stacked(0, 2), CODE);
    assert_eq!(m.stacked(1, 2), u64::from(CODE32));
}

#[test]
fn a_fault_on_the_new_stack_leaves_the_interrupted_program_as_it_was() {
    let mut m = Machine::protected();
    m.gate(6, CODE32, HANDLER, 0x8e, 0);
    m.gate(8, CODE32, HANDLER, 0x8e, 0);
    m.gate(12, CODE32, 0xb000, 0x8e, 0);
    m.enter_user();
    // SS0 names a read-only segment, so #TS; that has no gate: #GP; ... #DF,
    // whose own stack switch fails as well.
    m.write16(TSS + 8, CODE32);
    m.asm(32, USER, |a| a.ud2());
    assert_eq!(m.run(), crate::fault::Exit::TripleFault);
    let state = m.vp.state();
    assert_eq!((state.cpl, state.rip, state.gpr[4]), (3, USER, USER_STACK));
    assert_eq!(state.seg[seg::SS].selector, USER_DATA32);
}

#[test]
fn far_pointers_load_segments_and_stack_loads_shadow() {
    let mut m = Machine::protected();
    m.write32(0x5000, 0x1234);
    m.write16(0x5004, DATA32);
    m.asm(32, CODE, |a| {
        a.les(ebx, ptr(0x5000))?;
        a.push(i32::from(DATA32))?;
        a.pop(ss)?;
        a.nop()?;
        a.hlt()
    });
    for _ in 0..2 {
        assert!(m.vp.step().is_none());
    }
    assert!(m.vp.can_nmi());
    assert!(m.vp.step().is_none());
    assert!(!m.vp.can_nmi());
    assert!(m.vp.step().is_none());
    assert!(m.vp.can_nmi());
    let state = m.vp.state();
    assert_eq!(
        (state.gpr[3], state.seg[seg::ES].selector),
        (0x1234, DATA32)
    );
    assert_eq!(state.gpr[4], STACK);
}

#[test]
fn local_descriptor_tables() {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    // LDT at 0x4000 with one entry; selector 0x50 in the GDT.
    m.write64(GDT + 0x50, 0x0000_8200_4000_0007);
    m.write64(0x4000, 0x0040_9200_5000_00ff);
    m.asm(32, CODE, |a| {
        a.mov(eax, 0x50)?;
        a.lldt(ax)?;
        a.mov(eax, 0x04)?;
        a.mov(gs, eax)?;
        a.mov(eax, 0x0c)?;
        a.mov(fs, eax)
    });
    m.until_halt();
    let loaded = &m.vp.state().seg[seg::GS];
    assert_eq!((loaded.base, loaded.limit), (0x5000, 0xff));
    // The accessed bit was set; the second entry lies beyond the limit.
    assert_eq!(m.read(0x4005, 1), 0x93);
    assert_eq!(m.stacked(0, 4), 0x0c);
}

#[test]
fn repeated_input_checks_memory_before_the_port_is_read() {
    let mut m = Machine::protected();
    m.gate(13, CODE32, HANDLER, 0x8e, 0);
    m.asm(32, HANDLER, |a| a.hlt());
    m.state(|s| s.seg[seg::ES].limit = 0x5000);
    m.asm(32, CODE, |a| {
        a.mov(edi, 0x5000)?;
        a.mov(ecx, 2)?;
        a.mov(edx, 0x60)?;
        a.rep().insb()
    });
    assert_eq!(
        m.run(),
        crate::fault::Exit::IoRead {
            port: 0x60,
            size: 1
        }
    );
    m.vp.complete(crate::fault::Completion::Value(0x42));
    // The second element faults with the first one done.
    m.until_halt();
    assert_eq!(m.read(0x5000, 1), 0x42);
    assert_eq!((m.vp.state().gpr[1], m.vp.state().gpr[7]), (1, 0x5001));
    assert_eq!(m.stacked(1, 4), CODE + 15);
}
