//! What the hypervisor asks of a processor: the thing that executes one
//! virtual processor's instructions.
//!
//! The hypervisor knows no processor by name. The software x86-64 processor,
//! KVM or a bare-metal VMX/SVM backend each implement [`Processor`]; one
//! object stands for one virtual processor and is used from one thread at a
//! time.

use tlfs::{HvRegisterName, HvRegisterValue};

/// Why [`Processor::run`] returned.
///
/// Exits that belong to an instruction (all but [`Exit::Halt`],
/// [`Exit::InterruptWindow`], [`Exit::Kicked`] and [`Exit::TripleFault`])
/// leave the virtual processor *before* the instruction has retired. The
/// hypervisor answers with [`Processor::complete`], and only then runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// VMCALL or VMMCALL. RIP is at the instruction.
    Hypercall,
    /// CPUID. `default` is what the processor itself can do for that leaf;
    /// the hypervisor replaces what is its own.
    Cpuid {
        /// EAX at the instruction.
        leaf: u32,
        /// ECX at the instruction.
        subleaf: u32,
        /// EAX, EBX, ECX, EDX of the processor.
        default: [u32; 4],
    },
    /// RDMSR of an MSR that the processor does not own (see the crate's
    /// documentation for the split).
    ReadMsr {
        /// The MSR number (ECX).
        index: u32,
    },
    /// WRMSR of an MSR that the processor does not own.
    WriteMsr {
        /// The MSR number (ECX).
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// MOV from CR8.
    ReadCr8,
    /// MOV to CR8; `value` is already checked to be at most 15.
    WriteCr8 {
        /// The new task priority class.
        value: u8,
    },
    /// IN or one element of INS. Privilege (IOPL, TSS bitmap) was checked.
    IoRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
    /// OUT or one element of OUTS. Privilege was checked.
    IoWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u32,
    },
    /// A load from a guest-physical address that has no memory behind it.
    MmioRead {
        /// Guest-physical address of the first byte; never crosses a page.
        gpa: u64,
        /// 1 to 8 bytes. Wider loads come as several exits.
        size: u8,
    },
    /// A store to a guest-physical address that has no memory behind it, or
    /// none that may be written.
    MmioWrite {
        /// Guest-physical address of the first byte; never crosses a page.
        gpa: u64,
        /// 1 to 8 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u64,
    },
    /// HLT retired (RIP is behind it).
    Halt,
    /// The window asked for with [`Processor::request_interrupt_window`] or
    /// [`Processor::request_nmi_window`] has opened.
    InterruptWindow,
    /// [`crate::Platform::kick`] reached the processor, or it gave way after
    /// long spinning. Nothing is wrong; look for pending work and run again.
    Kicked,
    /// A triple fault: the processor is in shutdown.
    TripleFault,
}

/// The hypervisor's answer to an instruction's [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The instruction is done (WRMSR, OUT, MMIO store, CR8 store,
    /// hypercall): RIP moves behind it. For a hypercall the hypervisor has
    /// written the result registers itself.
    Done,
    /// Leave RIP at the instruction: it will be executed anew (a rep hypercall
    /// to be continued, TLFS 3.7 "Hypercall Continuation").
    Retry,
    /// The value read (RDMSR, IN, MMIO load, CR8 load).
    Value(u64),
    /// EAX, EBX, ECX, EDX of CPUID.
    Cpuid([u32; 4]),
    /// The instruction faults instead.
    Fault(Exception),
}

/// An exception to be raised in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// The error code, for vectors that push one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Self = Self {
        vector: 6,
        error_code: None,
    };
    /// #GP(0), general protection.
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error_code: Some(0),
    };
}

/// The mode in which a virtual processor executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// CR0.PE is clear.
    Real,
    /// Protected mode with RFLAGS.VM set.
    Virtual8086,
    /// Protected mode outside long mode, 16-bit or 32-bit code.
    Protected,
    /// Long mode, code segment with L clear.
    Compatibility,
    /// Long mode, code segment with L set.
    Long64,
}

/// What may be delivered to a virtual processor right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruptibility {
    /// RFLAGS.IF is set, there is no STI or MOV-SS shadow, and no event
    /// waits to be injected.
    pub interrupt: bool,
    /// NMIs are not blocked (by a running NMI handler or a shadow), and no
    /// event waits to be injected.
    pub nmi: bool,
}

/// An event that the processor delivers before the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// An external interrupt that the APIC has acknowledged.
    Interrupt(u8),
    /// A non-maskable interrupt; blocks further ones until IRET.
    Nmi,
    /// An exception, delivered as if the next instruction had raised it.
    Exception(Exception),
}

