//! Segment loads and far transfers with their selector error codes (Intel SDM 3A 5).

use guest_kit::segments::{self, selector, set_descriptor};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check_eq, check_ok, insn, options};

use crate::{at, expect_fault};

/// Free descriptor slots of this test.
const SLOT: u16 = selector::FREE;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const PRESENT: u64 = 1 << 47;

macro_rules! load {
    ($segment:literal, $selector:expr) => {
        at!([] $segment; selector = in(reg) u64::from($selector))
    };
}

pub fn segment_loads() {
    let beyond = (segments::SLOTS * 8) as u16;
    let (gp, np, ss) = (vector::GP, vector::NP, vector::SS);
    expect_fault(
        "#GP: DS selector beyond the table",
        load!("mov ds, {selector:x}", beyond | 3),
        gp,
        u64::from(beyond),
    );
    set_descriptor(SLOT, DATA & !PRESENT);
    expect_fault(
        "#NP: DS not present",
        load!("mov ds, {selector:x}", SLOT),
        np,
        u64::from(SLOT),
    );
    expect_fault(
        "#NP: FS not present",
        load!("mov fs, {selector:x}", SLOT),
        np,
        u64::from(SLOT),
    );
    expect_fault(
        "#SS: SS not present",
        load!("mov ss, {selector:x}", SLOT),
        ss,
        u64::from(SLOT),
    );
    expect_fault(
        "#GP: SS with a different RPL",
        load!("mov ss, {selector:x}", selector::DATA | 3),
        gp,
        u64::from(selector::DATA),
    );
    expect_fault(
        "#GP: SS with a code segment",
        load!("mov ss, {selector:x}", selector::CODE64),
        gp,
        u64::from(selector::CODE64),
    );
    expect_fault(
        "#GP: SS with a more outward segment",
        load!("mov ss, {selector:x}", selector::USER_DATA & !3),
        gp,
        u64::from(selector::USER_DATA & !3),
    );
    // Execute-only code cannot be loaded as data.
    set_descriptor(SLOT, 0x00cf_9900_0000_ffff);
    expect_fault(
        "#GP: DS with execute-only code",
        load!("mov ds, {selector:x}", SLOT),
        gp,
        u64::from(SLOT),
    );
    set_descriptor(SLOT, DATA & !(2 << 40));
    expect_fault(
        "#GP: SS with read-only data",
        load!("mov ss, {selector:x}", SLOT),
        gp,
        u64::from(SLOT),
    );
    expect_fault(
        "#GP: DS with a task descriptor",
        load!("mov ds, {selector:x}", selector::TASK),
        gp,
        u64::from(selector::TASK),
    );
    expect_fault(
        "#GP: DS from an absent LDT",
        load!("mov ds, {selector:x}", 0x0cu16),
        gp,
        0x0c,
    );
    accepted_loads();
}

