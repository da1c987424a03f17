//! What of two states is compared.

use crate::Vp;
use crate::state::State;
use crate::vp::attention;

/// General registers and RIP: what differs first.
pub(super) fn registers_equal(one: &State, other: &State) -> bool {
    one.rip == other.rip && one.gpr[..16] == other.gpr[..16]
}

/// Everything but memory and status flags.
pub(super) fn equal(one: &Vp, other: &Vp) -> bool {
    registers_equal(&one.state, &other.state)
        && rest_equal(&one.state, &other.state)
        && inner_equal(one, other)
}

fn rest_equal(a: &State, b: &State) -> bool {
    a.system_flags == b.system_flags
        && a.cpl == b.cpl
        && a.seg == b.seg
        && (a.gdtr, a.idtr) == (b.gdtr, b.idtr)
        && (a.cr0, a.cr2, a.cr3, a.cr4) == (b.cr0, b.cr2, b.cr3, b.cr4)
        && (a.efer, a.xcr0, a.pdpte) == (b.efer, b.xcr0, b.pdpte)
        && (a.dr, a.dr6, a.dr7) == (b.dr, b.dr6, b.dr7)
        && a.tsc_offset == b.tsc_offset
        && a.msr == b.msr
        && a.fpu.fxsave == b.fpu.fxsave
        && (0..16).all(|number| a.fpu.upper(number) == b.fpu.upper(number))
}

fn inner_equal(a: &Vp, b: &Vp) -> bool {
    let windows = attention::WINDOW | attention::NMI_WINDOW;
    (a.attention ^ b.attention) & !windows == 0
        && a.nmi_blocked == b.nmi_blocked
        && a.debug_pending == b.debug_pending
        && a.shutdown == b.shutdown
}

/// Everything, by name.
pub(crate) fn values(state: &State) -> Vec<(String, u64)> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut all: Vec<(String, u64)> = Vec::new();
    for (name, &value) in NAMES.iter().zip(&state.gpr) {
        all.push(((*name).to_owned(), value));
    }
    for (name, value) in [
        ("rip", state.rip),
        ("rflags", state.rflags()),
        ("cpl", u64::from(state.cpl)),
        ("cr0", state.cr0),
        ("cr2", state.cr2),
        ("cr3", state.cr3),
        ("cr4", state.cr4),
        ("efer", state.efer),
        ("xcr0", state.xcr0),
        ("dr6", state.dr6),
        ("dr7", state.dr7),
        ("gdtr", state.gdtr.base),
        ("idtr", state.idtr.base),
        ("star", state.msr.star),
        ("lstar", state.msr.lstar),
        ("sfmask", state.msr.sfmask),
        ("kernel_gs_base", state.msr.kernel_gs_base),
        ("tsc_aux", state.msr.tsc_aux),
    ] {
        all.push((name.to_owned(), value));
    }
    let segments = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];
    for (name, segment) in segments.iter().zip(&state.seg) {
        all.push(((*name).to_owned(), u64::from(segment.selector)));
        all.push((format!("{name}.base"), segment.base));
        all.push((format!("{name}.limit"), u64::from(segment.limit)));
        all.push((format!("{name}.attributes"), u64::from(segment.attributes)));
    }
    let image = state.fpu.fxsave.chunks_exact(8);
    for (i, chunk) in image.enumerate() {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        let name = match i * 8 {
            24 => "mxcsr".to_owned(),
            at @ 32..160 => format!("st{}+{}", (at - 32) / 16, at % 16),
            at @ 160..416 => format!("xmm{}+{}", (at - 160) / 16, at % 16),
            at => format!("xsave+{at}"),
        };
        all.push((name, u64::from_le_bytes(bytes)));
    }
    for number in 0..16 {
        let upper = state.fpu.upper(number);
        all.push((format!("ymm{number}+16"), upper as u64));
        all.push((format!("ymm{number}+24"), (upper >> 64) as u64));
    }
    all
}
