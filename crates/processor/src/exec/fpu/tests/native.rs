//! Runs one instruction on the host with all registers given: the
//! counterpart, which shares nothing with the stubs.

use iced_x86::code_asm::*;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::mem::offset_of;

/// All registers, before and after. RSP and RBP belong to the runner.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Context {
    /// The FXSAVE64 image.
    pub image: [u8; 512],
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// Upper halves of the YMM registers, where the host has them.
    pub upper: [u8; 256],
    host_mxcsr: u32,
}

impl Context {
    /// All clear.
    pub(super) fn new() -> Self {
        Self {
            image: [0; 512],
            gpr: [0; 16],
            flags: 2,
            upper: [0; 256],
            host_mxcsr: 0,
        }
    }
}

/// A page of code around the instruction under test.
pub(super) struct Runner {
    code: *mut u8,
    /// Address behind the instruction under test, after [`Runner::prepare`].
    pub after: u64,
}

const REGISTERS: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
const VECTORS: [AsmRegisterYmm; 16] = [
    ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14,
    ymm15,
];
const KEPT: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

impl Runner {
    /// A test may map memory writable and executable; the processor may not.
    pub(super) fn new() -> Self {
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let code = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC,
                MapFlags::PRIVATE,
            )
        };
        Self {
            code: code.expect("memory for code").cast(),
            after: 0,
        }
    }

    /// Puts the instruction in.
    pub(super) fn prepare(&mut self, instruction: &[u8]) {
        let head = Self::head();
        let tail = Self::tail();
        let bytes = [head.as_slice(), instruction, &tail].concat();
        assert!(bytes.len() < 4096);
        // SAFETY: within the page mapped above, which nobody runs now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code, bytes.len()) };
        self.after = self.code as u64 + (head.len() + instruction.len()) as u64;
    }

    /// Runs it.
    pub(super) fn run(&self, context: &mut Context) {
        // SAFETY: the page holds a function of this signature that keeps to
        // the ABI; the instruction under test touches only what its test
        // gives it.
        unsafe {
            let function: extern "sysv64" fn(*mut Context) = std::mem::transmute(self.code);
            function(context);
        }
    }

    fn head() -> Vec<u8> {
        let mut a = CodeAssembler::new(64).expect("assembler");
        (|| {
            for register in KEPT {
                a.push(register)?;
            }
            a.mov(rbp, rdi)?;
            a.stmxcsr(dword_ptr(rbp + offset_of!(Context, host_mxcsr)))?;
            a.fxrstor64(ptr(rbp + offset_of!(Context, image)))?;
            if is_x86_feature_detected!("avx") {
                for (number, register) in VECTORS.into_iter().enumerate() {
                    let at = offset_of!(Context, upper) + 16 * number;
                    a.vinsertf128(register, register, xmmword_ptr(rbp + at), 1)?;
                }
            }
            a.push(qword_ptr(rbp + offset_of!(Context, flags)))?;
            a.popfq()?;
            for (number, register) in REGISTERS.into_iter().enumerate() {
                if register != rsp && register != rbp {
                    a.mov(
                        register,
                        qword_ptr(rbp + offset_of!(Context, gpr) + 8 * number),
                    )?;
                }
            }
            a.assemble(0)
        })()
        .expect("assembles")
    }

    fn tail() -> Vec<u8> {
        let mut a = CodeAssembler::new(64).expect("assembler");
        (|| {
            for (number, register) in REGISTERS.into_iter().enumerate() {
                if register != rsp && register != rbp {
                    a.mov(
                        qword_ptr(rbp + offset_of!(Context, gpr) + 8 * number),
                        register,
                    )?;
                }
            }
            a.pushfq()?;
            a.pop(qword_ptr(rbp + offset_of!(Context, flags)))?;
            a.fxsave64(ptr(rbp + offset_of!(Context, image)))?;
            if is_x86_feature_detected!("avx") {
                for (number, register) in VECTORS.into_iter().enumerate() {
                    let at = offset_of!(Context, upper) + 16 * number;
                    a.vextractf128(xmmword_ptr(rbp + at), register, 1)?;
                }
                a.vzeroupper()?;
            }
            a.fninit()?;
            a.ldmxcsr(dword_ptr(rbp + offset_of!(Context, host_mxcsr)))?;
            for register in KEPT.into_iter().rev() {
                a.pop(register)?;
            }
            a.ret()?;
            a.assemble(0)
        })()
        .expect("assembles")
    }
}
