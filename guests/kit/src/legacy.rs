//! Excursions from long mode into 32-bit protected mode and from there into real mode.
//!
//! The code is assembly (the compiler makes 64-bit code only): a 32-bit routine in flat segments
//! that returns with RET, its result in EAX. An exception abandons it and is told in the
//! [`Outcome`].

use crate::memory;
use crate::segments::selector;

core::arch::global_asm!(include_str!("legacy.s"));
// 256 entries that push a vector (and an error code where the processor does not).
core::arch::global_asm!(
    ".text",
    ".code32",
    ".balign 16",
    ".global kit_legacy_vectors",
    "kit_legacy_vectors:",
    ".set lvector, 0",
    ".rept 256",
    ".balign 16",
    ".if (lvector == 8) || ((lvector >= 10) && (lvector <= 14)) || (lvector == 17)",
    ".else",
    ".byte 0x6A, 0x00",
    ".endif",
    ".byte 0x68",
    ".long lvector",
    ".byte 0xE9",
    ".long kit_legacy_exception - . - 4",
    ".set lvector, lvector + 1",
    ".endr",
    ".code64",
);

unsafe extern "C" {
    fn kit_legacy(record: *mut Record);
    static kit_legacy_vectors: u8;
    static kit_legacy_idt: u8;
    static kit_legacy_gdt: u8;
    static kit_legacy_tss: u8;
    static kit_legacy_stack_top: u8;
    static kit_real_call: u8;
    static kit_real_code: u8;
    static kit_real_code_end: u8;
    static kit_real_handler: u8;
}

/// The paging of an excursion.
#[derive(Clone, Copy, Default)]
pub struct Paging {
    /// CR3, or 0 for no paging.
    pub cr3: u32,
    /// CR4.
    pub cr4: u32,
}

/// What the assembly code reads and fills.
#[repr(C)]
#[derive(Default)]
struct Record {
    entry: u32,
    cr3: u32,
    cr4: u32,
    argument: u32,
    result: u32,
    vector: u32,
    error: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
    esp: u32,
    ss: u32,
    cr2: u32,
    frame: u32,
}

/// An exception of 32-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code, 0 where there is none.
    pub error: u32,
    /// Saved EIP.
    pub eip: u32,
    /// Saved code segment.
    pub cs: u32,
    /// Saved flags.
    pub eflags: u32,
    /// Saved stack pointer (only of an outer privilege level or virtual-8086 code).
    pub esp: u32,
    /// Saved stack segment, likewise.
    pub ss: u32,
    /// CR2.
    pub cr2: u32,
    /// EAX when it happened.
    pub eax: u32,
}

/// EAX of the routine, or what ended it.
pub type Outcome = Result<u32, Fault>;

/// The first free selector in the excursion's descriptor table; the last is 0xF8.
pub const FREE: u16 = 0x50;
/// The selector of the excursion's own task.
pub const TASK: u16 = 0x48;

/// Puts a descriptor into the excursion's table.
pub fn set_descriptor(selector: u16, value: u64) {
    memory::write64(
        (&raw const kit_legacy_gdt) as u64 + u64::from(selector & !7),
        value,
    );
}

/// Reads a descriptor of the excursion's table.
pub fn descriptor(selector: u16) -> u64 {
    memory::read64((&raw const kit_legacy_gdt) as u64 + u64::from(selector & !7))
}

/// A segment or system descriptor.
pub fn make_descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Writes a gate of the excursion's interrupt table; `access` 0x8E is an interrupt gate, 0xEE one
/// that user code may call, 0x85 a task gate.
pub fn set_gate(vector: u8, code: u16, target: u32, access: u64) {
    let at = (&raw const kit_legacy_idt) as u64 + u64::from(vector) * 8;
    let target = u64::from(target);
    memory::write64(
        at,
        (target & 0xffff) | u64::from(code) << 16 | access << 40 | (target >> 16) << 48,
    );
}

/// The address of the excursion's task state segment.
pub fn task() -> u64 {
    (&raw const kit_legacy_tss) as u64
}

