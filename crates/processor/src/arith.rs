//! Integer arithmetic by the host's own instructions, flags and all.
//!
//! Each function restores the guest's status flags, executes one instruction
//! and saves the flags (see [`crate::flags`]), so that flags which an
//! instruction leaves alone or undefined come out as on the machine itself.
//!
//! The assembly here touches registers only, or, in the `locked` functions,
//! one operand in guest memory under the rule of [`crate::host`].

use crate::flags::ArithFlags;
use std::arch::asm;

/// An operation on two operands.
pub(crate) trait Binary {
    /// The result is written back (not CMP or TEST).
    const WRITES: bool;
    fn run8(a: u8, b: u8, flags: &mut ArithFlags) -> u8;
    fn run16(a: u16, b: u16, flags: &mut ArithFlags) -> u16;
    fn run32(a: u32, b: u32, flags: &mut ArithFlags) -> u32;
    fn run64(a: u64, b: u64, flags: &mut ArithFlags) -> u64;
    /// Atomic on guest memory; `size` 1, 2, 4 or 8.
    fn locked(at: *mut u8, b: u64, size: u64, flags: &mut ArithFlags);
}

/// An operation on one operand.
pub(crate) trait Unary {
    fn run8(a: u8, flags: &mut ArithFlags) -> u8;
    fn run16(a: u16, flags: &mut ArithFlags) -> u16;
    fn run32(a: u32, flags: &mut ArithFlags) -> u32;
    fn run64(a: u64, flags: &mut ArithFlags) -> u64;
    /// Atomic on guest memory.
    fn locked(at: *mut u8, size: u64, flags: &mut ArithFlags);
}

/// A shift or rotation by CL.
pub(crate) trait Shift {
    fn run8(a: u8, count: u8, flags: &mut ArithFlags) -> u8;
    fn run16(a: u16, count: u8, flags: &mut ArithFlags) -> u16;
    fn run32(a: u32, count: u8, flags: &mut ArithFlags) -> u32;
    fn run64(a: u64, count: u8, flags: &mut ArithFlags) -> u64;
}

macro_rules! binary_body {
    ($text:expr, $class:ident, $a:ident, $b:ident, $flags:ident) => {{
        let mut value = $a;
        // SAFETY: registers and flags only.
        unsafe {
            asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                a = inout($class) value, b = in($class) $b, inout("ax") $flags.0,
                options(pure, nomem, nostack));
        }
        value
    }};
}

macro_rules! locked_binary {
    ($text:expr, $class:ident, $at:ident, $b:expr, $flags:ident) => {
        // SAFETY: `at` lies in a writable guest page (the rule of `host`).
        unsafe {
            asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                at = in(reg) $at, b = in($class) $b, inout("ax") $flags.0, options(nostack));
        }
    };
}

macro_rules! binary {
    ($name:ident, $op:literal, $writes:tt) => {
        /// The instruction of this name.
        pub(crate) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn run8(a: u8, b: u8, flags: &mut ArithFlags) -> u8 {
                binary_body!(concat_op!($op, " {a}, {b}"), reg_byte, a, b, flags)
            }
            #[inline(always)]
            fn run16(a: u16, b: u16, flags: &mut ArithFlags) -> u16 {
                binary_body!(concat_op!($op, " {a:x}, {b:x}"), reg, a, b, flags)
            }
            #[inline(always)]
            fn run32(a: u32, b: u32, flags: &mut ArithFlags) -> u32 {
                binary_body!(concat_op!($op, " {a:e}, {b:e}"), reg, a, b, flags)
            }
            #[inline(always)]
            fn run64(a: u64, b: u64, flags: &mut ArithFlags) -> u64 {
                binary_body!(concat_op!($op, " {a}, {b}"), reg, a, b, flags)
            }
            fn locked(at: *mut u8, b: u64, size: u64, flags: &mut ArithFlags) {
                locked_op!($writes, $op, at, b, size, flags)
            }
        }
    };
}
macro_rules! concat_op {
    ($($part:literal),*) => { concat!($($part),*) };
}
macro_rules! locked_op {
    (true, $op:literal, $at:ident, $b:ident, $size:ident, $flags:ident) => {
        match $size {
            1 => locked_binary!(
                concat_op!("lock ", $op, " byte ptr [{at}], {b}"),
                reg_byte,
                $at,
                $b as u8,
                $flags
            ),
            2 => locked_binary!(
                concat_op!("lock ", $op, " word ptr [{at}], {b:x}"),
                reg,
                $at,
                $b as u16,
                $flags
            ),
            4 => locked_binary!(
                concat_op!("lock ", $op, " dword ptr [{at}], {b:e}"),
                reg,
                $at,
                $b as u32,
                $flags
            ),
            _ => locked_binary!(
                concat_op!("lock ", $op, " qword ptr [{at}], {b}"),
                reg,
                $at,
                $b,
                $flags
            ),
        }
    };
    (false, $op:literal, $at:ident, $b:ident, $size:ident, $flags:ident) => {
        // CMP and TEST take no LOCK prefix: decoding refuses it.
        {
            let _ = ($at, $b, $size, $flags);
        }
    };
}
binary!(Add, "add", true);
binary!(Adc, "adc", true);
binary!(Sub, "sub", true);
binary!(Sbb, "sbb", true);
binary!(And, "and", true);
binary!(Or, "or", true);
binary!(Xor, "xor", true);
binary!(Cmp, "sub", false);
binary!(Test, "and", false);

