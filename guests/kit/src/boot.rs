//! Entry of the image, and what the loader left: memory size, command line, processor count.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::cpu::{inb, outb, outw};
use crate::{memory, segments, serial, smp, trap};

core::arch::global_asm!(include_str!("boot.s"));

unsafe extern "C" {
    static kit_multiboot_info: u32;
    fn guest_main() -> !;
}

// The precompiled core library refers to these; with panic=abort nothing calls them.
core::arch::global_asm!(
    ".text",
    ".code64",
    ".global rust_eh_personality, _Unwind_Resume",
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "ud2",
    ".global memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "sub rdi, rsi",
    "cmp rdi, rdx",
    "mov rdi, rax",
    "jae 2f",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "2:",
    "rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor ecx, ecx",
    "3:",
    "cmp rcx, rdx",
    "je 4f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 3b",
    "ret",
    "4:",
    "xor eax, eax",
    "ret",
    "strlen:",
    "xor eax, eax",
    "5:",
    "cmp byte ptr [rdi + rax], 0",
    "je 6f",
    "inc rax",
    "jmp 5b",
    "6:",
    "ret",
);

static MEMORY_TOP: AtomicU64 = AtomicU64::new(0);
static COMMAND_LINE: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];
static PROCESSORS: AtomicU32 = AtomicU32::new(1);

#[unsafe(no_mangle)]
extern "C" fn kit_start(index: u32) -> ! {
    if index == 0 {
        serial::init();
        // Legacy interrupt controllers, where there are any, must not disturb the tests.
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
        read_multiboot();
        memory::init(memory_top());
        segments::load(0);
        trap::init();
        // SAFETY: the image defines it through `guest!`.
        unsafe { guest_main() }
    }
    segments::load(index as usize);
    trap::load();
    smp::processor_loop(index as usize)
}

fn read_multiboot() {
    // SAFETY: written by the entry code before any Rust code ran.
    let info = u64::from(unsafe { kit_multiboot_info });
    let flags = memory::read32(info);
    let upper = u64::from(memory::read32(info + 8));
    MEMORY_TOP.store(0x10_0000 + upper * 1024, Ordering::Relaxed);
    if flags & 4 != 0 {
        keep_command_line(u64::from(memory::read32(info + 16)));
    }
    let mut count = fw_cfg_processors();
    if count == 0 && flags & 8 != 0 && memory::read32(info + 20) > 0 {
        let module = u64::from(memory::read32(info + 24));
        let start = u64::from(memory::read32(module));
        let end = u64::from(memory::read32(module + 4));
        count = environment_number(memory::bytes(start, end - start), b"NR_CPUS=");
    }
    PROCESSORS.store(count.clamp(1, smp::MAX as u32), Ordering::Relaxed);
}

/// The value after `key` in a module of `KEY=number` lines, or 0.
fn environment_number(text: &[u8], key: &[u8]) -> u32 {
    let Some(at) = text.windows(key.len()).position(|part| part == key) else {
        return 0;
    };
    let digits = text[at + key.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
}

/// The processor count from the firmware configuration device, 0 when there is none.
fn fw_cfg_processors() -> u32 {
    const SELECTOR: u16 = 0x510;
    const DATA: u16 = 0x511;
    outw(SELECTOR, 0);
    if [(); 4].map(|()| inb(DATA)) != *b"QEMU" {
        return 0;
    }
    outw(SELECTOR, 5);
    u32::from(u16::from_le_bytes([inb(DATA), inb(DATA)]))
}

/// The end of RAM below 4 GiB.
pub fn memory_top() -> u64 {
    MEMORY_TOP.load(Ordering::Relaxed)
}

/// How many processors the machine has.
pub fn processors() -> usize {
    PROCESSORS.load(Ordering::Relaxed) as usize
}

/// Copies the command line: the loader may have put it where the page allocator begins.
fn keep_command_line(start: u64) {
    for (offset, byte) in COMMAND_LINE.iter().enumerate() {
        let value = memory::read8(start + offset as u64);
        byte.store(value, Ordering::Relaxed);
        if value == 0 {
            break;
        }
    }
}

/// The loader's command line (at most 256 bytes), the image's name first.
pub fn command_line() -> &'static str {
    let line = memory::bytes(COMMAND_LINE.as_ptr() as u64, COMMAND_LINE.len() as u64);
    let length = line
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(line.len());
    core::str::from_utf8(&line[..length]).unwrap_or("")
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    crate::println!("FAIL: panic: {info}");
    crate::report::exit(1)
}
