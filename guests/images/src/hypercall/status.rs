//! Status codes of malformed calls, and the calling conventions (TLFS 3.6 to 3.12).

use guest_kit::hyperv::{self, FAST, call, raw, reps_of, simple, status, status_of};
use guest_kit::{check, check_eq, cpu, insn, memory, println};

/// Header of a flush call: address space, flags (all processors, all spaces), mask.
const FLUSH_ALL: [u64; 3] = [0, 3, 0];

fn ready(test: &str) -> bool {
    let present = hyperv::required(test);
    if present {
        hyperv::enable_hypercalls();
    }
    present
}

pub fn control_word() {
    if !ready("control_word") {
        return;
    }
    let input = hyperv::place(&FLUSH_ALL);
    for code in [0x7fffu64, 0x98, 0x9b, 0xfffe] {
        check_eq!(
            status_of(raw(code, input, 0)),
            status::INVALID_HYPERCALL_CODE,
            "unknown code {code:#x}"
        );
        check_eq!(
            status_of(raw(code | FAST, 0, 0)),
            status::INVALID_HYPERCALL_CODE,
            "unknown code {code:#x}, fast"
        );
    }
    let flush = u64::from(call::FLUSH_SPACE);
    check_eq!(
        status_of(raw(flush, input, 0)),
        status::SUCCESS,
        "well-formed call"
    );
    for bit in [27u32, 28, 30, 44, 47, 60, 63] {
        check_eq!(
            status_of(raw(flush | 1 << bit, input, 0)),
            status::INVALID_HYPERCALL_INPUT,
            "reserved bit {bit}"
        );
    }
    check_eq!(
        status_of(raw(flush | 1 << 32, input, 0)),
        status::INVALID_HYPERCALL_INPUT,
        "repeat count on a simple call"
    );
    check_eq!(
        status_of(raw(flush | 1 << 48, input, 0)),
        status::INVALID_HYPERCALL_INPUT,
        "start index on a simple call"
    );
    check_eq!(
        status_of(raw(u64::from(call::POST_MESSAGE) | FAST, 1, 1)),
        status::INVALID_HYPERCALL_INPUT,
        "register input for a call with 256 bytes of it"
    );
}

pub fn alignment() {
    if !ready("alignment") {
        return;
    }
    let page = memory::pages(2);
    let flush = u64::from(call::FLUSH_SPACE);
    memory::write64(page + 8, 3);
    for offset in [1, 2, 4, 7] {
        check_eq!(
            status_of(raw(flush, page + offset, 0)),
            status::INVALID_ALIGNMENT,
            "input misaligned by {offset}"
        );
    }
    check_eq!(
        status_of(raw(flush, page + 0xff0, 0)),
        status::INVALID_ALIGNMENT,
        "input across a page boundary"
    );
    memory::write64(page + 0xfe8 + 8, 3);
    check_eq!(
        status_of(raw(flush, page + 0xfe8, 0)),
        status::SUCCESS,
        "input up to the boundary"
    );
    check_eq!(
        status_of(raw(flush, 1 << 60, 0)),
        status::INVALID_ALIGNMENT,
        "input beyond the GPA space"
    );
    check_eq!(
        status_of(raw(
            hyperv::rep_control(call::FLUSH_LIST, 0, 2),
            page + 0xfe0,
            0
        )),
        status::INVALID_ALIGNMENT,
        "list across a page boundary"
    );
    if cpu::cpuid(0x4000_0003, 0).ebx >> 20 & 1 != 0 {
        let query = u64::from(call::EXT_QUERY_CAPABILITIES);
        check_eq!(
            status_of(raw(query, 0, page + 4)),
            status::INVALID_ALIGNMENT,
            "output misaligned"
        );
    }
}

pub fn repetitions() {
    if !ready("repetitions") {
        return;
    }
    let page = memory::page();
    memory::write64(page + 8, 3);
    let count = 400u64;
    for index in 0..count {
        memory::write64(page + 24 + index * 8, 0x4000_0000 + index * 0x1000);
    }
    let list = |start, reps| raw(hyperv::rep_control(call::FLUSH_LIST, start, reps), page, 0);
    let whole = list(0, count);
    check_eq!(
        (status_of(whole), reps_of(whole)),
        (0, count),
        "400 repetitions in one call"
    );
    let rest = list(100, count);
    check_eq!(
        (status_of(rest), reps_of(rest)),
        (0, count),
        "completed repetitions include those before the start index"
    );
    check_eq!(
        status_of(list(0, 0)),
        status::INVALID_HYPERCALL_INPUT,
        "no repetitions"
    );
    check_eq!(
        status_of(list(5, 5)),
        status::INVALID_HYPERCALL_INPUT,
        "start index equals count"
    );
    check_eq!(
        status_of(list(6, 5)),
        status::INVALID_HYPERCALL_INPUT,
        "start index above count"
    );
}

pub fn variable_header() {
    if !ready("variable_header") {
        return;
    }
    let input = hyperv::place(&FLUSH_ALL);
    check_eq!(
        status_of(raw(
            hyperv::variable_control(call::FLUSH_SPACE, 1),
            input,
            0
        )),
        status::INVALID_HYPERCALL_INPUT,
        "variable header on a call without one"
    );
    check_eq!(
        status_of(raw(
            hyperv::variable_control(call::FLUSH_LIST, 1) | 1 << 32,
            input,
            0
        )),
        status::INVALID_HYPERCALL_INPUT,
        "variable header on a repeated call without one"
    );
    // Two banks announced, one given.
    let sparse = hyperv::place(&[0, 2, 0, 3, 1, 1]);
    let short = status_of(raw(
        hyperv::variable_control(call::FLUSH_SPACE_EX, 1),
        sparse,
        0,
    ));
    check!(
        matches!(
            short,
            status::INVALID_HYPERCALL_INPUT | status::INVALID_PARAMETER
        ),
        "fewer banks than announced: {short:#x}"
    );
    let unknown = hyperv::place(&[0, 2, 7, 0]);
    let format = status_of(raw(u64::from(call::FLUSH_SPACE_EX), unknown, 0));
    check!(
        matches!(
            format,
            status::INVALID_HYPERCALL_INPUT | status::INVALID_PARAMETER
        ),
        "unknown set format: {format:#x}"
    );
}

