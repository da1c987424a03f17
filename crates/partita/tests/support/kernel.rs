//! The smallest kernels: a few instructions in an ELF file.

use std::path::Path;

/// Where the code lies in guest-physical memory; the entry point.
const ENTRY: u64 = 0x10_0000;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// Waits for ever: `1: hlt; jmp 1b`.
pub(crate) const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// An undefined instruction without an interrupt table: a triple fault.
pub(crate) const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];

/// Writes a 64-bit ELF kernel that runs `code` in 64-bit mode, interrupts off.
pub(crate) fn write(path: &Path, code: &[u8]) {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // Type: executable; machine: x86-64; version 1.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry point, program headers, no section headers.
    for word in [ENTRY, ELF_HEADER, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    // Flags; sizes of the headers; one program header.
    file.extend_from_slice(&[0; 4]);
    for half in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    // A segment to load, readable, writable and executable.
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    let size = code.len() as u64;
    let offset = ELF_HEADER + PROGRAM_HEADER;
    for word in [offset, ENTRY, ENTRY, size, size, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    std::fs::write(path, file).expect("the kernel can be written");
}

/// Code that writes model-specific registers, in order, and then halts.
pub(crate) fn write_msrs(values: &[(u32, u64)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (index, value) in values {
        let loads = [
            (0xb9, *index),                // mov ecx, imm32
            (0xb8, *value as u32),         // mov eax, imm32
            (0xba, (*value >> 32) as u32), // mov edx, imm32
        ];
        for (opcode, immediate) in loads {
            code.push(opcode);
            code.extend_from_slice(&immediate.to_le_bytes());
        }
        code.extend_from_slice(&[0x0f, 0x30]); // wrmsr
    }
    code.extend_from_slice(HALT);
    code
}

/// The guest-physical address of the byte `offset` of the code.
pub(crate) fn address(offset: usize) -> u64 {
    ENTRY + offset as u64
}