/// Calls a 32-bit routine with `argument` in EAX.
pub fn run(entry: u64, argument: u32, paging: Paging) -> Outcome {
    for vector in 0..=255u8 {
        let target = (&raw const kit_legacy_vectors) as u32 + u32::from(vector) * 16;
        set_gate_once(vector, target);
    }
    prepare_task();
    let mut record = Record {
        entry: entry as u32,
        cr3: paging.cr3,
        cr4: paging.cr4,
        argument,
        ..Record::default()
    };
    let gs = crate::cpu::rdmsr(crate::cpu::msr::GS_BASE);
    // SAFETY: the excursion saves and restores the whole state of long mode; everything it uses
    // lies below 4 GiB and is mapped one to one (the caller's page tables must keep that).
    unsafe { kit_legacy(&raw mut record) };
    crate::cpu::wrmsr(crate::cpu::msr::GS_BASE, gs);
    crate::segments::reload_task(103);
    crate::trap::load();
    clear_gates();
    if record.vector == u32::MAX {
        return Ok(record.result);
    }
    Err(Fault {
        vector: record.vector as u8,
        error: record.error,
        eip: record.eip,
        cs: record.cs & 0xffff,
        eflags: record.eflags,
        esp: record.esp,
        ss: record.ss & 0xffff,
        cr2: record.cr2,
        eax: record.result,
    })
}

/// Fills a gate unless the test has set it.
fn set_gate_once(vector: u8, target: u32) {
    let at = (&raw const kit_legacy_idt) as u64 + u64::from(vector) * 8;
    if memory::read64(at) == 0 {
        // INT3 and INTO are for user code too.
        let access = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        set_gate(vector, selector::CODE32, target, access);
    }
}

/// Forgets the gates, those of the test included.
fn clear_gates() {
    for vector in 0..256 {
        memory::write64((&raw const kit_legacy_idt) as u64 + vector * 8, 0);
    }
}

/// The excursion's own task: stack for privilege level 0, no I/O map.
fn prepare_task() {
    let stack = (&raw const kit_legacy_stack_top) as u64 - 0x2000;
    for offset in 0..26 {
        memory::write32(task() + offset * 4, 0);
    }
    memory::write32(task() + 4, stack as u32);
    memory::write32(task() + 8, u32::from(selector::DATA));
    memory::write32(task() + 100, 0x68 << 16);
    set_descriptor(TASK, make_descriptor(task(), 0x67, 0x89, 0));
}

/// What a real-mode routine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealOutcome {
    /// AX at its end.
    pub ax: u16,
    /// The vector that ended it, if one did.
    pub vector: Option<u8>,
    /// IP that the interrupt saved.
    pub ip: u16,
}

/// Where [`run_real`] puts the routine.
pub const REAL_CODE: u64 = 0xa000;
const REAL_STUBS: u64 = 0xb000;

/// Runs 16-bit code (given as bytes, running at 0000:A000, ending with a near return) in real
/// mode. Low memory is used without saving it.
pub fn run_real(code: &[u8]) -> Result<RealOutcome, Fault> {
    let start = (&raw const kit_real_code) as u64;
    let end = (&raw const kit_real_code_end) as u64;
    memory::copy_to(0x9000, memory::bytes(start, end - start));
    memory::copy_to(REAL_CODE, code);
    let handler = 0x9000 + ((&raw const kit_real_handler) as u64 - start);
    for vector in 0..256u64 {
        // MOV AX, vector; JMP handler
        let stub = REAL_STUBS + vector * 8;
        let distance = handler.wrapping_sub(stub + 6) as u16;
        let [low, high] = distance.to_le_bytes();
        memory::copy_to(stub, &[0xb8, vector as u8, 0, 0xe9, low, high]);
        memory::write32(vector * 4, stub as u32);
    }
    run(
        (&raw const kit_real_call) as u64,
        REAL_CODE as u32,
        Paging::default(),
    )?;
    let word = |address: u64| memory::read32(address) as u16;
    Ok(RealOutcome {
        ax: word(0x50a),
        vector: u8::try_from(word(0x500)).ok(),
        ip: word(0x502),
    })
}