pub fn conventions() {
    if !ready("conventions") {
        return;
    }
    let control = u64::from(call::LONG_SPIN_WAIT) | FAST;
    let page = hyperv::enable_hypercalls();
    let (rdx, r8, rsi, rdi, r12): (u64, u64, u64, u64, u64);
    insn!(
        "call {page}", page = in(reg) page,
        inout("rcx") control => _, inout("rdx") 0x1111u64 => rdx, inout("r8") 0x2222u64 => r8,
        inout("rsi") 0x3333u64 => rsi, inout("rdi") 0x4444u64 => rdi, inout("r12") 0x5555u64 => r12,
        out("rax") _, out("r9") _, out("r10") _, out("r11") _,
    );
    check_eq!((rdx, r8), (0x1111, 0x2222), "fast input registers survive");
    check_eq!(
        (rsi, rdi, r12),
        (0x3333, 0x4444, 0x5555),
        "other registers survive"
    );
    if cpu::cpuid(0x4000_0003, 0).edx >> 4 & 1 == 0 {
        return println!("NOTE: no XMM input here");
    }
    let result = hyperv::xmm_fast(u64::from(call::FLUSH_SPACE), &FLUSH_ALL);
    check_eq!(
        status_of(result),
        status::SUCCESS,
        "24 bytes in RDX, R8 and XMM0"
    );
    let mut list = [0u64; 14];
    list[1] = 3;
    for (index, element) in list[3..].iter_mut().enumerate() {
        *element = 0x4000_0000 + index as u64 * 0x1000;
    }
    let result = hyperv::xmm_fast(hyperv::rep_control(call::FLUSH_LIST, 0, 11), &list);
    check_eq!(
        (status_of(result), reps_of(result)),
        (0, 11),
        "112 bytes in registers, the list included"
    );
    let result = hyperv::xmm_fast(hyperv::rep_control(call::FLUSH_LIST, 0, 12), &list);
    check!(
        status_of(result) != 0,
        "more than 112 bytes in registers fails"
    );
    let kept: u64;
    insn!(
        "movq xmm0, {value}", "movq xmm5, {value}",
        "call {page}",
        "psubq xmm5, xmm0", "movq {value}, xmm0", "movq {page}, xmm5", "or {value}, {page}",
        value = inout(reg) 0x7777u64 => kept, page = inout(reg) page => _,
        inout("rcx") u64::from(call::FLUSH_SPACE) | FAST => _, inout("rdx") 0u64 => _,
        inout("r8") 3u64 => _, out("rax") _, out("r9") _, out("r10") _, out("r11") _,
        out("xmm0") _, out("xmm5") _,
    );
    check_eq!(kept, 0x7777, "XMM input registers survive");
    check_eq!(
        simple(call::FLUSH_SPACE, &FLUSH_ALL),
        0,
        "the same call from memory"
    );
}

core::arch::global_asm!(
    ".text",
    ".code32",
    ".global hypercall_from_32",
    // ESI points to the page, control low and high, input GPA; the result goes behind them.
    "hypercall_from_32:",
    "mov esi, eax",
    "push esi",
    "mov ebp, [esi]",
    "mov eax, [esi + 4]",
    "mov edx, [esi + 8]",
    "mov ecx, [esi + 12]",
    "xor ebx, ebx",
    "xor edi, edi",
    "xor esi, esi",
    "call ebp",
    "pop esi",
    "mov [esi + 16], eax",
    "mov [esi + 20], edx",
    "retf",
    ".code64",
);

pub fn from_32_bit_code() {
    if !ready("from_32_bit_code") {
        return;
    }
    unsafe extern "C" {
        static hypercall_from_32: u8;
    }
    let page = hyperv::enable_hypercalls();
    let block = memory::page();
    let run = |control: u64, input: u64| {
        memory::write32(block, page as u32);
        memory::write64(block + 4, control);
        memory::write32(block + 12, input as u32);
        guest_kit::compat::call((&raw const hypercall_from_32) as u64, block as u32);
        memory::read64(block + 16)
    };
    let input = hyperv::place(&FLUSH_ALL);
    let flush = u64::from(call::FLUSH_SPACE);
    check_eq!(
        status_of(run(0x7fff, 0)),
        status::INVALID_HYPERCALL_CODE,
        "EDX:EAX is the control"
    );
    check_eq!(
        status_of(run(flush, input)),
        status::SUCCESS,
        "EBX:ECX is the input address"
    );
    check_eq!(
        status_of(run(flush, input + 4)),
        status::INVALID_ALIGNMENT,
        "and is checked"
    );
    check_eq!(
        status_of(run(flush | 1 << 44, input)),
        status::INVALID_HYPERCALL_INPUT,
        "EDX counts"
    );
    let list = hyperv::place(&[0, 3, 0, 0x4000_0000, 0x4000_1000]);
    let result = run(hyperv::rep_control(call::FLUSH_LIST, 0, 2), list);
    check_eq!(
        (status_of(result), reps_of(result)),
        (0, 2),
        "EDX:EAX is the result"
    );
}
