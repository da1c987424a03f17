//! The state in which a boot processor starts, per boot protocol.

use super::layout::{BOOT_STACK_TOP_GPA, GDT_GPA, IDENTITY_MAP_GIB, PAGE_SIZE, PAGE_TABLES_GPA};

/// The contract between loader and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryProtocol {
    /// 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64,
    /// Xen PVH direct boot: 32-bit protected mode, EBX holds the start info.
    Pvh,
    /// Multiboot 1: 32-bit protected mode, EBX holds the multiboot information.
    Multiboot,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, after granularity.
    pub limit: u32,
    /// Attributes as in the TLFS HV_X64_SEGMENT_REGISTER: type in bits 3:0, S 4, DPL 6:5, P 7,
    /// AVL 12, L 13, D/B 14, G 15.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// All registers of a boot processor that differ from zero at entry, and those that must be set
/// to zero whatever the processor's reset state is. Registers that are not named here keep their
/// reset state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// The protocol that this state belongs to.
    pub protocol: EntryProtocol,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags; interrupts are off.
    pub rflags: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Code segment.
    pub cs: SegmentRegister,
    /// DS, ES, FS, GS and SS, all alike.
    pub data: SegmentRegister,
    /// Task register.
    pub tr: SegmentRegister,
    /// Local descriptor table register (not present).
    pub ldtr: SegmentRegister,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register (empty: no interrupt may arrive before the kernel
    /// loads its own).
    pub idtr: TableRegister,
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// Present, code, execute/read, accessed, 64-bit, 4 KiB granularity.
const CODE64: u16 = 0xa09b;
/// Present, code, execute/read, accessed, 32-bit, 4 KiB granularity.
const CODE32: u16 = 0xc09b;
/// Present, data, read/write, accessed, 32-bit, 4 KiB granularity.
const DATA: u16 = 0xc093;
/// Present, busy 32-bit or 64-bit TSS, byte granularity.
const TSS_BUSY: u16 = 0x008b;
/// A null LDT: type LDT, not present.
const LDT_ABSENT: u16 = 0x0002;
/// Least limit of a 32-bit or 64-bit TSS.
const TSS_LIMIT: u32 = 0x67;
/// Five descriptors of 8 bytes, and a second half for the TSS, which has 16 bytes in long mode.
const GDT_ENTRIES: usize = 6;

/// Entry of a Linux kernel in 64-bit mode at `rip`, with RSI pointing to `boot_params`.
#[must_use]
pub(super) fn linux64(rip: u64, boot_params: u64) -> EntryState {
    EntryState {
        rsi: boot_params,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: PAGE_TABLES_GPA,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..flat(EntryProtocol::Linux64, rip, CODE64)
    }
}

/// Entry of a PVH kernel in 32-bit protected mode without paging.
#[must_use]
pub(super) fn pvh(eip: u32, start_info: u32) -> EntryState {
    EntryState {
        rbx: u64::from(start_info),
        ..flat(EntryProtocol::Pvh, u64::from(eip), CODE32)
    }
}

/// Entry of a multiboot-1 image in 32-bit protected mode without paging.
#[must_use]
pub(super) fn multiboot(eip: u32, info: u32) -> EntryState {
    /// What a multiboot-1 loader leaves in EAX.
    const BOOTLOADER_MAGIC: u64 = 0x2bad_b002;
    EntryState {
        rax: BOOTLOADER_MAGIC,
        rbx: u64::from(info),
        ..flat(EntryProtocol::Multiboot, u64::from(eip), CODE32)
    }
}

fn flat(protocol: EntryProtocol, rip: u64, code: u16) -> EntryState {
    let segment = |selector, attributes| SegmentRegister {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    };
    EntryState {
        protocol,
        rip,
        rsp: BOOT_STACK_TOP_GPA,
        rflags: RFLAGS_RESERVED,
        rax: 0,
        rbx: 0,
        rsi: 0,
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        cs: segment(CODE_SELECTOR, code),
        data: segment(DATA_SELECTOR, DATA),
        tr: SegmentRegister {
            selector: TSS_SELECTOR,
            base: 0,
            limit: TSS_LIMIT,
            attributes: TSS_BUSY,
        },
        ldtr: SegmentRegister {
            attributes: LDT_ABSENT,
            ..SegmentRegister::default()
        },
        gdtr: TableRegister {
            base: GDT_GPA,
            limit: (GDT_ENTRIES * 8 - 1) as u16,
        },
        idtr: TableRegister::default(),
    }
}

/// The descriptor table that [`EntryState::gdtr`] points to, for the code segment of `state`.
#[must_use]
pub(super) fn gdt(state: &EntryState) -> Vec<u8> {
    let mut table = Vec::with_capacity(GDT_ENTRIES * 8);
    table.extend_from_slice(&[0; 16]);
    for segment in [&state.cs, &state.data, &state.tr] {
        table.extend_from_slice(&descriptor(segment).to_le_bytes());
    }
    table.extend_from_slice(&[0; 8]);
    table
}

/// Encodes a segment as an 8-byte descriptor (Intel SDM 3A 3.4.5).
fn descriptor(segment: &SegmentRegister) -> u64 {
    let attributes = u64::from(segment.attributes);
    let granular = attributes & (1 << 15) != 0;
    let limit = u64::from(if granular {
        segment.limit >> 12
    } else {
        segment.limit
    });
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | (attributes & 0xff) << 40
        | ((limit >> 16) & 0xf) << 48
        | (attributes >> 12) << 52
        | ((segment.base >> 24) & 0xff) << 56
}

/// Identity page tables for [`IDENTITY_MAP_GIB`] at [`PAGE_TABLES_GPA`], with 2 MiB pages, because
/// 1 GiB pages are optional in a processor.
#[must_use]
pub(super) fn identity_page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    const ENTRIES: u64 = 512;
    let mut entries = vec![0u64; ((2 + IDENTITY_MAP_GIB) * ENTRIES) as usize];
    entries[0] = (PAGE_TABLES_GPA + PAGE_SIZE) | PRESENT_WRITABLE;
    for gib in 0..IDENTITY_MAP_GIB {
        let directory = PAGE_TABLES_GPA + (2 + gib) * PAGE_SIZE;
        entries[(ENTRIES + gib) as usize] = directory | PRESENT_WRITABLE;
        for i in 0..ENTRIES {
            let page = (gib * ENTRIES + i) << 21;
            entries[((2 + gib) * ENTRIES + i) as usize] = page | PRESENT_WRITABLE | LARGE;
        }
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_flat_ones() {
        let table = gdt(&linux64(0x100_0000, 0x7000));
        let entry = |i: usize| u64::from_le_bytes(table[i * 8..i * 8 + 8].try_into().unwrap());
        assert_eq!(entry(0), 0);
        assert_eq!(entry(2), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(3), 0x00cf_9300_0000_ffff);
        assert_eq!(entry(4), 0x0000_8b00_0000_0067);
        let table = gdt(&pvh(0x100_0000, 0x6000));
        assert_eq!(
            u64::from_le_bytes(table[16..24].try_into().unwrap()),
            0x00cf_9b00_0000_ffff
        );
    }

    #[test]
    fn page_tables_map_every_address_to_itself() {
        let tables = identity_page_tables();
        let read = |gpa: u64| {
            let at = (gpa - PAGE_TABLES_GPA) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for address in [0, 0x20_0000, 0x100_0000, 0xfee0_0000u64, 0xffff_ffff] {
            let pml4e = read(PAGE_TABLES_GPA);
            let pdpte = read((pml4e & !0xfff) + (address >> 30) * 8);
            let pde = read((pdpte & !0xfff) + ((address >> 21) & 0x1ff) * 8);
            assert_eq!(pde & 0xfff, 0x83);
            assert_eq!((pde & !0xfff) | (address & 0x1f_ffff), address);
        }
    }

    #[test]
    fn entry_states_follow_their_protocols() {
        let linux = linux64(0x100_0000, 0x7000);
        assert_eq!((linux.rip, linux.rsi), (0x100_0000, 0x7000));
        assert_eq!(
            (linux.cr0, linux.cr4, linux.efer),
            (0x8000_0011, 0x20, 0x500)
        );
        assert_eq!(linux.cs.attributes & (1 << 13), 1 << 13);
        let multiboot = multiboot(0x40_00bc, 0x9_0000);
        assert_eq!((multiboot.rax, multiboot.rbx), (0x2bad_b002, 0x9_0000));
        assert_eq!(
            (multiboot.cr0, multiboot.efer, multiboot.rflags),
            (0x11, 0, 2)
        );
        assert_eq!(pvh(1, 2).rbx, 2);
    }
}
