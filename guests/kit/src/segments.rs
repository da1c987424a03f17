//! Segments, task state and the data that each processor owns.

use core::cell::UnsafeCell;

use crate::{cpu, insn, memory, smp, trap};

/// Selectors of the kit's descriptor table.
pub mod selector {
    /// 64-bit code, privilege level 0.
    pub const CODE64: u16 = 0x08;
    /// Data, privilege level 0.
    pub const DATA: u16 = 0x10;
    /// 32-bit code, privilege level 0.
    pub const CODE32: u16 = 0x18;
    /// 32-bit code, privilege level 3.
    pub const USER_CODE32: u16 = 0x23;
    /// Data, privilege level 3.
    pub const USER_DATA: u16 = 0x2b;
    /// 64-bit code, privilege level 3.
    pub const USER_CODE64: u16 = 0x33;
    /// 16-bit code, privilege level 0.
    pub const CODE16: u16 = 0x38;
    /// 16-bit data, privilege level 0.
    pub const DATA16: u16 = 0x40;
    /// The task state segment (16 bytes).
    pub const TASK: u16 = 0x48;
    /// The first of the slots that tests may fill.
    pub const FREE: u16 = 0x58;
}

/// How many 8-byte slots a descriptor table has.
pub const SLOTS: usize = 48;

const FLAT: [u64; 9] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
];

/// Interrupt stacks (IST numbers, from 1).
pub mod stack {
    /// For exceptions.
    pub const EXCEPTION: u8 = 1;
    /// For non-maskable interrupts.
    pub const NMI: u8 = 2;
    /// For device and processor interrupts.
    pub const INTERRUPT: u8 = 3;
    /// For double faults.
    pub const DOUBLE_FAULT: u8 = 4;
    /// For tests.
    pub const FREE: u8 = 5;
}

const STACK_PAGES: u64 = 4;

/// What one processor owns. GS points to it.
#[repr(C)]
pub struct Processor {
    /// Its index: 0 for the boot processor, the others in the order in which they came up.
    pub index: usize,
    /// The recovery point of the innermost attempt, or null.
    pub recovery: *mut trap::Recovery,
    /// Its global descriptor table.
    pub gdt: [u64; SLOTS],
    /// Its 64-bit task state segment, with an I/O permission map behind it.
    pub tss: [u8; 104 + 8192 + 8],
}

struct All(UnsafeCell<[Processor; smp::MAX]>);
// SAFETY: every processor touches only its own element.
unsafe impl Sync for All {}

static PROCESSORS: All = All(UnsafeCell::new(
    [const {
        Processor {
            index: 0,
            recovery: core::ptr::null_mut(),
            gdt: [0; SLOTS],
            tss: [0; 104 + 8192 + 8],
        }
    }; smp::MAX],
));

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// The calling processor's own data.
pub fn current() -> *mut Processor {
    cpu::rdmsr(cpu::msr::GS_BASE) as *mut Processor
}

/// Sets up and loads the descriptor table, the task state segment and GS of processor `index`.
pub fn load(index: usize) {
    // SAFETY: called once by each processor for its own element.
    let own = unsafe { &mut (*PROCESSORS.0.get())[index] };
    own.index = index;
    own.gdt[..FLAT.len()].copy_from_slice(&FLAT);
    let tss = own.tss.as_ptr() as u64;
    // The stack for privilege level 0, then IST 1 to 5.
    for offset in [4u64, 36, 44, 52, 60, 68] {
        memory::write64(
            tss + offset,
            memory::pages(STACK_PAGES) + STACK_PAGES * 0x1000,
        );
    }
    // No port is open to user mode: the map lies beyond the limit.
    memory::write32(tss + 100, 104 << 16);
    let [low, high] = system_descriptor(tss, 103, 0x89);
    own.gdt[9] = low;
    own.gdt[10] = high;
    load_gdt(own.gdt.as_ptr() as u64, SLOTS);
    insn!("ltr {:x}", "lldt {:x}", in(reg) selector::TASK, in(reg) 0);
    cpu::wrmsr(cpu::msr::GS_BASE, &raw mut *own as u64);
}

/// A 16-byte system descriptor (TSS or LDT) of 64-bit mode.
pub fn system_descriptor(base: u64, limit: u64, access: u64) -> [u64; 2] {
    let low = (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Loads the descriptor-table register and the kit's segments.
pub fn load_gdt(base: u64, slots: usize) {
    let pointer = TablePointer {
        limit: (slots * 8 - 1) as u16,
        base,
    };
    insn!(
        "lgdt [{pointer}]",
        "push 0x08",
        "lea {scratch}, [rip + 2f]",
        "push {scratch}",
        "retfq",
        "2:",
        "mov {scratch:e}, 0x10",
        "mov ss, {scratch:e}",
        "mov ds, {scratch:e}",
        "mov es, {scratch:e}",
        pointer = in(reg) &raw const pointer,
        scratch = out(reg) _,
    );
}

/// Puts a descriptor into a free slot of the current table.
pub fn set_descriptor(selector: u16, value: u64) {
    let slot = usize::from(selector >> 3);
    // SAFETY: the element is the calling processor's own.
    unsafe { (&raw mut (*current()).gdt[slot]).write_volatile(value) };
}

/// The address of the current task state segment.
pub fn tss() -> u64 {
    // SAFETY: the element is the calling processor's own.
    unsafe { (&raw const (*current()).tss) as u64 }
}

/// Makes the task descriptor available again and reloads it with this limit.
pub fn reload_task(limit: u64) {
    let [low, high] = system_descriptor(tss(), limit, 0x89);
    set_descriptor(selector::TASK, low);
    set_descriptor(selector::TASK + 8, high);
    insn!("ltr {:x}", in(reg) selector::TASK);
}