macro_rules! unary_body {
    ($text:expr, $class:ident, $a:ident, $flags:ident) => {{
        let mut value = $a;
        // SAFETY: registers and flags only.
        unsafe {
            asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                a = inout($class) value, inout("ax") $flags.0, options(pure, nomem, nostack));
        }
        value
    }};
}
macro_rules! locked_unary {
    ($text:expr, $at:ident, $flags:ident) => {
        // SAFETY: `at` lies in a writable guest page (the rule of `host`).
        unsafe {
            asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                at = in(reg) $at, inout("ax") $flags.0, options(nostack));
        }
    };
}
macro_rules! unary {
    ($name:ident, $op:literal) => {
        /// The instruction of this name.
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn run8(a: u8, flags: &mut ArithFlags) -> u8 {
                unary_body!(concat_op!($op, " {a}"), reg_byte, a, flags)
            }
            #[inline(always)]
            fn run16(a: u16, flags: &mut ArithFlags) -> u16 {
                unary_body!(concat_op!($op, " {a:x}"), reg, a, flags)
            }
            #[inline(always)]
            fn run32(a: u32, flags: &mut ArithFlags) -> u32 {
                unary_body!(concat_op!($op, " {a:e}"), reg, a, flags)
            }
            #[inline(always)]
            fn run64(a: u64, flags: &mut ArithFlags) -> u64 {
                unary_body!(concat_op!($op, " {a}"), reg, a, flags)
            }
            fn locked(at: *mut u8, size: u64, flags: &mut ArithFlags) {
                match size {
                    1 => locked_unary!(concat_op!("lock ", $op, " byte ptr [{at}]"), at, flags),
                    2 => locked_unary!(concat_op!("lock ", $op, " word ptr [{at}]"), at, flags),
                    4 => locked_unary!(concat_op!("lock ", $op, " dword ptr [{at}]"), at, flags),
                    _ => locked_unary!(concat_op!("lock ", $op, " qword ptr [{at}]"), at, flags),
                }
            }
        }
    };
}
unary!(Inc, "inc");
unary!(Dec, "dec");
unary!(Neg, "neg");
unary!(Not, "not");

macro_rules! shift_body {
    ($text:expr, $class:ident, $a:ident, $count:ident, $flags:ident) => {{
        let mut value = $a;
        // SAFETY: registers and flags only.
        unsafe {
            asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                a = inout($class) value, in("cl") $count, inout("ax") $flags.0,
                options(pure, nomem, nostack));
        }
        value
    }};
}
macro_rules! shift {
    ($name:ident, $op:literal) => {
        /// The instruction of this name.
        pub(crate) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn run8(a: u8, count: u8, flags: &mut ArithFlags) -> u8 {
                shift_body!(concat_op!($op, " {a}, cl"), reg_byte, a, count, flags)
            }
            #[inline(always)]
            fn run16(a: u16, count: u8, flags: &mut ArithFlags) -> u16 {
                shift_body!(concat_op!($op, " {a:x}, cl"), reg, a, count, flags)
            }
            #[inline(always)]
            fn run32(a: u32, count: u8, flags: &mut ArithFlags) -> u32 {
                shift_body!(concat_op!($op, " {a:e}, cl"), reg, a, count, flags)
            }
            #[inline(always)]
            fn run64(a: u64, count: u8, flags: &mut ArithFlags) -> u64 {
                shift_body!(concat_op!($op, " {a}, cl"), reg, a, count, flags)
            }
        }
    };
}
shift!(Shl, "shl");
shift!(Shr, "shr");
shift!(Sar, "sar");
shift!(Rol, "rol");
shift!(Ror, "ror");
shift!(Rcl, "rcl");
shift!(Rcr, "rcr");