fn accepted_loads() {
    check_ok!(
        attempt(|| insn!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", in(reg) 0)),
        "null selectors in data segments"
    );
    check_ok!(
        attempt(|| insn!("mov ss, {0:e}", "mov ss, {1:e}", in(reg) 0, in(reg) 0x10)),
        "null SS at privilege level 0 in 64-bit mode"
    );
    set_descriptor(SLOT, DATA & !(1 << 40));
    insn!("mov ds, {0:x}", in(reg) SLOT);
    check_eq!(
        descriptor(SLOT) >> 40 & 1,
        1,
        "loading sets the accessed bit"
    );
    insn!("mov ds, {0:x}", "mov es, {0:x}", in(reg) selector::DATA);
    let (limit, rights, readable): (u64, u64, u8);
    insn!("lsl {l}, {s}", "lar {r}, {s}", "verw {s:x}", "setz {z}",
        l = out(reg) limit, r = out(reg) rights, z = out(reg_byte) readable,
        s = in(reg) u64::from(selector::DATA));
    check_eq!(limit, 0xffff_ffff, "LSL of flat data");
    check_eq!(rights & 0x00f0_ff00, 0x00c0_9300, "LAR of flat data");
    check_eq!(readable, 1, "VERW of writable data");
    let (writable, code, found): (u8, u8, u8);
    insn!("verw {c:x}", "setz {w}", "verr {c:x}", "setz {r}", "lar {t:e}, {n:e}", "setz {f}",
        w = out(reg_byte) writable, r = out(reg_byte) code, f = out(reg_byte) found,
        t = out(reg) _, c = in(reg) u64::from(selector::CODE64), n = in(reg) 0u64);
    check_eq!(
        (writable, code, found),
        (0, 1, 0),
        "VERW and VERR of code, LAR of null"
    );
}

fn descriptor(selector: u16) -> u64 {
    let mut pointer = [0u8; 10];
    insn!("sgdt [{}]", in(reg) pointer.as_mut_ptr());
    let base = u64::from_le_bytes([
        pointer[2], pointer[3], pointer[4], pointer[5], pointer[6], pointer[7], pointer[8],
        pointer[9],
    ]);
    guest_kit::memory::read64(base + u64::from(selector & !7))
}

pub fn far_transfers() {
    let gp = vector::GP;
    macro_rules! far_return {
        ($selector:expr, $target:expr) => {
            at!(["push {selector}", "push {target}"] "retfq", "66:";
                selector = in(reg) u64::from($selector), target = in(reg) $target)
        };
    }
    expect_fault("#GP: far return to null", far_return!(0u16, 0u64), gp, 0);
    expect_fault(
        "#GP: far return to data",
        far_return!(selector::DATA, 0u64),
        gp,
        u64::from(selector::DATA),
    );
    expect_fault(
        "#GP: far return inward",
        far_return!(selector::USER_CODE64 & !3, 0u64),
        gp,
        u64::from(selector::USER_CODE64 & !3),
    );
    set_descriptor(SLOT, 0x00af_9b00_0000_ffff & !PRESENT);
    expect_fault(
        "#NP: far return to absent code",
        far_return!(SLOT, 0u64),
        vector::NP,
        u64::from(SLOT),
    );
    // L and D together are reserved.
    set_descriptor(SLOT, 0x00ef_9b00_0000_ffff);
    expect_fault(
        "#GP: far return to L and D",
        far_return!(SLOT, 0u64),
        gp,
        u64::from(SLOT),
    );
    let null: u64 = 0;
    expect_fault(
        "#GP: far jump to null",
        at!("jmp fword ptr [{p}]"; p = in(reg) &raw const null),
        gp,
        0,
    );
    let own: [u16; 4] = [0, 0, selector::DATA, 0];
    expect_fault(
        "#GP: far call to data",
        at!("call fword ptr [{p}]"; p = in(reg) own.as_ptr()),
        gp,
        u64::from(selector::DATA),
    );
    let task: [u16; 4] = [0, 0, selector::TASK, 0];
    expect_fault(
        "#GP: far jump to a task in long mode",
        at!("jmp fword ptr [{p}]"; p = in(reg) task.as_ptr()),
        gp,
        u64::from(selector::TASK),
    );
}

pub fn system_segments() {
    let gp = vector::GP;
    expect_fault(
        "#GP: LTR of a busy task",
        at!("ltr {s:x}"; s = in(reg) selector::TASK),
        gp,
        u64::from(selector::TASK),
    );
    expect_fault(
        "#GP: LTR of data",
        at!("ltr {s:x}"; s = in(reg) selector::DATA),
        gp,
        u64::from(selector::DATA),
    );
    if !options::lenient() {
        expect_fault(
            "#GP: LTR of null",
            at!("ltr {s:x}"; s = in(reg) 0u16),
            gp,
            0,
        );
    }
    expect_fault(
        "#GP: LLDT of data",
        at!("lldt {s:x}"; s = in(reg) selector::DATA),
        gp,
        u64::from(selector::DATA),
    );
    let [low, high] = segments::system_descriptor(segments::tss(), 0xff, 0x82);
    set_descriptor(SLOT, low & !PRESENT);
    set_descriptor(SLOT + 8, high);
    expect_fault(
        "#NP: LLDT not present",
        at!("lldt {s:x}"; s = in(reg) SLOT),
        vector::NP,
        u64::from(SLOT),
    );
    let table = [0u64, DATA, 0, 0];
    let [low, high] = segments::system_descriptor(table.as_ptr() as u64, 31, 0x82);
    set_descriptor(SLOT, low);
    set_descriptor(SLOT + 8, high);
    insn!("lldt {0:x}", in(reg) SLOT);
    check_ok!(
        attempt(|| insn!("mov ds, {0:e}", "mov ds, {1:e}", in(reg) 0x0c, in(reg) 0x10)),
        "segment from the LDT"
    );
    expect_fault(
        "#GP: selector beyond the LDT",
        at!("mov ds, {s:x}"; s = in(reg) 0x24u16),
        gp,
        0x24,
    );
    insn!("lldt {0:x}", in(reg) 0u16);
    let task: u64;
    insn!("str {0}", out(reg) task);
    check_eq!(task, u64::from(selector::TASK), "STR");
}
