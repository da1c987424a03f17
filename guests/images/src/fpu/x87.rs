//! x87 arithmetic, register stack and environment.

use guest_kit::{check_eq, insn};

/// Stores a double computed by x87 instructions.
macro_rules! x87 {
    ($($code:literal),+ $(; $($operands:tt)*)?) => {{
        let mut result = 0f64;
        insn!("fninit", $($code),+, "fstp qword ptr [{out}]", "fninit",
            out = in(reg) &raw mut result, $($($operands)*)?);
        result.to_bits()
    }};
}

pub fn arithmetic() {
    check_eq!(x87!("fld1", "fadd st, st"), 2f64.to_bits(), "1 + 1");
    check_eq!(x87!("fldpi"), core::f64::consts::PI.to_bits(), "FLDPI");
    check_eq!(
        x87!("fldl2e"),
        core::f64::consts::LOG2_E.to_bits(),
        "FLDL2E"
    );
    check_eq!(
        x87!("fld1", "fadd st, st", "fsqrt"),
        2f64.sqrt_bits(),
        "FSQRT"
    );
    check_eq!(x87!("fld1", "fchs"), (-1f64).to_bits(), "FCHS");
    check_eq!(x87!("fld1", "fchs", "fabs"), 1f64.to_bits(), "FABS");
    check_eq!(x87!("fldpi", "frndint"), 3f64.to_bits(), "FRNDINT");
    let seven = 7i32;
    check_eq!(
        x87!("fild dword ptr [{n}]", "fld1", "fadd st, st", "fdivp st(1), st";
            n = in(reg) &raw const seven),
        3.5f64.to_bits(),
        "FILD and FDIVP"
    );
    check_eq!(
        x87!("fld1", "fadd st, st", "fild dword ptr [{n}]", "fprem", "fstp st(1)";
            n = in(reg) &raw const seven),
        1f64.to_bits(),
        "FPREM"
    );
    check_eq!(
        x87!("fild dword ptr [{n}]", "fld1", "fscale", "fstp st(1)"; n = in(reg) &raw const seven),
        128f64.to_bits(),
        "FSCALE"
    );
}

trait SqrtBits {
    fn sqrt_bits(self) -> u64;
}

impl SqrtBits for f64 {
    fn sqrt_bits(self) -> u64 {
        let root: u64;
        insn!("movq {x}, {v}", "sqrtsd {x}, {x}", "movq {r}, {x}",
            x = out(xmm_reg) _, v = in(reg) self.to_bits(), r = out(reg) root);
        root
    }
}

/// The status word after some instructions.
macro_rules! status {
    ($($code:literal),+) => {{
        let status: u16;
        insn!("fninit", $($code,)+ "fnstsw ax", "fninit", out("ax") status);
        status
    }};
}

pub fn stack() {
    check_eq!(status!("fnop"), 0, "FNINIT clears the status");
    check_eq!(status!("fld1") >> 11 & 7, 7, "a load decrements TOP");
    check_eq!(
        status!("fld1", "fstp st(0)") >> 11 & 7,
        0,
        "a pop increments it"
    );
    check_eq!(status!("fincstp") >> 11 & 7, 1, "FINCSTP");
    check_eq!(status!("fdecstp") >> 11 & 7, 7, "FDECSTP");
    check_eq!(
        status!("fstp st(0)") & 0x241,
        0x41,
        "underflow of the stack: IE, SF, C1 clear"
    );
    check_eq!(
        status!(
            "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1"
        ) & 0x241,
        0x241,
        "overflow of the stack: IE, SF, C1 set"
    );
    check_eq!(
        status!("fldz", "fld1", "fcompp") & 0x4500,
        0,
        "FCOM: 1 is above 0"
    );
    check_eq!(
        status!("fld1", "fldz", "fcompp") & 0x4500,
        0x100,
        "FCOM: 0 is below 1"
    );
    check_eq!(
        status!("fld1", "fld1", "fcompp") & 0x4500,
        0x4000,
        "FCOM: equal"
    );
    check_eq!(status!("fldz", "fxam") & 0x4700, 0x4000, "FXAM of zero");
    check_eq!(
        status!("fld1", "fchs", "fxam") & 0x4700,
        0x600,
        "FXAM of a negative number"
    );
    check_eq!(
        status!("fxam") & 0x4500,
        0x4100,
        "FXAM of an empty register"
    );
    let flags: u64;
    insn!("fninit", "fldz", "fld1", "fcomi st, st(1)", "pushfq", "pop {f}", "fninit",
        f = out(reg) flags);
    check_eq!(flags & 0x45, 0, "FCOMI: above");
}