macro_rules! two_to_one {
    ($name:ident, $type:ty, $text:literal) => {
        /// One instruction: destination (in and out) and source.
        #[inline]
        pub(crate) fn $name(a: $type, b: $type, flags: &mut ArithFlags) -> $type {
            let mut value = a;
            // SAFETY: registers and flags only; the host has the instruction,
            // or CPUID does not offer it and decoding refuses it.
            unsafe {
                asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                    a = inout(reg) value, b = in(reg) b, inout("ax") flags.0,
                    options(pure, nomem, nostack));
            }
            value
        }
    };
}
two_to_one!(imul16, u16, "imul {a:x}, {b:x}");
two_to_one!(imul32, u32, "imul {a:e}, {b:e}");
two_to_one!(imul64, u64, "imul {a}, {b}");
two_to_one!(bsf16, u16, "bsf {a:x}, {b:x}");
two_to_one!(bsf32, u32, "bsf {a:e}, {b:e}");
two_to_one!(bsf64, u64, "bsf {a}, {b}");
two_to_one!(bsr16, u16, "bsr {a:x}, {b:x}");
two_to_one!(bsr32, u32, "bsr {a:e}, {b:e}");
two_to_one!(bsr64, u64, "bsr {a}, {b}");
two_to_one!(tzcnt16, u16, "tzcnt {a:x}, {b:x}");
two_to_one!(tzcnt32, u32, "tzcnt {a:e}, {b:e}");
two_to_one!(tzcnt64, u64, "tzcnt {a}, {b}");
two_to_one!(lzcnt16, u16, "lzcnt {a:x}, {b:x}");
two_to_one!(lzcnt32, u32, "lzcnt {a:e}, {b:e}");
two_to_one!(lzcnt64, u64, "lzcnt {a}, {b}");
two_to_one!(popcnt16, u16, "popcnt {a:x}, {b:x}");
two_to_one!(popcnt32, u32, "popcnt {a:e}, {b:e}");
two_to_one!(popcnt64, u64, "popcnt {a}, {b}");
two_to_one!(bt64, u64, "bt {a}, {b}");
two_to_one!(bts64, u64, "bts {a}, {b}");
two_to_one!(btr64, u64, "btr {a}, {b}");
two_to_one!(btc64, u64, "btc {a}, {b}");

macro_rules! double_shift {
    ($name:ident, $type:ty, $text:literal) => {
        /// SHLD or SHRD by CL.
        #[inline]
        pub(crate) fn $name(a: $type, b: $type, count: u8, flags: &mut ArithFlags) -> $type {
            let mut value = a;
            // SAFETY: registers and flags only.
            unsafe {
                asm!("add al, 0x7f", "sahf", $text, "lahf", "seto al",
                    a = inout(reg) value, b = in(reg) b, in("cl") count, inout("ax") flags.0,
                    options(pure, nomem, nostack));
            }
            value
        }
    };
}
double_shift!(shld16, u16, "shld {a:x}, {b:x}, cl");
double_shift!(shld32, u32, "shld {a:e}, {b:e}, cl");
double_shift!(shld64, u64, "shld {a}, {b}, cl");
double_shift!(shrd16, u16, "shrd {a:x}, {b:x}, cl");
double_shift!(shrd32, u32, "shrd {a:e}, {b:e}, cl");
double_shift!(shrd64, u64, "shrd {a}, {b}, cl");

