//! Why an instruction did not simply retire.

/// A handler could not finish its instruction; [`crate::Vp`] holds the reason.
///
/// Zero-sized, so that the `Result` of a handler is one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop;

/// What a handler returns.
pub(crate) type Step = Result<(), Stop>;

/// Exception vectors.
pub(crate) mod vector {
    /// #DE, divide error.
    pub(crate) const DE: u8 = 0;
    /// #DB, debug.
    pub(crate) const DB: u8 = 1;
    /// NMI.
    pub(crate) const NMI: u8 = 2;
    /// #BP, breakpoint.
    pub(crate) const BP: u8 = 3;
    /// #OF, overflow.
    pub(crate) const OF: u8 = 4;
    /// #BR, bound range.
    pub(crate) const BR: u8 = 5;
    /// #UD, invalid opcode.
    pub(crate) const UD: u8 = 6;
    /// #NM, device not available.
    pub(crate) const NM: u8 = 7;
    /// #DF, double fault.
    pub(crate) const DF: u8 = 8;
    /// #TS, invalid TSS.
    pub(crate) const TS: u8 = 10;
    /// #NP, segment not present.
    pub(crate) const NP: u8 = 11;
    /// #SS, stack fault.
    pub(crate) const SS: u8 = 12;
    /// #GP, general protection.
    pub(crate) const GP: u8 = 13;
    /// #PF, page fault.
    pub(crate) const PF: u8 = 14;
    /// #MF, x87 error.
    pub(crate) const MF: u8 = 16;
    /// #AC, alignment check.
    pub(crate) const AC: u8 = 17;
    /// #XM, SIMD floating-point error.
    pub(crate) const XM: u8 = 19;
}

/// Marks [`Fault::non_canonical`] in the otherwise unused address of a #GP.
const NON_CANONICAL: u64 = 1;

/// An exception to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The vector.
    pub(crate) vector: u8,
    /// The error code; ignored for vectors that push none.
    pub(crate) error: u32,
    /// CR2, for #PF.
    pub(crate) address: u64,
    /// DR6 bits to set, for #DB.
    pub(crate) dr6: u64,
    /// RIP stays behind the instruction (a trap: single step, data
    /// breakpoint, task-switch trap).
    pub(crate) trap: bool,
}

impl Fault {
    /// A fault with an error code (0 where there is none).
    pub(crate) const fn new(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error,
            address: 0,
            dr6: 0,
            trap: false,
        }
    }

    /// #GP(0) for a non-canonical address; becomes #SS(0) where the access
    /// turns out to be one of the stack.
    pub(crate) const fn non_canonical() -> Self {
        Self {
            vector: vector::GP,
            error: 0,
            address: NON_CANONICAL,
            dr6: 0,
            trap: false,
        }
    }

    /// Made by [`Fault::non_canonical`].
    pub(crate) fn is_non_canonical(&self) -> bool {
        self.vector == vector::GP && self.address == NON_CANONICAL
    }

    /// #PF.
    pub(crate) const fn page(address: u64, error: u32) -> Self {
        Self {
            vector: vector::PF,
            error,
            address,
            dr6: 0,
            trap: false,
        }
    }
}

/// What the processor needs from outside, as
/// the hypervisor's `Exit` but without the hypervisor's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// VMCALL or VMMCALL.
    Hypercall,
    /// CPUID; `default` is this processor's own answer.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
        /// EAX, EBX, ECX, EDX.
        default: [u32; 4],
    },
    /// RDMSR of a foreign MSR.
    ReadMsr {
        /// ECX.
        index: u32,
    },
    /// WRMSR of a foreign MSR.
    WriteMsr {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// MOV from CR8.
    ReadCr8,
    /// MOV to CR8.
    WriteCr8 {
        /// 0 to 15.
        value: u8,
    },
    /// IN, or one element of INS.
    IoRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
    /// OUT, or one element of OUTS.
    IoWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u32,
    },
    /// A load where there is no memory.
    MmioRead {
        /// First byte; within one page.
        gpa: u64,
        /// 1 to 8 bytes.
        size: u8,
    },
    /// A store where there is no writable memory.
    MmioWrite {
        /// First byte; within one page.
        gpa: u64,
        /// 1 to 8 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u64,
    },
    /// HLT retired.
    Halt,
    /// The requested interrupt or NMI window is open.
    InterruptWindow,
    /// [`crate::Requests::kick`], or long spinning.
    Kicked,
    /// Shutdown.
    TripleFault,
}

/// The answer to an instruction's [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The effect has been carried out; retire.
    Done,
    /// Leave RIP at the instruction.
    Retry,
    /// The value read.
    Value(u64),
    /// EAX, EBX, ECX, EDX.
    Cpuid([u32; 4]),
    /// The instruction faults.
    Fault {
        /// The vector.
        vector: u8,
        /// The error code.
        error: u32,
    },
}

/// The reason behind a [`Stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// None: the handler has not stopped.
    None,
    /// An exception; nothing of the instruction has been done (or, for a
    /// trap, all of it).
    Fault(Fault),
    /// An exit; nothing that may not be done twice has been done.
    Exit(Exit),
    /// The instruction has retired, and HLT waits.
    Halted,
    /// A repeated string instruction gives way between two iterations: RIP
    /// stays at the instruction.
    Yield,
}
