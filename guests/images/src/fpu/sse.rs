//! MXCSR and a choice of SSE to SSE4.2 instructions.

use guest_kit::{check_eq, cpu, insn, report};

const DEFAULT: u32 = 0x1f80;

fn mxcsr() -> u32 {
    let mut value = 0u32;
    insn!("stmxcsr [{}]", in(reg) &raw mut value);
    value
}

fn set_mxcsr(value: u32) {
    insn!("ldmxcsr [{}]", in(reg) &raw const value);
}

/// Runs one two-operand instruction on floats, given and returned as bits.
macro_rules! single {
    ($code:literal, $a:expr, $b:expr) => {{
        let result: u32;
        insn!("movd {x}, {a:e}", "movd {y}, {b:e}", concat!($code, " {x}, {y}"), "movd {r:e}, {x}",
            x = out(xmm_reg) _, y = out(xmm_reg) _, a = in(reg) $a, b = in(reg) $b,
            r = out(reg) result);
        result
    }};
}

pub fn control() {
    set_mxcsr(0xffbf & 0xffff);
    let kept = mxcsr();
    set_mxcsr(DEFAULT);
    check_eq!(kept, 0xffbf, "MXCSR keeps its bits");
    check_eq!(mxcsr(), DEFAULT, "and its default");
    let two_thirds = |mode: u32| {
        set_mxcsr(DEFAULT | mode << 13);
        let value = single!("divss", 2f32.to_bits(), 3f32.to_bits());
        set_mxcsr(DEFAULT);
        value
    };
    check_eq!(two_thirds(0), 0x3f2a_aaab, "round to nearest");
    check_eq!(two_thirds(1), 0x3f2a_aaaa, "round down");
    check_eq!(two_thirds(2), 0x3f2a_aaab, "round up");
    check_eq!(two_thirds(3), 0x3f2a_aaaa, "truncate");
}

pub fn exceptions_masked() {
    let flags = |a: f32, b: f32, divide: bool| {
        set_mxcsr(DEFAULT);
        let value = if divide {
            single!("divss", a.to_bits(), b.to_bits())
        } else {
            single!("mulss", a.to_bits(), b.to_bits())
        };
        let flags = mxcsr() & 0x3f;
        set_mxcsr(DEFAULT);
        (value, flags)
    };
    check_eq!(
        flags(1.0, 0.0, true),
        (f32::INFINITY.to_bits(), 4),
        "division by zero"
    );
    check_eq!(
        flags(0.0, 0.0, true),
        (0xffc0_0000, 1),
        "invalid operation gives the default NaN"
    );
    check_eq!(
        flags(f32::MAX, 2.0, false),
        (f32::INFINITY.to_bits(), 0x28),
        "overflow, inexact"
    );
    check_eq!(flags(1.0, 3.0, true).1, 0x20, "inexact");
    check_eq!(
        flags(f32::MIN_POSITIVE, f32::MIN_POSITIVE, false),
        (0, 0x30),
        "underflow, inexact"
    );
    check_eq!(
        flags(f32::from_bits(1), 1.0, false),
        (1, 2),
        "denormal operand"
    );
    let signalling = f32::from_bits(0x7f80_0001);
    check_eq!(
        flags(signalling, 1.0, false),
        (0x7fc0_0001, 1),
        "a signalling NaN becomes quiet"
    );
}

pub fn flush_to_zero() {
    let small = f32::MIN_POSITIVE.to_bits();
    let half = 0.5f32.to_bits();
    set_mxcsr(DEFAULT | 1 << 15);
    let flushed = single!("mulss", small, half);
    set_mxcsr(DEFAULT);
    check_eq!(flushed, 0, "FTZ flushes a denormal result");
    check_eq!(
        single!("mulss", small, half),
        small >> 1,
        "without FTZ it stays"
    );
    set_mxcsr(DEFAULT | 1 << 6);
    let ignored = single!("addss", 1u32, 0u32);
    set_mxcsr(DEFAULT);
    check_eq!(ignored, 0, "DAZ reads a denormal as zero");
}