macro_rules! widening {
    ($name:ident, $text8:literal, $text16:literal, $text32:literal, $text64:literal) => {
        /// One-operand MUL or IMUL: low and high half of the product.
        pub(crate) fn $name(a: u64, b: u64, size: u64, flags: &mut ArithFlags) -> (u64, u64) {
            let (low, high): (u64, u64);
            // SAFETY: registers and flags only.
            unsafe {
                match size {
                    1 => asm!("add al, 0x7f", "sahf", "mov rax, {a}", $text8,
                        "movzx {low:e}, ax", "lahf", "seto al",
                        a = in(reg) a, b = in(reg_byte) b as u8, low = lateout(reg) low,
                        out("rdx") high, inout("ax") flags.0, options(pure, nomem, nostack)),
                    2 => asm!("add al, 0x7f", "sahf", "mov rax, {a}", $text16,
                        "movzx {low:e}, ax", "movzx edx, dx", "lahf", "seto al",
                        a = in(reg) a, b = in(reg) b, low = lateout(reg) low,
                        out("rdx") high, inout("ax") flags.0, options(pure, nomem, nostack)),
                    4 => asm!("add al, 0x7f", "sahf", "mov rax, {a}", $text32,
                        "mov {low:e}, eax", "mov edx, edx", "lahf", "seto al",
                        a = in(reg) a, b = in(reg) b, low = lateout(reg) low,
                        out("rdx") high, inout("ax") flags.0, options(pure, nomem, nostack)),
                    _ => asm!("add al, 0x7f", "sahf", "mov rax, {a}", $text64,
                        "mov {low}, rax", "lahf", "seto al",
                        a = in(reg) a, b = in(reg) b, low = lateout(reg) low,
                        out("rdx") high, inout("ax") flags.0, options(pure, nomem, nostack)),
                }
            }
            (low, if size == 1 { 0 } else { high })
        }
    };
}
widening!(mul, "mul {b}", "mul {b:x}", "mul {b:e}", "mul {b}");
widening!(imul, "imul {b}", "imul {b:x}", "imul {b:e}", "imul {b}");

macro_rules! dividing {
    ($name:ident, $text8:literal, $text16:literal, $text32:literal, $text64:literal) => {
        /// DIV or IDIV of `high:low`: quotient and remainder. The divisor is
        /// not 0 and the quotient fits: the caller has seen to it. The flags
        /// are undefined, and not the same for every operand.
        pub(crate) fn $name(
            low: u64,
            high: u64,
            b: u64,
            size: u64,
            flags: &mut ArithFlags,
        ) -> (u64, u64) {
            let (mut rest, result) = (high, low);
            let quotient: u64;
            // SAFETY: registers and flags only; no #DE, as said above.
            unsafe {
                match size {
                    1 => asm!("add al, 0x7f", "sahf", "mov rax, {q}", $text8,
                        "movzx edx, ah", "movzx {q:e}, al", "lahf", "seto al",
                        q = inout(reg_abcd) (high << 8 | low & 0xff) => quotient,
                        b = in(reg_byte) b as u8, inout("ax") flags.0,
                        inout("rdx") rest, options(pure, nomem, nostack)),
                    2 => asm!("add al, 0x7f", "sahf", "mov rax, {q}", $text16,
                        "mov {q}, rax", "lahf", "seto al",
                        q = inout(reg) result => quotient, b = in(reg) b,
                        inout("ax") flags.0, inout("rdx") rest, options(pure, nomem, nostack)),
                    4 => asm!("add al, 0x7f", "sahf", "mov rax, {q}", $text32,
                        "mov {q}, rax", "lahf", "seto al",
                        q = inout(reg) result => quotient, b = in(reg) b,
                        inout("ax") flags.0, inout("rdx") rest, options(pure, nomem, nostack)),
                    _ => asm!("add al, 0x7f", "sahf", "mov rax, {q}", $text64,
                        "mov {q}, rax", "lahf", "seto al",
                        q = inout(reg) result => quotient, b = in(reg) b,
                        inout("ax") flags.0, inout("rdx") rest, options(pure, nomem, nostack)),
                }
            }
            (quotient, rest)
        }
    };
}
dividing!(div, "div {b}", "div {b:x}", "div {b:e}", "div {b}");
dividing!(idiv, "idiv {b}", "idiv {b:x}", "idiv {b:e}", "idiv {b}");

/// CRC32 of 1, 2, 4 or 8 bytes.
pub(crate) fn crc32(crc: u32, value: u64, size: u64) -> u32 {
    let mut wide = u64::from(crc);
    // SAFETY: registers only; CPUID offers CRC32 only where the host has it.
    unsafe {
        match size {
            1 => {
                asm!("crc32 {0:e}, {1}", inout(reg) wide, in(reg_byte) value as u8, options(pure, nomem, nostack))
            }
            2 => {
                asm!("crc32 {0:e}, {1:x}", inout(reg) wide, in(reg) value, options(pure, nomem, nostack))
            }
            4 => {
                asm!("crc32 {0:e}, {1:e}", inout(reg) wide, in(reg) value, options(pure, nomem, nostack))
            }
            _ => {
                asm!("crc32 {0}, {1}", inout(reg) wide, in(reg) value, options(pure, nomem, nostack))
            }
        }
    }
    wide as u32
}