/// What a TLB flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbFlush {
    /// Everything, global pages too.
    All,
    /// All but global pages, of every address space.
    NonGlobal,
    /// One page of every address space: the guest-virtual address of any byte in it.
    Page(u64),
}

/// The way a guest-virtual address is accessed, for [`Processor::translate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslateAccess {
    /// The access writes.
    pub write: bool,
    /// The access fetches an instruction.
    pub execute: bool,
    /// Check as CPL 3 (otherwise as a supervisor).
    pub user: bool,
    /// Do not check rights at all (TLFS "privilege exempt").
    pub exempt: bool,
    /// Set accessed and dirty bits on the way.
    pub set_page_table_bits: bool,
}

/// Why a guest-virtual address does not translate (TLFS
/// HV_TRANSLATE_GVA_RESULT_CODE, values 1 to 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslateError {
    /// No present page-table entry.
    NotPresent,
    /// The rights forbid the access.
    PrivilegeViolation,
    /// Reserved bits are set in a page-table entry.
    InvalidPageTableFlags,
    /// A page table or the page itself has no memory behind it.
    GpaUnmapped,
}

/// One virtual processor's executing half.
pub trait Processor {
    /// Executes guest instructions until an [`Exit`]. Called only when the
    /// last exit has been completed. Returns [`Exit::Kicked`] soon after a
    /// kick, even one that came before the call.
    fn run(&mut self) -> Exit;

    /// Answers the instruction exit that `run` last returned. Without such an
    /// exit outstanding it does nothing.
    fn complete(&mut self, completion: Completion);

    /// Delivers an event before the next instruction. The caller has checked
    /// [`Processor::interruptibility`] for interrupts and NMIs.
    fn inject(&mut self, event: Injection);

    /// What may be delivered now.
    fn interruptibility(&self) -> Interruptibility;

    /// Makes `run` return [`Exit::InterruptWindow`] as soon as an external
    /// interrupt can be delivered, for as long as it is requested.
    fn request_interrupt_window(&mut self, requested: bool);

    /// The same for an NMI.
    fn request_nmi_window(&mut self, requested: bool);

    /// A general register: 0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI,
    /// 7 RDI, 8 to 15 R8 to R15. Other indices read 0.
    fn gpr(&self, index: usize) -> u64;

    /// Writes a general register, all 64 bits.
    fn set_gpr(&mut self, index: usize, value: u64);

    /// XMM register 0 to 15.
    fn xmm(&self, index: usize) -> u128;

    /// Writes XMM register 0 to 15.
    fn set_xmm(&mut self, index: usize, value: u128);

    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// Current mode.
    fn mode(&self) -> CpuMode;

    /// An architectural register by its TLFS name; `None` for a name that is
    /// not the processor's.
    fn register(&self, name: HvRegisterName) -> Option<HvRegisterValue>;

    /// Sets an architectural register; `Err` when the name is not the
    /// processor's or the value is invalid. Flushes what depends on it.
    fn set_register(
        &mut self,
        name: HvRegisterName,
        value: HvRegisterValue,
    ) -> Result<(), InvalidRegister>;

    /// Puts the processor in its state after INIT (SDM 3A table 9-1): it then
    /// waits, not run, for [`Processor::startup`]. `power_on` also resets
    /// what INIT keeps (caches, x87/SSE state, MSRs).
    fn reset(&mut self, power_on: bool);

    /// Start-up IPI: CS:IP becomes `vector << 12`:0.
    fn startup(&mut self, vector: u8);

    /// Drops cached guest-virtual translations.
    fn flush_tlb(&mut self, flush: TlbFlush);

    /// The guest-physical address space changed: drop everything cached from
    /// it, and read the new one.
    fn gpa_space_changed(&mut self);

    /// Translates a guest-virtual address (of the current address space) to
    /// its guest-physical address.
    fn translate(&mut self, gva: u64, access: TranslateAccess) -> Result<u64, TranslateError>;

    /// The guest's time-stamp counter now.
    fn tsc(&self) -> u64;

    /// Up to 16 bytes of the instruction that caused the last exit, as far as
    /// known, for intercept messages.
    fn instruction_bytes(&self) -> InstructionBytes;
}

/// The bytes of an intercepted instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionBytes {
    /// The bytes; those from `length` on are 0.
    pub bytes: [u8; 16],
    /// How many are valid, 0 to 15.
    pub length: u8,
}

/// [`Processor::set_register`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRegister {
    /// Not a register of the processor.
    UnknownName,
    /// The value cannot be loaded.
    InvalidValue,
}
