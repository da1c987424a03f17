//! The state in which the processor starts.

use super::layout::{CODE, GDT, IDT, IDT64, STACK, TABLES, TABLES_PAE, TABLES32, TSS, TSS64};
use processor::{Segment, State, Table, cr, rflags, seg};

/// How the processor starts; bits of the second byte of an input.
pub mod option {
    /// At level 3, where the mode has levels.
    pub const USER: u8 = 1;
    /// Whole blocks at a time, see [`super::super::run`].
    pub const BLOCKS: u8 = 2;
    /// RFLAGS.IF.
    pub const INTERRUPTS: u8 = 4;
    /// RFLAGS.TF.
    pub const SINGLE_STEP: u8 = 8;
    /// A code breakpoint and a data breakpoint.
    pub const BREAKPOINTS: u8 = 16;
    /// CR0.AM and RFLAGS.AC.
    pub const ALIGNMENT: u8 = 32;
    /// Any MXCSR and x87 control word, unmasked exceptions among them.
    pub const UNMASKED: u8 = 64;
    /// SMEP, SMAP and UMIP.
    pub const PROTECTED: u8 = 128;
}

/// The modes; the first byte of an input selects one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// Protected mode, 16-bit code.
    Protected16,
    /// Protected mode, 32-bit code.
    Protected32,
    /// The same with 32-bit paging.
    Paging32,
    /// The same with PAE paging.
    Pae,
    /// 64-bit code.
    Long,
    /// 32-bit code in long mode.
    Compatibility,
    /// Virtual-8086 mode, under 32-bit paging.
    Virtual86,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 8] = [
        Self::Real,
        Self::Protected16,
        Self::Protected32,
        Self::Paging32,
        Self::Pae,
        Self::Long,
        Self::Compatibility,
        Self::Virtual86,
    ];

    /// The mode that a byte selects. 64-bit code is what guests run, so every
    /// second byte is that.
    pub fn of(byte: u8) -> Self {
        if byte & 0x80 != 0 {
            Self::Long
        } else {
            Self::ALL[usize::from(byte & 7)]
        }
    }

    fn long(self) -> bool {
        matches!(self, Self::Long | Self::Compatibility)
    }
}

/// Brings `state`, which is that after power-on, into `mode`.
pub fn enter(state: &mut State, mode: Mode, options: u8) {
    state.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE | cr::CR4_PSE | cr::CR4_PGE;
    state.xcr0 = 3;
    state.cr0 = cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
    let mut flags = rflags::FIXED;
    for (bit, flag) in [
        (option::INTERRUPTS, rflags::IF),
        (option::SINGLE_STEP, rflags::TF),
        (option::ALIGNMENT, rflags::AC),
    ] {
        if options & bit != 0 {
            flags |= flag;
        }
    }
    if options & option::ALIGNMENT != 0 {
        state.cr0 |= cr::CR0_AM;
    }
    if options & option::BREAKPOINTS != 0 {
        state.dr = [CODE + 3, 0x5000, 0x80, 0x5ffc];
        // 0: execution; 1: 8 bytes, stores; 2: I/O; 3: 4 bytes, all accesses.
        state.dr7 = 0x400 | 0xff | 0b1111_0010_1001_0000 << 16;
        state.cr4 |= cr::CR4_DE;
    }
    state.gdtr = Table {
        base: GDT,
        limit: 0xff,
    };
    state.idtr = Table {
        base: if mode.long() { IDT64 } else { IDT },
        limit: 0xfff,
    };
    segments(state, mode, options & option::USER != 0);
    paging(state, mode, options & option::PROTECTED != 0);
    match mode {
        Mode::Real => {
            state.idtr = Table {
                base: 0,
                limit: 0x3ff,
            }
        }
        Mode::Virtual86 => flags |= rflags::VM | rflags::IOPL,
        _ => state.cr0 |= cr::CR0_PE,
    }
    state.set_rflags(flags);
    state.rip = CODE;
    state.gpr[4] = STACK;
}

fn segments(state: &mut State, mode: Mode, user: bool) {
    let level = u8::from(user) * 3;
    let (code, attributes, limit) = match mode {
        Mode::Real | Mode::Virtual86 => (0, 0x9b, 0xffff),
        Mode::Protected16 => (0x50, 0x9b, 0xffff),
        Mode::Long => (if user { 0x48 } else { 0x38 }, 0xa09b, u32::MAX),
        _ => (if user { 0x18 } else { 0x08 }, 0xc09b, u32::MAX),
    };
    // Level 3 without a table entry of its own for 16-bit code: not offered.
    let level = match mode {
        Mode::Real | Mode::Protected16 => 0,
        Mode::Virtual86 => 3,
        _ => level,
    };
    let rights = u32::from(level) << 5;
    let (data, data_attributes) = match limit {
        0xffff => (0x58, 0x93),
        _ => (if user { 0x20 } else { 0x10 }, 0xc093),
    };
    let data = if code == 0 { 0 } else { data };
    state.cpl = level;
    for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[index] = Segment {
            base: 0,
            limit,
            attributes: data_attributes | rights,
            selector: data | u16::from(level & if code == 0 { 0 } else { 3 }),
        };
    }
    state.seg[seg::CS] = Segment {
        base: 0,
        limit,
        attributes: if mode == Mode::Virtual86 {
            0xf3
        } else {
            attributes | rights
        },
        selector: code | u16::from(level & if code == 0 { 0 } else { 3 }),
    };
    if mode != Mode::Real {
        let (base, limit) = if mode.long() {
            (TSS64, 0x67)
        } else {
            (TSS, 0xff)
        };
        let selector = if mode.long() { 0xa0 } else { 0x28 };
        state.seg[seg::TR] = Segment {
            base,
            limit,
            attributes: 0x8b,
            selector,
        };
        state.seg[seg::LDTR].attributes = 0x82 | Segment::UNUSABLE;
    }
}

fn paging(state: &mut State, mode: Mode, protected: bool) {
    if protected {
        state.cr4 |= cr::CR4_SMEP | cr::CR4_SMAP | cr::CR4_UMIP;
    }
    let (cr3, cr4, efer) = match mode {
        Mode::Real | Mode::Protected16 | Mode::Protected32 => return,
        Mode::Paging32 | Mode::Virtual86 => (TABLES32, 0, 0),
        Mode::Pae => (TABLES_PAE, cr::CR4_PAE, cr::EFER_NXE),
        Mode::Long | Mode::Compatibility => (
            TABLES,
            cr::CR4_PAE | cr::CR4_FSGSBASE,
            cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE | cr::EFER_SCE,
        ),
    };
    state.cr3 = cr3;
    state.cr4 |= cr4;
    state.efer = efer;
    state.cr0 |= cr::CR0_PE | cr::CR0_PG | cr::CR0_WP;
    if mode == Mode::Pae {
        state.pdpte = [TABLES + 0x2001, TABLES + 0x2001, 0, 0];
    }
    state.msr.lstar = super::layout::HANDLER;
    state.msr.star = 0x0013_0008 << 32 | super::layout::HANDLER;
    state.msr.sysenter_cs = 8;
    state.msr.sysenter_eip = super::layout::HANDLER;
    state.msr.sysenter_esp = super::layout::INNER_STACK;
}