/// Runs an instruction on two 128-bit operands.
macro_rules! packed {
    ($code:literal, $a:expr, $b:expr) => {{
        let (mut a, b): ([u64; 2], [u64; 2]) = ($a, $b);
        insn!("movdqu {x}, [{a}]", "movdqu {y}, [{b}]", $code, "movdqu [{a}], {x}",
            x = out(xmm_reg) _, y = out(xmm_reg) _, a = in(reg) a.as_mut_ptr(),
                b = in(reg) b.as_ptr());
        a
    }};
}

pub fn instructions() {
    let a = [0x0102_0304_0506_0708u64, 0x1112_1314_1516_1718];
    let b = [0xffff_0000_ffff_0000u64, 0x8000_7fff_0001_ffff];
    check_eq!(
        packed!("paddb {x}, {y}", a, b),
        [0x0001_0304_0405_0708, 0x9112_9213_1517_1617],
        "PADDB"
    );
    check_eq!(
        packed!("pshufd {x}, {y}, 0x1b", a, b),
        [b[1].rotate_left(32), b[0].rotate_left(32)],
        "PSHUFD"
    );
    check_eq!(
        packed!("punpcklqdq {x}, {y}", a, b),
        [a[0], b[0]],
        "PUNPCKLQDQ"
    );
    check_eq!(
        packed!("pslldq {x}, 3", a, b),
        [a[0] << 24, a[1] << 24 | a[0] >> 40],
        "PSLLDQ"
    );
    check_eq!(packed!("pcmpeqb {x}, {x}", a, b), [u64::MAX; 2], "PCMPEQB");
    if !cpu::feature_1c(9) || !cpu::feature_1c(20) {
        return report::skip("SSSE3 to SSE4.2", "not in CPUID");
    }
    let reverse = [0x0809_0a0b_0c0d_0e0fu64, 0x0001_0203_0405_0607];
    check_eq!(
        packed!("pshufb {x}, {y}", a, reverse),
        [a[1].swap_bytes(), a[0].swap_bytes()],
        "PSHUFB"
    );
    check_eq!(
        packed!("palignr {x}, {y}, 8", a, b),
        [b[1], a[0]],
        "PALIGNR"
    );
    check_eq!(
        packed!("pabsw {x}, {y}", a, b),
        [0x0001_0000_0001_0000, 0x8000_7fff_0001_0001],
        "PABSW"
    );
    check_eq!(
        packed!("pmaxud {x}, {y}", a, b),
        [0xffff_0000_ffff_0000, 0x8000_7fff_1516_1718],
        "PMAXUD"
    );
    let crc: u64;
    insn!("crc32 {c}, {v}", c = inout(reg) 0xffff_ffffu64 => crc, v = in(reg) a[0]);
    check_eq!(crc, expected_crc(a[0]), "CRC32");
    let flags: u64;
    insn!("movq {x}, {v}", "ptest {x}, {x}", "pushfq", "pop {f}",
        x = out(xmm_reg) _, v = in(reg) 0u64, f = out(reg) flags);
    check_eq!(flags & 0x41, 0x41, "PTEST of zero");
    let index: u32;
    let (text, set) = (*b"the quick brown!", *b"xyzq\0\0\0\0\0\0\0\0\0\0\0\0");
    insn!("movdqu xmm0, [{s}]", "movdqu xmm1, [{t}]", "pcmpistri xmm0, xmm1, 0",
        s = in(reg) set.as_ptr(), t = in(reg) text.as_ptr(), out("ecx") index, out("xmm0") _,
            out("xmm1") _);
    check_eq!(index, 4, "PCMPISTRI finds the first of a set");
    let count: u64;
    insn!("popcnt {c}, {v}", c = out(reg) count, v = in(reg) b[1]);
    check_eq!(count, u64::from(b[1].count_ones()), "POPCNT");
}

/// CRC-32C, bit by bit.
fn expected_crc(value: u64) -> u64 {
    let mut crc = 0xffff_ffffu32;
    for byte in value.to_le_bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    u64::from(crc)
}