/// RDRAND or RDSEED: a value, if the host had one ready.
pub(crate) fn random(seed: bool) -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: registers only; CPUID offers these only where the host has them.
    unsafe {
        if seed {
            asm!("rdseed {0}", "setc {1}", out(reg) value, out(reg_byte) ok, options(nomem, nostack));
        } else {
            asm!("rdrand {0}", "setc {1}", out(reg) value, out(reg_byte) ok, options(nomem, nostack));
        }
    }
    (ok != 0).then_some(value)
}

macro_rules! exchange {
    ($name:ident, $what:literal, $t8:literal, $t16:literal, $t32:literal, $t64:literal) => {
        #[doc = $what]
        pub(crate) fn $name(at: *mut u8, value: u64, size: u64) -> u64 {
            // SAFETY: `at` lies in a writable guest page (the rule of `host`).
            unsafe {
                match size {
                    1 => {
                        let mut v = value as u8;
                        asm!($t8, at = in(reg) at, v = inout(reg_byte) v, options(nostack));
                        u64::from(v)
                    }
                    2 => {
                        let mut v = value as u16;
                        asm!($t16, at = in(reg) at, v = inout(reg) v, options(nostack));
                        u64::from(v)
                    }
                    4 => {
                        let mut v = value as u32;
                        asm!($t32, at = in(reg) at, v = inout(reg) v, options(nostack));
                        u64::from(v)
                    }
                    _ => {
                        let mut v = value;
                        asm!($t64, at = in(reg) at, v = inout(reg) v, options(nostack));
                        v
                    }
                }
            }
        }
    };
}
exchange!(
    xchg,
    "Atomic exchange with guest memory: the old value.",
    "xchg [{at}], {v}",
    "xchg [{at}], {v:x}",
    "xchg [{at}], {v:e}",
    "xchg [{at}], {v}"
);
exchange!(
    xadd,
    "Atomic exchange-and-add on guest memory: the old value.",
    "lock xadd [{at}], {v}",
    "lock xadd [{at}], {v:x}",
    "lock xadd [{at}], {v:e}",
    "lock xadd [{at}], {v}"
);

/// Atomic compare-and-exchange on guest memory: the value that was there.
pub(crate) fn cmpxchg(at: *mut u8, expected: u64, new: u64, size: u64) -> u64 {
    let mut seen = expected;
    // SAFETY: `at` lies in a writable guest page (the rule of `host`).
    unsafe {
        match size {
            1 => asm!("lock cmpxchg [{at}], {new}", at = in(reg) at, new = in(reg_byte) new as u8,
                inout("rax") seen, options(nostack)),
            2 => asm!("lock cmpxchg [{at}], {new:x}", at = in(reg) at, new = in(reg) new,
                inout("rax") seen, options(nostack)),
            4 => asm!("lock cmpxchg [{at}], {new:e}", at = in(reg) at, new = in(reg) new,
                inout("rax") seen, options(nostack)),
            _ => asm!("lock cmpxchg [{at}], {new}", at = in(reg) at, new = in(reg) new,
                inout("rax") seen, options(nostack)),
        }
    }
    let bits = 8 * size;
    if bits >= 64 {
        seen
    } else {
        seen & ((1 << bits) - 1)
    }
}

/// Atomic 16-byte compare-and-exchange on guest memory: what was there, and
/// whether it was replaced. `at` is aligned to 16 bytes.
pub(crate) fn cmpxchg16(at: *mut u8, expected: u128, new: u128) -> (u128, bool) {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    let done: u8;
    // SAFETY: `at` lies in a writable guest page (the rule of `host`). RBX is
    // the compiler's: it is saved around the instruction.
    unsafe {
        asm!("xchg rbx, {new_low}", "lock cmpxchg16b xmmword ptr [{at}]", "sete {done}",
            "mov rbx, {new_low}",
            at = in(reg) at, new_low = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
            done = lateout(reg_byte) done, inout("rax") low, inout("rdx") high, options(nostack));
    }
    (u128::from(high) << 64 | u128::from(low), done != 0)
}
