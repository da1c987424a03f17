//! Interrupts and exceptions: handlers, and attempts that survive a fault.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::segments::{self, selector, stack};
use crate::{cpu, insn, memory, println};

core::arch::global_asm!(include_str!("trap.s"));

unsafe extern "C" {
    static kit_vectors: u8;
    static kit_recover: u8;
    fn kit_attempt(code: extern "C" fn(*mut u8), data: *mut u8, recovery: *mut Recovery) -> u64;
}

/// Exception vectors.
pub mod vector {
    #![allow(missing_docs, reason = "the names are the manuals' mnemonics")]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
    /// The gate through which user code returns.
    pub const USER_RETURN: u8 = 0x81;
}

/// The registers that an interrupt found.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the registers of the same name")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What ended an attempt.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code, 0 where the vector has none.
    pub error: u64,
    /// The saved instruction pointer.
    pub rip: u64,
    /// The saved code segment.
    pub cs: u64,
    /// The saved flags.
    pub rflags: u64,
    /// The saved stack pointer.
    pub rsp: u64,
    /// The saved stack segment.
    pub ss: u64,
    /// CR2 when the handler began.
    pub cr2: u64,
    /// DR6 when the handler began.
    pub dr6: u64,
    /// RAX when it happened.
    pub rax: u64,
    /// Where the handler's own frame lay: tells which stack was used.
    pub frame: u64,
}

/// Where to go on when an attempt faults. The assembly code knows the first four fields.
#[repr(C)]
pub struct Recovery {
    rsp: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    fault: MaybeUninit<Fault>,
}

/// An interrupt handler.
pub type Handler = fn(&mut Frame);

static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written by the boot processor; by tests only while no other processor uses the vector.
unsafe impl Sync for Table {}
static IDT: Table = Table(UnsafeCell::new([[0; 2]; 256]));

/// Fills and loads the interrupt descriptor table.
pub fn init() {
    for number in 0..=255u8 {
        set_default_gate(number);
    }
    load();
}

/// Loads the kit's interrupt descriptor table.
pub fn load() {
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&4095u16.to_le_bytes());
    pointer[2..].copy_from_slice(&idt().to_le_bytes());
    insn!("lidt [{}]", in(reg) pointer.as_ptr());
}

/// The address of the interrupt descriptor table.
pub fn idt() -> u64 {
    IDT.0.get() as u64
}

fn set_default_gate(number: u8) {
    let (ist, privilege) = match number {
        vector::NMI => (stack::NMI, 0),
        vector::DF => (stack::DOUBLE_FAULT, 0),
        vector::BP | vector::OF => (stack::EXCEPTION, 3),
        0..32 => (stack::EXCEPTION, 0),
        vector::USER_RETURN => (stack::INTERRUPT, 3),
        _ => (stack::INTERRUPT, 0),
    };
    set_gate(number, selector::CODE64, entry(number), ist, privilege, 0xe);
}

/// The address of the kit's entry code for a vector.
pub fn entry(number: u8) -> u64 {
    (&raw const kit_vectors) as u64 + u64::from(number) * 16
}

/// Writes one gate: `kind` 0xE is an interrupt gate, 0xF a trap gate; always present.
pub fn set_gate(number: u8, code: u16, target: u64, ist: u8, privilege: u8, kind: u8) {
    let access = 0x80 | u64::from(privilege) << 5 | u64::from(kind);
    let low = (target & 0xffff)
        | u64::from(code) << 16
        | u64::from(ist) << 32
        | access << 40
        | (target >> 16 & 0xffff) << 48;
    let at = idt() + u64::from(number) * 16;
    memory::write64(at, low);
    memory::write64(at + 8, target >> 32);
}

/// Restores the kit's gate of a vector.
pub fn reset_gate(number: u8) {
    set_default_gate(number);
}

/// Calls `handler` for every interrupt of this vector, on all processors.
pub fn set_handler(number: u8, handler: Handler) {
    HANDLERS[usize::from(number)].store(handler as *mut (), Ordering::SeqCst);
}

/// Removes a handler.
pub fn clear_handler(number: u8) {
    HANDLERS[usize::from(number)].store(core::ptr::null_mut(), Ordering::SeqCst);
}

/// Removes every handler.
pub fn clear_handlers() {
    for handler in &HANDLERS {
        handler.store(core::ptr::null_mut(), Ordering::SeqCst);
    }
}

/// Runs `code`; an interrupt or exception without a handler ends it and is returned.
///
/// The frames between the fault and here are abandoned, so `code` must own nothing that needs
/// dropping when it faults.
pub fn attempt<R, F: FnOnce() -> R>(code: F) -> Result<R, Fault> {
    struct Call<R, F> {
        code: MaybeUninit<F>,
        result: MaybeUninit<R>,
    }
    extern "C" fn enter<R, F: FnOnce() -> R>(data: *mut u8) {
        // SAFETY: `data` is the `Call` below, whose code was initialised and is read once.
        unsafe {
            let call = &mut *data.cast::<Call<R, F>>();
            let code = call.code.assume_init_read();
            call.result.write(code());
        }
    }
    let mut call = Call {
        code: MaybeUninit::new(code),
        result: MaybeUninit::<R>::uninit(),
    };
    let mut recovery = Recovery {
        rsp: 0,
        cr0: 0,
        cr3: 0,
        cr4: 0,
        fault: MaybeUninit::uninit(),
    };
    let own = segments::current();
    // SAFETY: the recovery point is in place exactly while its stack frame is; `result` and
    // `fault` are read only after the branch that initialised them.
    unsafe {
        let outer = (*own).recovery;
        (&raw mut (*own).recovery).write_volatile(&raw mut recovery);
        let faulted = kit_attempt(enter::<R, F>, (&raw mut call).cast(), &raw mut recovery);
        (&raw mut (*own).recovery).write_volatile(outer);
        if faulted == 0 {
            Ok(call.result.assume_init_read())
        } else {
            Err((&raw const recovery.fault).read_volatile().assume_init())
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn kit_trap(frame: &mut Frame) {
    let number = frame.vector as u8;
    let handler = HANDLERS[usize::from(number)].load(Ordering::SeqCst);
    if !handler.is_null() {
        // SAFETY: only `set_handler` stores here, and it stores a `Handler`.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        return handler(frame);
    }
    let fault = Fault {
        vector: number,
        error: frame.error,
        rip: frame.rip,
        cs: frame.cs,
        rflags: frame.rflags,
        rsp: frame.rsp,
        ss: frame.ss,
        cr2: cpu::read_cr2(),
        dr6: cpu::read_dr6(),
        rax: frame.rax,
        frame: &raw const *frame as u64,
    };
    // SAFETY: the processor's own data; the recovery, when there is one, is in a live frame.
    unsafe {
        let recovery = (*segments::current()).recovery;
        if recovery.is_null() {
            unexpected(&fault);
        }
        (*recovery).fault.write(fault);
        frame.rip = (&raw const kit_recover) as u64;
        frame.cs = u64::from(selector::CODE64);
        frame.ss = u64::from(selector::DATA);
        frame.rflags = 2;
        frame.rsp = (*recovery).rsp;
        frame.rdi = recovery as u64;
    }
}

fn unexpected(fault: &Fault) -> ! {
    println!("FAIL: unexpected interrupt {fault:x?}");
    crate::report::exit(1)
}
