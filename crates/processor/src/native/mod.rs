//! Vector and x87 instructions executed as themselves.
//!
//! Guest and host speak the same instruction set, so an `ADDPS` of the guest
//! is best computed by an `ADDPS` of the host. For each instruction form
//! ([`Form`]: the operation and its immediate, not its registers) a small stub
//! is emitted once per process: it loads the operands from where its
//! arguments point, executes the instruction on fixed host registers, and
//! stores the result back. Because registers and addresses are no part of a
//! form, the number of stubs is bounded (some fifty thousand, under eight
//! megabytes) and guests cannot make the code area grow beyond it.
//!
//! What may be emitted at all is an allow list by CPUID feature, see
//! [`Form::new`]: no branch, no stack, no privileged instruction, no segment,
//! and memory only at the staging area that a stub is given.

mod area;
mod emit;
mod vex;

#[cfg(test)]
pub(crate) use area::usage;
pub(crate) use emit::{Form, Place};
pub(crate) use vex::{OPERANDS, VexForm, vex_feature};

use std::arch::asm;

/// Staging memory that a stub is given, one per virtual processor.
///
/// Stubs address the fields at fixed offsets from one register.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Frame {
    /// An FXSAVE64 image: x87 stubs load it before and save it after.
    pub image: [u8; 512],
    /// A memory operand, or a result that goes to memory.
    pub memory: [u8; 64],
    /// A register's value before a stub that may turn out to fault.
    pub spare: [u8; 16],
    /// The implicit XMM0 operand.
    pub xmm0: u128,
    /// Implicit RAX.
    pub rax: u64,
    /// Implicit RDX.
    pub rdx: u64,
    /// Implicit RCX.
    pub rcx: u64,
    /// MXCSR for the instruction, and as it leaves it.
    pub mxcsr: u32,
    /// The host's MXCSR while a stub runs.
    pub host_mxcsr: u32,
    /// Status flags as [`crate::flags::ArithFlags`] keeps them.
    pub flags: u16,
    /// The host's x87 control word while a stub runs.
    pub host_control: u16,
}

impl Frame {
    fn new() -> Self {
        Self {
            image: [0; 512],
            memory: [0; 64],
            spare: [0; 16],
            xmm0: 0,
            rax: 0,
            rdx: 0,
            rcx: 0,
            mxcsr: 0x1f80,
            host_mxcsr: 0x1f80,
            flags: 0,
            host_control: 0x37f,
        }
    }
}

/// Access to the stubs for one virtual processor.
#[derive(Debug)]
pub(crate) struct Native {
    /// Start of the executable mapping; null when the host gives none.
    base: *const u8,
    /// Staging memory.
    pub frame: Box<Frame>,
}

/// A stub's place in the code area, from [`Form::stub`].
pub(crate) type Stub = u32;

type StubFn = extern "sysv64" fn(*mut u8, *const u8, *mut Frame);
type VexFn = extern "sysv64" fn(*const *mut u8, *mut Frame);

impl Native {
    /// Maps the process's code area if no one has yet. Everything that needs
    /// system calls happens here, so a sandbox may be closed afterwards.
    pub(crate) fn new() -> Self {
        Self {
            base: area::base(),
            frame: Box::new(Frame::new()),
        }
    }

    /// Runs a stub. `first` and `second` must point to what the stub's
    /// operands take ([`Place::bytes`]; x87: the image, and the memory
    /// operand); `stub` must come from [`Form::stub`]. Module rule, as in
    /// [`crate::host`]: the callers in `exec::fpu` keep it.
    #[inline]
    pub(crate) fn run(&mut self, stub: Stub, first: *mut u8, second: *const u8) {
        let at = self.base.wrapping_add(stub as usize);
        // SAFETY: a stub number exists only if the area is mapped (`base` is
        // not null) and a whole stub with this signature was written there
        // before its number was given out. Stubs are never changed or freed.
        let code = unsafe { std::mem::transmute::<*const u8, StubFn>(at) };
        code(first, second, &raw mut *self.frame);
    }

    /// Runs a stub from [`VexForm::stub`]. Each operand's pointer must be valid
    /// for what the form has there: 8 bytes of a general register, a vector
    /// register of an [`crate::Fpu`], or memory of the operand's size. Module
    /// rule: `exec::vex` keeps it.
    #[inline]
    pub(crate) fn run_vex(&mut self, stub: Stub, operands: &[*mut u8; OPERANDS]) {
        let at = self.base.wrapping_add(stub as usize);
        // SAFETY: as in `run`, with the other signature.
        let code = unsafe { std::mem::transmute::<*const u8, VexFn>(at) };
        code(operands.as_ptr(), &raw mut *self.frame);
    }

    /// Runs an x87 stub on the image in the frame, its memory operand there too.
    pub(crate) fn run_x87(&mut self, stub: Stub) {
        let image = (&raw mut self.frame.image).cast();
        let memory = (&raw const self.frame.memory).cast();
        self.run(stub, image, memory);
    }
}

/// Loads 16 bytes of guest memory with one instruction.
#[inline(always)]
pub(crate) fn load128(at: *const u8) -> u128 {
    let mut value = 0u128;
    // SAFETY: `at` lies in a guest page and so do the 15 bytes behind it
    // (the rule of `host`); assembly, since other threads may write there.
    unsafe {
        asm!("movups {0}, [{1}]", "movups [{2}], {0}", out(xmm_reg) _, in(reg) at,
            in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    value
}

/// Stores 16 bytes to guest memory with one instruction.
#[inline(always)]
pub(crate) fn store128(at: *mut u8, value: u128) {
    // SAFETY: as in `load128`, with the page writable.
    unsafe {
        asm!("movups {0}, [{2}]", "movups [{1}], {0}", out(xmm_reg) _, in(reg) at,
            in(reg) &raw const value, options(nostack, preserves_flags));
    }
}
