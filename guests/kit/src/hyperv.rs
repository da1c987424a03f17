//! The Hyper-V interface as a guest sees it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, insn, memory, report};

/// Synthetic model-specific registers (TLFS appendix C).
pub mod msr {
    #![allow(missing_docs, reason = "the names are the TLFS's, without HV_X64_MSR_")]
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    pub const HYPERCALL: u32 = 0x4000_0001;
    pub const VP_INDEX: u32 = 0x4000_0002;
    pub const RESET: u32 = 0x4000_0003;
    pub const VP_RUNTIME: u32 = 0x4000_0010;
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub const EOI: u32 = 0x4000_0070;
    pub const ICR: u32 = 0x4000_0071;
    pub const TPR: u32 = 0x4000_0072;
    pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    pub const SCONTROL: u32 = 0x4000_0080;
    pub const SVERSION: u32 = 0x4000_0081;
    pub const SIEFP: u32 = 0x4000_0082;
    pub const SIMP: u32 = 0x4000_0083;
    pub const EOM: u32 = 0x4000_0084;
    pub const SINT0: u32 = 0x4000_0090;
    pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
    pub const STIMER0_COUNT: u32 = 0x4000_00b1;
    pub const GUEST_IDLE: u32 = 0x4000_00f0;
    pub const CRASH_P0: u32 = 0x4000_0100;
    pub const CRASH_CTL: u32 = 0x4000_0105;
    pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
}

/// Hypercall status codes.
pub mod status {
    #![allow(missing_docs, reason = "the names are the TLFS's, without HV_STATUS_")]
    pub const SUCCESS: u16 = 0;
    pub const INVALID_HYPERCALL_CODE: u16 = 2;
    pub const INVALID_HYPERCALL_INPUT: u16 = 3;
    pub const INVALID_ALIGNMENT: u16 = 4;
    pub const INVALID_PARAMETER: u16 = 5;
    pub const ACCESS_DENIED: u16 = 6;
    pub const INVALID_PARTITION_ID: u16 = 0xd;
    pub const INVALID_VP_INDEX: u16 = 0xe;
    pub const INVALID_PORT_ID: u16 = 0x11;
    pub const INVALID_CONNECTION_ID: u16 = 0x12;
    pub const INSUFFICIENT_BUFFERS: u16 = 0x13;
    pub const INVALID_SYNIC_STATE: u16 = 0x18;
}

/// Hypercall codes.
pub mod call {
    #![allow(missing_docs, reason = "the names are the TLFS's, without HvCall")]
    pub const FLUSH_SPACE: u16 = 2;
    pub const FLUSH_LIST: u16 = 3;
    pub const LONG_SPIN_WAIT: u16 = 8;
    pub const SEND_IPI: u16 = 0xb;
    pub const FLUSH_SPACE_EX: u16 = 0x13;
    pub const FLUSH_LIST_EX: u16 = 0x14;
    pub const SEND_IPI_EX: u16 = 0x15;
    pub const GET_PARTITION_ID: u16 = 0x46;
    pub const GET_VP_REGISTERS: u16 = 0x50;
    pub const SET_VP_REGISTERS: u16 = 0x51;
    pub const POST_MESSAGE: u16 = 0x5c;
    pub const SIGNAL_EVENT: u16 = 0x5d;
    pub const START_VP: u16 = 0x99;
    pub const VP_INDEX_FROM_APIC_ID: u16 = 0x9a;
    pub const EXT_QUERY_CAPABILITIES: u16 = 0x8001;
}

/// The bit of a control word that selects register parameters.
pub const FAST: u64 = 1 << 16;
/// A partition id that means the caller's own.
pub const SELF: u64 = u64::MAX;
/// The identity that the test guests report: an open-source system of an unlisted type.
pub const OS_ID: u64 = 0xff00_0000_0001_0000;

