//! The kernel of the machine: exceptions are logged and their instruction is
//! passed over (or tried again, once the page is there), services change the
//! mapping, interrupts are counted.

use super::machine::*;
use crate::rflags;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Offset of the SYSCALL handler in the page of handlers.
pub(super) const SYSCALL: u64 = 0xe00;
/// The first vector of services, and how many there are.
pub(super) const SERVICE: u8 = 0x80;
pub(super) const SERVICES: u64 = 8;
/// The vector of external interrupts.
pub(super) const INTERRUPT: u8 = 0x90;
/// RFLAGS of the exceptions' frame in the kernel's pages.
pub(super) const FRAME_FLAGS: u64 = kernel::EXCEPTION_STACK - 24;
/// The first vectors' entries, 16 bytes each, then what they jump to.
const COMMON: u64 = 0x200;
/// Services, [`SERVICE_SIZE`] bytes each.
const SERVICE_CODE: u64 = 0x600;
const SERVICE_SIZE: u64 = 0xc0;
const INTERRUPT_CODE: u64 = 0xd00;
const WITH_ERROR: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
const LOG_ENTRIES: u32 = 128;
/// Stays clear of the program's own pushes: the frame behind RAX, RCX, RDX,
/// the vector and the error code.
const FRAME: i64 = 40;

/// Places the handlers and the gates that lead to them.
pub(super) fn place(image: &mut Image) {
    for vector in 0..32 {
        put(image, 16 * vector, |a| entry(a, vector));
    }
    let lazy = [0, 1].map(|space| table_entry(image, space, DATA + LAZY_PAGE * PAGE));
    put(image, COMMON, |a| common(a, lazy));
    for number in 0..SERVICES {
        let table = Entries::find(image);
        put(image, SERVICE_CODE + SERVICE_SIZE * number, |a| {
            service(a, number, &table)
        });
    }
    put(image, INTERRUPT_CODE, interrupt);
    put(image, SYSCALL, syscall);
    for vector in 0..32 {
        // Debug traps and breakpoints by anyone.
        let rights = if vector == 3 { 0xee } else { 0x8e };
        gate(image, vector, 16 * vector, rights, 1);
    }
    for number in 0..SERVICES {
        let offset = SERVICE_CODE + SERVICE_SIZE * number;
        gate(image, u64::from(SERVICE) + number, offset, 0xee, 3);
    }
    gate(image, u64::from(INTERRUPT), INTERRUPT_CODE, 0x8e, 2);
}

fn put(
    image: &mut Image,
    offset: u64,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let at = kernel::HANDLERS + offset;
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    code(&mut assembler).expect("a handler");
    let bytes = assembler.assemble(KERNEL + at).expect("a handler");
    image.kernel(at, &bytes);
}

fn gate(image: &mut Image, vector: u64, offset: u64, rights: u64, ist: u64) {
    let handler = KERNEL + kernel::HANDLERS + offset;
    let low = handler & 0xffff
        | u64::from(CS_KERNEL) << 16
        | ist << 32
        | rights << 40
        | (handler >> 16 & 0xffff) << 48;
    let at = kernel::IDT + vector * 16;
    image.kernel(at, &low.to_le_bytes());
    image.kernel(at + 8, &(handler >> 32).to_le_bytes());
}

fn entry(a: &mut CodeAssembler, vector: u64) -> Result<(), IcedError> {
    if WITH_ERROR >> vector & 1 == 0 {
        a.push(0)?;
    }
    a.push(vector as i32)?;
    a.jmp(KERNEL + kernel::HANDLERS + COMMON)
}

fn common(a: &mut CodeAssembler, lazy: [u64; 2]) -> Result<(), IcedError> {
    let mut end = a.create_label();
    let mut skip = a.create_label();
    let mut back = a.create_label();
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.mov(rax, KERNEL + kernel::VARIABLES)?;
    // Every flag is written: those of the program may be dead here.
    a.sub(dword_ptr(rax + variable::BUDGET as i32), 1)?;
    a.js(end)?;
    // The log: vector, error code, CR2, RIP, RSP.
    a.mov(ecx, dword_ptr(rax + variable::LOGGED as i32))?;
    a.inc(dword_ptr(rax + variable::LOGGED as i32))?;
    a.and(ecx, LOG_ENTRIES as i32 - 1)?;
    a.shl(ecx, 5)?;
    a.mov(rax, KERNEL + kernel::LOG)?;
    a.add(rcx, rax)?;
    a.mov(eax, dword_ptr(rsp + 24))?;
    a.mov(dword_ptr(rcx), eax)?;
    a.mov(edx, dword_ptr(rsp + 32))?;
    a.mov(dword_ptr(rcx + 4), edx)?;
    a.mov(rdx, qword_ptr(rsp + FRAME))?;
    a.mov(qword_ptr(rcx + 16), rdx)?;
    a.mov(rdx, qword_ptr(rsp + FRAME + 24))?;
    a.mov(qword_ptr(rcx + 24), rdx)?;
    // Traps go on behind the instruction anyway.
    a.cmp(eax, 1)?;
    a.je(back)?;
    a.cmp(eax, 3)?;
    a.je(back)?;
    a.cmp(eax, 14)?;
    a.jne(skip)?;
    a.mov(rdx, cr2)?;
    a.mov(qword_ptr(rcx + 8), rdx)?;
    a.test(byte_ptr(rsp + 32), 1)?;
    a.jne(skip)?;
    a.shr(rdx, 12)?;
    a.cmp(rdx, ((DATA >> 12) + LAZY_PAGE) as i32)?;
    a.jne(skip)?;
    for entry in lazy {
        a.mov(rdx, entry)?;
        a.or(qword_ptr(rdx), 1)?;
    }
    a.jmp(back)?;
    a.set_label(&mut skip)?;
    a.mov(rax, qword_ptr(rsp + FRAME))?;
    a.sub(rax, CODE as i32)?;
    a.cmp(rax, (CODE_PAGES * PAGE) as i32)?;
    a.jae(end)?;
    a.mov(rcx, KERNEL + kernel::LENGTHS)?;
    a.movzx(eax, byte_ptr(rcx + rax))?;
    a.test(eax, eax)?;
    a.je(end)?;
    a.add(qword_ptr(rsp + FRAME), rax)?;
    // Flags that the instruction was to write need not be right.
    a.and(dword_ptr(rsp + FRAME + 16), !rflags::ARITH as i32)?;
    a.set_label(&mut back)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut end)?;
    a.hlt()
}

