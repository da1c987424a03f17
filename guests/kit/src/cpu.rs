//! Registers, ports and instructions of the processor as functions.

use crate::insn;

/// CR0 bits.
pub mod cr0 {
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulate coprocessor.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Native x87 errors.
    pub const NE: u64 = 1 << 5;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    /// Time stamp disable.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC at any privilege level.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SIMD exceptions as #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// FSGSBASE instructions.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE and extended states.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
}

/// RFLAGS bits.
pub mod flags {
    /// Trap (single step).
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub const IF: u64 = 1 << 9;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, and SMAP override.
    pub const AC: u64 = 1 << 18;
}

/// Architectural model-specific registers.
pub mod msr {
    /// APIC base.
    pub const APIC_BASE: u32 = 0x1b;
    /// SYSENTER code segment.
    pub const SYSENTER_CS: u32 = 0x174;
    /// SYSENTER stack pointer.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// SYSENTER instruction pointer.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Page attribute table.
    pub const PAT: u32 = 0x277;
    /// TSC deadline of the local APIC timer.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// SYSCALL segments.
    pub const STAR: u32 = 0xc000_0081;
    /// SYSCALL target in 64-bit mode.
    pub const LSTAR: u32 = 0xc000_0082;
    /// SYSCALL target in compatibility mode.
    pub const CSTAR: u32 = 0xc000_0083;
    /// SYSCALL flag mask.
    pub const FMASK: u32 = 0xc000_0084;
    /// FS base.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// The GS base that SWAPGS exchanges.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// The value RDTSCP and RDPID return.
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// What CPUID returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Executes CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let found = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Cpuid {
        eax: found.eax,
        ebx: found.ebx,
        ecx: found.ecx,
        edx: found.edx,
    }
}

/// Is `bit` of CPUID.1:ECX set?
pub fn feature_1c(bit: u32) -> bool {
    cpuid(1, 0).ecx >> bit & 1 != 0
}

/// Is `bit` of CPUID.1:EDX set?
pub fn feature_1d(bit: u32) -> bool {
    cpuid(1, 0).edx >> bit & 1 != 0
}

/// Is `bit` of CPUID.(7,0):EBX set?
pub fn feature_7b(bit: u32) -> bool {
    cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx >> bit & 1 != 0
}

/// Is `bit` of CPUID.(7,0):ECX set?
pub fn feature_7c(bit: u32) -> bool {
    cpuid(0, 0).eax >= 7 && cpuid(7, 0).ecx >> bit & 1 != 0
}

/// Is `bit` of CPUID.8000_0001:EDX set?
pub fn feature_ext_d(bit: u32) -> bool {
    cpuid(0x8000_0000, 0).eax >= 0x8000_0001 && cpuid(0x8000_0001, 0).edx >> bit & 1 != 0
}

/// Does the processor say it is AMD's (or Hygon's)?
pub fn is_amd() -> bool {
    let id = cpuid(0, 0);
    matches!(id.ebx, 0x6874_7541 | 0x6f67_7948)
}

/// The number of physical address bits (CPUID 8000_0008).
pub fn physical_bits() -> u32 {
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 {
        cpuid(0x8000_0008, 0).eax & 0xff
    } else {
        36
    }
}

/// Reads a model-specific register; faults (#GP) when there is none.
pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    insn!("rdmsr", in("ecx") index, out("eax") low, out("edx") high);
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
pub fn wrmsr(index: u32, value: u64) {
    insn!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32);
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value: u64;
            insn!(concat!("mov {}, ", $name), out(reg) value);
            value
        }
        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) {
            insn!(concat!("mov ", $name, ", {}"), in(reg) value);
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_cr8, write_cr8, "cr8");
control_register!(read_dr0, write_dr0, "dr0");
control_register!(read_dr1, write_dr1, "dr1");
control_register!(read_dr2, write_dr2, "dr2");
control_register!(read_dr3, write_dr3, "dr3");
control_register!(read_dr6, write_dr6, "dr6");
control_register!(read_dr7, write_dr7, "dr7");

/// Reads RFLAGS.
pub fn read_flags() -> u64 {
    let value: u64;
    insn!("pushfq", "pop {}", out(reg) value);
    value
}

/// Reads the time stamp counter, after everything before it.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    insn!("lfence", "rdtsc", out("eax") low, out("edx") high);
    u64::from(high) << 32 | u64::from(low)
}

/// Enables interrupts.
pub fn sti() {
    insn!("sti");
}

/// Disables interrupts.
pub fn cli() {
    insn!("cli");
}

/// Enables interrupts, waits for one, disables them again.
pub fn sti_hlt_cli() {
    insn!("sti", "hlt", "cli");
}

/// Lets pending interrupts in for a moment: the shadow of STI ends before CLI.
pub fn interrupt_window() {
    insn!("sti", "nop", "nop", "cli");
}

/// Invalidates the translation of one page.
pub fn invlpg(address: u64) {
    insn!("invlpg [{}]", in(reg) address);
}

/// PAUSE.
pub fn pause() {
    core::hint::spin_loop();
}

/// Reads a byte from a port.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    insn!("in al, dx", in("dx") port, out("al") value);
    value
}

/// Writes a byte to a port.
pub fn outb(port: u16, value: u8) {
    insn!("out dx, al", in("dx") port, in("al") value);
}

/// Writes two bytes to a port.
pub fn outw(port: u16, value: u16) {
    insn!("out dx, ax", in("dx") port, in("ax") value);
}

/// Reads four bytes from a port.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    insn!("in eax, dx", in("dx") port, out("eax") value);
    value
}

/// Writes four bytes to a port.
pub fn outl(port: u16, value: u32) {
    insn!("out dx, eax", in("dx") port, in("eax") value);
}
