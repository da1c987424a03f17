//! A checked processor: programs go through, and planted faults are found.

use crate::fault::{Completion, Exit};
use crate::space::{CodeMap, GuestSpace, HostPage};
use crate::state::{cr, reg, seg};
use crate::vp::{Config, ProcessorMode, Vp};
use iced_x86::code_asm::*;
use std::sync::Arc;

const PAGES: usize = 16;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x9000;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

struct Space(Box<[Page]>);

// SAFETY: the pages live in the box, which is never replaced.
unsafe impl GuestSpace for Space {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let pointer = self.0.get_mut(page as usize)?.0.as_mut_ptr();
        Some(HostPage {
            pointer,
            index: page as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}
}

/// A checked processor in 64-bit mode at CPL 0, linear addresses as physical
/// ones, with a loop that stores, reads the clock, and asks outside.
fn machine() -> Vp {
    machine_with(program)
}

type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

fn machine_with(program: Program) -> Vp {
    let mut space = Space((0..PAGES).map(|_| Page([0; 4096])).collect());
    let mut a = CodeAssembler::new(64).expect("64 bits");
    let code = program(&mut a)
        .and_then(|()| a.assemble(CODE))
        .expect("a program");
    space.0[1].0[..code.len()].copy_from_slice(&code);
    let config = Config {
        mode: ProcessorMode::Check,
        ..Config::default()
    };
    let code = Arc::new(CodeMap::new(PAGES, true));
    let mut vp = Vp::new(config, Box::new(space), code);
    vp.warm = 2;
    vp.update_state(|state| {
        state.cr0 = cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
        state.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT;
        state.efer = cr::EFER_LME | cr::EFER_LMA;
        state.seg[seg::CS].attributes = 0xa09b;
        state.seg[seg::CS].base = 0;
        state.rip = CODE;
        state.gpr[reg::RSP] = 0xc000;
    });
    vp
}

fn program(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    let mut function = a.create_label();
    a.mov(rbx, DATA)?;
    a.mov(ebp, 200)?;
    a.set_label(&mut again)?;
    a.add(dword_ptr(rbx), ebp)?;
    a.rdtsc()?;
    a.add(qword_ptr(rbx + 8), rax)?;
    a.call(function)?;
    a.in_(eax, 0x80)?;
    a.adc(dword_ptr(rbx + 0x1800), eax)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.movd(xmm1, ebp)?;
    a.paddq(xmm0, xmm1)?;
    a.imul_3(rsi, rax, 77)?;
    a.ret()
}

/// Runs to an exit that is no input.
fn run(vp: &mut Vp, mut each: impl FnMut(&mut Vp)) -> Exit {
    let mut answer = 0x1234_5678u64;
    loop {
        let exit = vp.run();
        let Exit::IoRead { .. } = exit else {
            return exit;
        };
        answer = answer.rotate_left(7) ^ 0x55;
        vp.complete(Completion::Value(answer & 0xffff_ffff));
        each(vp);
    }
}

#[test]
fn a_right_translation_goes_through() {
    let mut vp = machine();
    if !vp.translates() {
        println!("not checked: this host cannot run the translator");
        return;
    }
    let exit = run(&mut vp, |_| ());
    assert_eq!(exit, Exit::Halt, "{:?}", vp.difference());
    let (turns, excused) = vp.checked().expect("check mode");
    assert!(turns > 400, "{turns} turns");
    assert_eq!(excused, 0);
}

/// The wrong register, flags, and memory are each found where they happen.
#[test]
fn a_wrong_translation_is_found() {
    for (fault, seen) in [
        (Fault::Register, "rsi"),
        (Fault::Flags, "rflags"),
        (Fault::Vector, "xmm0"),
        (Fault::Memory, "memory"),
    ] {
        let mut vp = machine();
        if !vp.translates() {
            println!("not checked: this host cannot run the translator");
            return;
        }
        let mut rounds = 0;
        let exit = run(&mut vp, |vp| {
            rounds += 1;
            if rounds == 150 {
                vp.planted = Some(fault);
            }
        });
        assert_eq!(exit, Exit::TripleFault, "{fault:?}");
        let text = vp.difference().expect("a difference");
        assert!(
            text.lines()
                .any(|line| line.starts_with('*') && line.contains(seen)),
            "{fault:?}:\n{text}"
        );
        assert!(text.contains("the last blocks"), "{text}");
        assert!(rounds <= 151, "{rounds}");
    }
}

/// A device's stores are no difference.
#[test]
fn writes_of_devices_are_copied() {
    let mut vp = machine();
    if !vp.translates() {
        println!("not checked: this host cannot run the translator");
        return;
    }
    let code = vp.mmu.code.clone();
    let page = (DATA >> 12) as u32;
    let at = vp.mmu.host_page(DATA >> 12).expect("memory").pointer;
    let mut value = 1;
    let exit = run(&mut vp, |_| {
        value += 77;
        crate::host::store64(at, value);
        code.written(page);
    });
    assert_eq!(exit, Exit::Halt, "{:?}", vp.difference());
}

/// Every round has the same registers and differs in memory only, in words
/// that look like entries of page tables among others.
fn alike(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    a.mov(rbx, DATA)?;
    a.mov(dword_ptr(rbx), 0x5001)?;
    a.set_label(&mut again)?;
    a.add(dword_ptr(rbx), 0x20)?;
    a.add(dword_ptr(rbx + 8), 2)?;
    a.cmp(dword_ptr(rbx + 8), 600_000)?;
    a.jb(again)?;
    a.hlt()
}

/// A shadow that comes to the place too early stays as it is.
#[test]
fn the_way_there_is_the_shadows_own() {
    let mut vp = machine_with(alike);
    if !vp.translates() {
        println!("not checked: this host cannot run the translator");
        return;
    }
    let requests = vp.requests();
    let (done, over) = std::sync::mpsc::channel::<()>();
    let kicking = std::thread::spawn(move || {
        let pause = std::time::Duration::from_micros(100);
        while over.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            requests.kick();
        }
    });
    let exit = loop {
        match vp.run() {
            Exit::Kicked => vp.complete(Completion::Done),
            exit => break exit,
        }
    };
    drop(done);
    kicking.join().expect("the thread ends");
    assert_eq!(exit, Exit::Halt, "{:?}", vp.difference());
}

/// What a wrong emission would leave behind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Register,
    Flags,
    Vector,
    Memory,
}

impl Vp {
    /// Does the planted fault's work once translated code has been left.
    pub(crate) fn spoil(&mut self) {
        match self.planted.take() {
            None => {}
            Some(Fault::Register) => self.state.gpr[reg::RSI] ^= 1 << 40,
            Some(Fault::Flags) => {
                let carry = self.state.arith.carry();
                self.state.arith.set_carry(!carry);
            }
            Some(Fault::Vector) => {
                let value = self.state.fpu.xmm(0);
                self.state.fpu.set_xmm(0, value ^ 1);
            }
            Some(Fault::Memory) => {
                if let Some(page) = self.mmu.host_page(DATA >> 12) {
                    let old = crate::host::load8(page.pointer);
                    crate::host::store8(page.pointer, old ^ 8);
                }
            }
        }
    }
}