/// Where services find entries of page tables.
struct Entries {
    /// Of two pages of data in both spaces.
    swapped: [[u64; 2]; 2],
    functions: u64,
    rights: u64,
    lazy: u64,
}

impl Entries {
    fn find(image: &Image) -> Self {
        let of = |linear| table_entry(image, 0, linear);
        Self {
            swapped: [0, 1]
                .map(|space| [0, 2].map(|page| table_entry(image, space, DATA + page * PAGE))),
            functions: of(FUNCTIONS),
            rights: of(DATA + PAGE),
            lazy: of(DATA + LAZY_PAGE * PAGE),
        }
    }
}

fn toggle(a: &mut CodeAssembler, entry: u64, bits: u64) -> Result<(), IcedError> {
    a.mov(rax, entry)?;
    a.xor(qword_ptr(rax), bits as i32)
}

fn drop_page(a: &mut CodeAssembler, linear: u64) -> Result<(), IcedError> {
    a.mov(rax, linear)?;
    a.invlpg(ptr(rax))
}

fn service(a: &mut CodeAssembler, number: u64, entries: &Entries) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rcx)?;
    match number {
        0 => {
            for [first, second] in entries.swapped {
                a.mov(rax, second)?;
                a.mov(rcx, qword_ptr(rax))?;
                a.mov(rax, first)?;
                a.xchg(qword_ptr(rax), rcx)?;
                a.mov(rax, second)?;
                a.mov(qword_ptr(rax), rcx)?;
            }
            drop_page(a, DATA)?;
            drop_page(a, DATA + 2 * PAGE)?;
        }
        1 => {
            let change = (page::FUNCTIONS[0] ^ page::FUNCTIONS[1]) * PAGE;
            toggle(a, entries.functions, change)?;
            drop_page(a, FUNCTIONS)?;
        }
        2 => {
            a.mov(rax, KERNEL + kernel::VARIABLES)?;
            a.mov(rcx, qword_ptr(rax + variable::CR3_CHANGE as i32))?;
            a.xor(rcx, qword_ptr(rax + variable::CR3 as i32))?;
            a.mov(qword_ptr(rax + variable::CR3 as i32), rcx)?;
            a.mov(cr3, rcx)?;
        }
        3 => {
            toggle(a, entries.rights, 2)?;
            drop_page(a, DATA + PAGE)?;
        }
        4 => {
            // To absent, however it was.
            a.mov(rax, entries.lazy)?;
            a.and(qword_ptr(rax), -2)?;
            drop_page(a, DATA + LAZY_PAGE * PAGE)?;
        }
        5 => {
            a.mov(rax, cr4)?;
            a.xor(eax, 1 << 7)?;
            a.mov(cr4, rax)?;
            a.xor(eax, 1 << 7)?;
            a.mov(cr4, rax)?;
        }
        6 => a.xor(dword_ptr(rsp + 32), rflags::AC as i32)?,
        _ => {}
    }
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

fn interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.mov(rax, KERNEL + kernel::INTERRUPTS)?;
    a.inc(dword_ptr(rax))?;
    a.pop(rax)?;
    a.iretq()
}

fn syscall(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.swapgs()?;
    a.mov(qword_ptr(variable::SCRATCH as i32).gs(), rsp)?;
    a.mov(rsp, KERNEL + kernel::SERVICE_STACK)?;
    a.push(r11)?;
    a.push(rcx)?;
    a.inc(qword_ptr(variable::SYSCALLS as i32).gs())?;
    a.pop(rcx)?;
    a.pop(r11)?;
    a.mov(rsp, qword_ptr(variable::SCRATCH as i32).gs())?;
    a.swapgs()?;
    a.sysretq()
}
