//! Rules of control registers and MSRs.

use super::machine::*;
use crate::fault::{Completion, Exit};
use crate::state::{cr, reg};
use iced_x86::code_asm::*;

/// Runs one program that ends with HLT; whether it raised #GP.
fn faults(
    m: &mut Machine,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> bool {
    m.gate(13, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, program);
    m.state(|s| {
        s.rip = CODE;
        s.gpr[reg::RSP] = STACK;
    });
    m.until_halt();
    m.vp.state().rip == HANDLER + 1
}

fn cr_write(m: &mut Machine, number: u8, value: u64) -> bool {
    faults(m, |a| {
        a.mov(rax, value)?;
        match number {
            0 => a.mov(cr0, rax)?,
            3 => a.mov(cr3, rax)?,
            _ => a.mov(cr4, rax)?,
        }
        a.hlt()
    })
}

#[test]
fn control_register_rules() {
    let mut m = Machine::long();
    let (c0, c3, c4) = (m.vp.state().cr0, m.vp.state().cr3, m.vp.state().cr4);
    // Paging off in 64-bit code, NW without CD, upper bits, PG without PE.
    assert!(cr_write(&mut m, 0, c0 & !cr::CR0_PG));
    assert!(cr_write(&mut m, 0, c0 | cr::CR0_NW));
    assert!(cr_write(&mut m, 0, c0 | 1 << 32));
    assert!(cr_write(&mut m, 0, c0 & !cr::CR0_PE));
    assert!(!cr_write(&mut m, 0, c0 | cr::CR0_TS));
    // PAE off in long mode, unknown bits.
    assert!(cr_write(&mut m, 4, c4 & !cr::CR4_PAE));
    assert!(cr_write(&mut m, 4, c4 | 1 << 12));
    assert!(cr_write(&mut m, 3, 1 << 60));
    assert_eq!(m.vp.state().cr3, c3);
}

#[test]
fn process_context_identifiers() {
    let mut m = Machine::long();
    let (c0, c3, c4) = (m.vp.state().cr0, m.vp.state().cr3, m.vp.state().cr4);
    // Bit 63 of CR3 is reserved without PCIDE; PCIDE needs a PCID of 0.
    assert!(cr_write(&mut m, 3, c3 | 1 << 63));
    assert!(!cr_write(&mut m, 3, c3 | 0x18));
    assert!(cr_write(&mut m, 4, c4 | cr::CR4_PCIDE));
    assert!(!cr_write(&mut m, 3, c3));
    assert!(!cr_write(&mut m, 4, c4 | cr::CR4_PCIDE));
    assert!(!cr_write(&mut m, 3, c3 | 5 | 1 << 63));
    // The bit is not kept.
    assert_eq!(m.vp.state().cr3, c3 | 5);
    assert!(cr_write(&mut m, 0, c0 & !cr::CR0_PG));
}

#[test]
fn invpcid_checks_its_descriptor() {
    let mut m = Machine::long();
    let mut attempt = |kind: u64, pcid: u64, linear: u64| {
        m.write64(0x5000, pcid);
        m.write64(0x5008, linear);
        faults(&mut m, |a| {
            a.mov(rax, kind)?;
            a.invpcid(rax, ptr(0x5000u64))?;
            a.hlt()
        })
    };
    assert!(!attempt(0, 0, 0x1000));
    assert!(attempt(0, 0, 1 << 63));
    assert!(attempt(0, 1, 0x1000), "a PCID without CR4.PCIDE");
    assert!(attempt(2, 1 << 12, 0));
    assert!(!attempt(2, 0, 0));
    assert!(!attempt(3, 0, 0));
    assert!(attempt(4, 0, 0));
}

fn msr_write(m: &mut Machine, index: u32, value: u64) -> bool {
    faults(m, |a| {
        a.mov(ecx, index)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()?;
        a.hlt()
    })
}

#[test]
fn model_specific_registers_check_what_they_take() {
    let mut m = Machine::long();
    let efer = m.vp.state().efer;
    assert!(msr_write(&mut m, 0xc000_0080, efer & !cr::EFER_LME));
    assert!(msr_write(&mut m, 0xc000_0080, efer | 1 << 1));
    assert!(!msr_write(&mut m, 0xc000_0080, efer & !cr::EFER_SCE));
    assert_ne!(m.vp.state().efer & cr::EFER_LMA, 0);
    // Automatic IBRS is AMD's.
    let wanted = m.vp.state().efer | 1 << 21;
    let automatic = msr_write(&mut m, 0xc000_0080, wanted);
    assert_eq!(automatic, !m.vp.config.features.is_amd());
    assert!(msr_write(&mut m, 0xc000_0082, 0x8000_0000_0000));
    assert!(!msr_write(&mut m, 0xc000_0082, 0xffff_8000_0000_0000));
    assert!(msr_write(&mut m, 0x277, 0x02));
    assert!(msr_write(&mut m, 0xc000_0103, 1 << 32));
    assert!(msr_write(&mut m, 0x179, 1));
    assert!(!msr_write(&mut m, 0xc000_0101, 0x1234));
    assert_eq!(m.vp.state().seg[crate::state::seg::GS].base, 0x1234);
}

#[test]
fn tsc_writes_move_tsc_adjust() {
    let mut m = Machine::long();
    assert!(!msr_write(&mut m, 0x10, 1000));
    let adjust = m.vp.state().msr.tsc_adjust;
    assert_eq!(adjust, m.vp.state().tsc_offset);
    assert!(m.vp.read_msr(0x10).is_some_and(|now| now >= 1000));
    assert!(!msr_write(&mut m, 0x3b, 0));
    assert_eq!(m.vp.state().tsc_offset, 0);
}

#[test]
fn foreign_registers_are_asked_for_outside() {
    let mut m = Machine::long();
    m.gate(13, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.mov(ecx, 0x4000_0000)?;
        a.rdmsr()?;
        a.mov(rax, cr8)?;
        a.mov(eax, 7)?;
        a.mov(cr8, rax)?;
        a.inc(ecx)?;
        a.wrmsr()
    });
    assert_eq!(m.run(), Exit::ReadMsr { index: 0x4000_0000 });
    m.vp.complete(Completion::Value(0x5_0000_0006));
    assert_eq!(m.run(), Exit::ReadCr8);
    assert_eq!((m.vp.state().gpr[0], m.vp.state().gpr[2]), (6, 5));
    m.vp.complete(Completion::Value(3));
    assert_eq!(m.run(), Exit::WriteCr8 { value: 7 });
    m.vp.complete(Completion::Done);
    assert_eq!(
        m.run(),
        Exit::WriteMsr {
            index: 0x4000_0001,
            value: 0x5_0000_0007
        }
    );
    m.vp.complete(Completion::Fault {
        vector: 13,
        error: 0,
    });
    m.until_halt();
    assert_eq!(m.vp.state().rip, HANDLER + 1);
}
#[test]
fn invlpg_drops_all_of_a_large_page() {
    let mut m = Machine::long();
    // 2 MiB at 0x20_0000, first to 0 and then nowhere.
    m.write64(0x12008, 0x87);
    m.write32(0x5000, 0x1234);
    m.gate(14, CODE64, HANDLER, 0x8e, 0);
    m.asm(64, HANDLER, |a| a.hlt());
    m.asm(64, CODE, |a| {
        a.mov(eax, dword_ptr(0x20_5000u64))?;
        a.mov(ebx, dword_ptr(0x20_6000u64))?;
        a.mov(qword_ptr(0x12008u64), 0)?;
        a.invlpg(ptr(0x20_0000u64))?;
        a.mov(ebx, dword_ptr(0x20_5000u64))?;
        a.hlt()
    });
    m.until_halt();
    assert_eq!(m.vp.state().gpr[0], 0x1234);
    assert_eq!(
        (m.vp.state().rip, m.vp.state().cr2),
        (HANDLER + 1, 0x20_5000)
    );
}
