//! How many million guest instructions run per second, for loops of known length.
#![no_std]
#![no_main]

use guest_kit::{check, cpu, guest, insn, memory, options, println, time};

guest!("speed", integer, memory_walk, calls, string, sse);

/// Runs `round` (which executes `per_round` instructions) for about a second in all and prints
/// the rate.
fn measure(name: &str, per_round: u64, round: impl Fn()) {
    round();
    let budget = time::tsc_hz() / 1000 * options::number("milliseconds", 1000);
    let start = cpu::rdtsc();
    let mut rounds = 0u64;
    while cpu::rdtsc() - start < budget {
        round();
        rounds += 1;
    }
    let elapsed = cpu::rdtsc() - start;
    let microseconds = (elapsed / (time::tsc_hz() / 1_000_000)).max(1);
    let rate = rounds * per_round * 10 / microseconds;
    println!(
        "SPEED: {name}: {}.{} million instructions per second",
        rate / 10,
        rate % 10
    );
    check!(rounds > 0, "{name} ran");
}

fn integer() {
    let sum = core::cell::Cell::new(0u64);
    measure("integer", 100_000 * 10 + 3, || {
        let result: u64;
        insn!(
            "xor eax, eax",
            "mov edx, 3",
            "mov ecx, 100000",
            "2:",
            "add rax, rdx",
            "lea rdx, [rdx + rax*2 + 1]",
            "xor rdx, rcx",
            "rol rdx, 7",
            "and edx, 0x7fffffff",
            "imul rax, rax, 13",
            "test rax, rdx",
            "adc rax, 0",
            "dec ecx",
            "jnz 2b",
            out("rax") result, out("rdx") _, out("rcx") _,
        );
        sum.set(result);
    });
    let first = sum.get();
    check!(
        first == expected_integer(),
        "integer loop computes the right value"
    );
}

fn expected_integer() -> u64 {
    let (mut a, mut d) = (0u64, 3u64);
    for c in (1..=100_000u64).rev() {
        a = a.wrapping_add(d);
        d = d.wrapping_add(a.wrapping_mul(2)).wrapping_add(1);
        d ^= c;
        d = d.rotate_left(7) & 0x7fff_ffff;
        a = a.wrapping_mul(13);
        // TEST clears the carry flag, so ADC adds nothing.
    }
    a
}

fn memory_walk() {
    let buffer = memory::pages(16);
    measure("memory", 8192 * 6 + 3, || {
        insn!(
            "mov rsi, {buffer}",
            "xor eax, eax",
            "mov ecx, 8192",
            "2:",
            "mov rdx, [rsi]",
            "add rax, rdx",
            "mov [rsi], rcx",
            "add rsi, 8",
            "dec ecx",
            "jnz 2b",
            buffer = in(reg) buffer,
            out("rsi") _, out("rax") _, out("rcx") _, out("rdx") _,
        );
    });
    check!(
        memory::read64(buffer) == 8192,
        "memory loop wrote what it should"
    );
}

fn calls() {
    measure("calls", 50_000 * 7 + 2, || {
        insn!(
            "mov ecx, 50000",
            "jmp 2f",
            "3:",
            "push rcx",
            "pop rdx",
            "ret",
            "2:",
            "call 3b",
            "lea rax, [rdx + 1]",
            "dec ecx",
            "jnz 2b",
            out("rax") _, out("rcx") _, out("rdx") _,
        );
    });
}

fn string() {
    let buffer = memory::pages(32);
    measure("string (64 KiB REP MOVSQ as 8192 iterations)", 8192, || {
        insn!(
            "rep movsq",
            inout("rsi") buffer => _, inout("rdi") buffer + 0x10000 => _, inout("rcx") 8192u64 => _,
        );
    });
}

fn sse() {
    measure("sse", 50_000 * 6 + 7, || {
        insn!(
            "pxor xmm0, xmm0",
            "pcmpeqd xmm1, xmm1",
            "cvtsi2ss xmm2, {one:e}",
            "cvtsi2ss xmm3, {one:e}",
            "cvtsi2sd xmm4, {one:e}",
            "cvtsi2sd xmm5, {one:e}",
            "mov ecx, 50000",
            "2:",
            "paddq xmm0, xmm1",
            "mulps xmm2, xmm3",
            "addsd xmm4, xmm5",
            "pxor xmm6, xmm0",
            "dec ecx",
            "jnz 2b",
            one = in(reg) 1,
            out("ecx") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm5") _, out("xmm4") _, out("xmm6") _,
        );
    });
}