pub fn control() {
    let mut word = 0u16;
    insn!("fninit", "fnstcw [{}]", in(reg) &raw mut word);
    check_eq!(word, 0x37f, "control word after FNINIT");
    let third = |control: u16| {
        let mut result = 0u64;
        insn!("fninit", "fldcw [{c}]", "fld1", "fild dword ptr [{n}]", "fdivp st(1), st",
            "fstp qword ptr [{r}]", "fninit",
            c = in(reg) &raw const control, n = in(reg) &raw const THREE,
                r = in(reg) &raw mut result);
        result
    };
    static THREE: i32 = 3;
    check_eq!(
        third(0x27f),
        0x3fd5_5555_5555_5555,
        "1/3 rounded to nearest"
    );
    check_eq!(third(0xa7f), 0x3fd5_5555_5555_5556, "1/3 rounded up");
    check_eq!(third(0x67f), 0x3fd5_5555_5555_5555, "1/3 rounded down");
    check_eq!(
        third(0x07f),
        0x3fd5_5555_6000_0000,
        "1/3 in single precision"
    );
    let mut integer = 0i32;
    let half = 2.5f64;
    insn!("fninit", "fld qword ptr [{h}]", "fistp dword ptr [{i}]",
        h = in(reg) &raw const half, i = in(reg) &raw mut integer);
    check_eq!(integer, 2, "FISTP rounds to even");
    insn!("fninit", "fld qword ptr [{h}]", "fisttp dword ptr [{i}]",
        h = in(reg) &raw const half, i = in(reg) &raw mut integer);
    check_eq!(integer, 2, "FISTTP truncates");
}

pub fn environment() {
    let mut saved = [0u8; 28];
    let mut state = [0u8; 108];
    insn!("fninit", "fld1", "fldpi", "fnstenv [{}]", in(reg) saved.as_mut_ptr());
    check_eq!(
        u16::from_le_bytes([saved[4], saved[5]]) >> 11 & 7,
        6,
        "TOP in the environment"
    );
    check_eq!(
        u16::from_le_bytes([saved[8], saved[9]]),
        0x0fff,
        "full tag word"
    );
    insn!("fninit", "fld1", "fldpi", "fnsave [{}]", in(reg) state.as_mut_ptr());
    let mut after = 0u16;
    insn!("fnstsw [{}]", in(reg) &raw mut after);
    check_eq!(after, 0, "FNSAVE initialises");
    let mut back = 0f64;
    insn!("frstor [{s}]", "fstp st(0)", "fstp qword ptr [{b}]", "fninit",
        s = in(reg) state.as_ptr(), b = in(reg) &raw mut back);
    check_eq!(
        back.to_bits(),
        1f64.to_bits(),
        "FRSTOR brings the registers back"
    );
    check_eq!(
        (&state[28..36], u16::from_le_bytes([state[36], state[37]])),
        (
            &[0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9][..],
            0x4000
        ),
        "pi in 80 bits"
    );
}

pub fn mmx_alias() {
    let mut image = [0u8; 108];
    let value = 0x1122_3344_5566_7788u64;
    let (back, status): (u64, u16);
    insn!(
        "fninit", "movq mm3, {v}", "fnstsw ax", "movq {b}, mm3", "fnsave [{i}]",
        v = in(reg) value, i = in(reg) image.as_mut_ptr(), b = out(reg) back, out("ax") status,
    );
    check_eq!(back, value, "an MMX register keeps its value");
    check_eq!(status >> 11 & 7, 0, "MMX sets TOP to 0");
    check_eq!(
        u16::from_le_bytes([image[8], image[9]]) >> 6 & 3,
        2,
        "its tag says special"
    );
    let at = 28 + 3 * 10;
    check_eq!(
        u16::from_le_bytes([image[at + 8], image[at + 9]]),
        0xffff,
        "MMX sets the exponent to all ones"
    );
    let mut saved = [0u8; 28];
    insn!("movq mm0, {v}", "emms", "fnstenv [{s}]", "fninit",
        v = in(reg) value, s = in(reg) saved.as_mut_ptr());
    let tags = u16::from_le_bytes([saved[8], saved[9]]);
    check_eq!(tags, 0xffff, "EMMS empties the registers");
}