/// Is this a partition of Microsoft's hypervisor interface?
pub fn present() -> bool {
    if !cpu::feature_1c(31) {
        return false;
    }
    let leaf = cpu::cpuid(0x4000_0000, 0);
    leaf.eax >= 0x4000_0005
        && (leaf.ebx, leaf.ecx, leaf.edx) == (0x7263_694d, 0x666f_736f, 0x7648_2074)
}

/// Reports a skip and returns false where there is no Hyper-V interface.
pub fn required(test: &str) -> bool {
    if !present() {
        report::skip(test, "no Microsoft Hv");
    }
    present()
}

static PAGE: AtomicU64 = AtomicU64::new(0);

/// Reports the guest's identity and enables the hypercall page; returns the page's address.
pub fn enable_hypercalls() -> u64 {
    if PAGE.load(Ordering::Relaxed) == 0 {
        PAGE.store(memory::page(), Ordering::Relaxed);
    }
    let page = PAGE.load(Ordering::Relaxed);
    cpu::wrmsr(msr::GUEST_OS_ID, OS_ID);
    cpu::wrmsr(msr::HYPERCALL, page | 1);
    page
}

/// Calls with a control word and two register arguments (addresses or fast input).
pub fn raw(control: u64, input: u64, output: u64) -> u64 {
    let result: u64;
    let page = PAGE.load(Ordering::Relaxed);
    insn!(
        "call {page}",
        page = in(reg) page,
        inout("rcx") control => _,
        inout("rdx") input => _,
        inout("r8") output => _,
        out("rax") result,
        out("r9") _, out("r10") _, out("r11") _,
    );
    result
}

/// The status of a call's result.
pub fn status_of(result: u64) -> u16 {
    result as u16
}

/// The completed repetitions of a call's result.
pub fn reps_of(result: u64) -> u64 {
    result >> 32 & 0xfff
}

/// A simple call with its input in memory.
pub fn simple(code: u16, input: &[u64]) -> u16 {
    status_of(raw(u64::from(code), place(input), 0))
}

/// A simple call with its input in registers.
pub fn fast(code: u16, first: u64, second: u64) -> u16 {
    status_of(raw(u64::from(code) | FAST, first, second))
}

/// A call with up to 14 words of input in registers, the further ones in XMM0 to XMM5.
pub fn xmm_fast(control: u64, input: &[u64]) -> u64 {
    let mut words = [0u64; 14];
    words[..input.len()].copy_from_slice(input);
    let page = PAGE.load(Ordering::Relaxed);
    let result: u64;
    insn!(
        "movups xmm0, [{words} + 16]",
        "movups xmm1, [{words} + 32]",
        "movups xmm2, [{words} + 48]",
        "movups xmm3, [{words} + 64]",
        "movups xmm4, [{words} + 80]",
        "movups xmm5, [{words} + 96]",
        "mov rdx, [{words}]",
        "mov r8, [{words} + 8]",
        "call {page}",
        words = in(reg) words.as_ptr(),
        page = in(reg) page,
        inout("rcx") control | FAST => _,
        out("rdx") _, out("r8") _, out("rax") result,
        out("r9") _, out("r10") _, out("r11") _,
        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
    );
    result
}

/// A control word for a repeated call.
pub fn rep_control(code: u16, start: u64, count: u64) -> u64 {
    u64::from(code) | count << 32 | start << 48
}

/// A control word with a variable header of so many words.
pub fn variable_control(code: u16, words: u64) -> u64 {
    u64::from(code) | words << 17
}

/// Puts input parameters into a page and returns its address.
pub fn place(input: &[u64]) -> u64 {
    static INPUT: AtomicU64 = AtomicU64::new(0);
    if INPUT.load(Ordering::Relaxed) == 0 {
        INPUT.store(memory::page(), Ordering::Relaxed);
    }
    let page = INPUT.load(Ordering::Relaxed);
    for (index, word) in input.iter().enumerate() {
        memory::write64(page + index as u64 * 8, *word);
    }
    page
}

/// The calling processor's VP index.
pub fn vp_index() -> u32 {
    cpu::rdmsr(msr::VP_INDEX) as u32
}
