//! The architectural state of one virtual processor.
//!
//! The layout is `repr(C)`: the translator's code will address these fields at
//! fixed offsets from one host register.

use crate::flags::ArithFlags;

/// General register numbers, as instructions encode them.
pub mod reg {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
    /// R11, the flags register of SYSCALL.
    pub const R11: usize = 11;
    /// Not a register: reads as 0, for absent base and index registers.
    pub const ZERO: usize = 16;
    /// Not a register: the instruction pointer of the current block's start,
    /// for RIP-relative operands.
    pub const BLOCK_RIP: usize = 17;
}

/// Segment register numbers, as instructions encode them, then LDTR and TR.
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
    /// LDTR.
    pub const LDTR: usize = 6;
    /// TR.
    pub const TR: usize = 7;
}

/// RFLAGS bits.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always set.
    pub const FIXED: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap (single step).
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, 2 bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, or SMAP override.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt flag.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID available.
    pub const ID: u64 = 1 << 21;
    /// The six status flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every bit that exists.
    pub const ALL: u64 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// Control register bits.
pub mod cr {
    /// CR0.PE, protected mode.
    pub const CR0_PE: u64 = 1 << 0;
    /// CR0.MP, monitor coprocessor.
    pub const CR0_MP: u64 = 1 << 1;
    /// CR0.EM, no x87.
    pub const CR0_EM: u64 = 1 << 2;
    /// CR0.TS, task switched.
    pub const CR0_TS: u64 = 1 << 3;
    /// CR0.ET, always set.
    pub const CR0_ET: u64 = 1 << 4;
    /// CR0.NE, native x87 error reporting.
    pub const CR0_NE: u64 = 1 << 5;
    /// CR0.WP, supervisor honours read-only.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0.AM, alignment checks allowed.
    pub const CR0_AM: u64 = 1 << 18;
    /// CR0.NW.
    pub const CR0_NW: u64 = 1 << 29;
    /// CR0.CD, caches disabled.
    pub const CR0_CD: u64 = 1 << 30;
    /// CR0.PG, paging.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4.VME.
    pub const CR4_VME: u64 = 1 << 0;
    /// CR4.PVI.
    pub const CR4_PVI: u64 = 1 << 1;
    /// CR4.TSD, RDTSC is privileged.
    pub const CR4_TSD: u64 = 1 << 2;
    /// CR4.DE, debugging extensions.
    pub const CR4_DE: u64 = 1 << 3;
    /// CR4.PSE, 4 MiB pages.
    pub const CR4_PSE: u64 = 1 << 4;
    /// CR4.PAE.
    pub const CR4_PAE: u64 = 1 << 5;
    /// CR4.MCE.
    pub const CR4_MCE: u64 = 1 << 6;
    /// CR4.PGE, global pages.
    pub const CR4_PGE: u64 = 1 << 7;
    /// CR4.PCE, RDPMC at any level.
    pub const CR4_PCE: u64 = 1 << 8;
    /// CR4.OSFXSR, SSE enabled.
    pub const CR4_OSFXSR: u64 = 1 << 9;
    /// CR4.OSXMMEXCPT, #XM instead of #UD.
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    /// CR4.UMIP.
    pub const CR4_UMIP: u64 = 1 << 11;
    /// CR4.FSGSBASE.
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    /// CR4.PCIDE.
    pub const CR4_PCIDE: u64 = 1 << 17;
    /// CR4.OSXSAVE.
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    /// CR4.SMEP.
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4.SMAP.
    pub const CR4_SMAP: u64 = 1 << 21;
    /// EFER.SCE, SYSCALL enabled.
    pub const EFER_SCE: u64 = 1 << 0;
    /// EFER.LME, long mode wanted.
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER.LMA, long mode active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER.NXE, execute-disable.
    pub const EFER_NXE: u64 = 1 << 11;
}

/// A segment register with its hidden part, or LDTR or TR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// The base, linear.
    pub base: u64,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// Attributes: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15
    /// (as HV_X64_SEGMENT_REGISTER), and [`Segment::UNUSABLE`].
    pub attributes: u32,
    /// The selector.
    pub selector: u16,
}

impl Segment {
    /// Loaded with a null selector: any use faults.
    pub const UNUSABLE: u32 = 1 << 16;

    /// DPL, 0 to 3.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// The type field with S: 0x10 and above are code and data.
    pub fn kind(&self) -> u32 {
        self.attributes & 0x1f
    }

    /// The D/B bit.
    pub fn big(&self) -> bool {
        self.attributes & 1 << 14 != 0
    }

    /// The L bit.
    pub fn long(&self) -> bool {
        self.attributes & 1 << 13 != 0
    }

    /// The P bit.
    pub fn present(&self) -> bool {
        self.attributes & 1 << 7 != 0
    }

    /// Loaded with a null selector.
    pub fn unusable(&self) -> bool {
        self.attributes & Self::UNUSABLE != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Model-specific registers that the processor owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Msrs {
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KernelGSBase.
    pub kernel_gs_base: u64,
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// The eight variable MTRRs: base and mask in turn.
    pub mtrr_variable: [u64; 16],
    /// The eleven fixed MTRRs: 64K_00000, 16K_80000, 16K_A0000, 4K_C0000 … 4K_F8000.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
}

/// x87, MMX, SSE and AVX state, laid out as an XSAVE area in standard format.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Fpu {
    /// The 512-byte FXSAVE64 image. The interpreter keeps the registers here.
    pub fxsave: [u8; 512],
    /// Where an XSAVE area has XSTATE_BV. 0: the upper halves of all YMM
    /// registers are zero, whatever `upper` holds. [`Fpu::UPPER_USED`]: they
    /// are in `upper`.
    pub upper_used: u64,
    /// The rest of an XSAVE header.
    header: [u8; 56],
    /// Upper halves of YMM0 to YMM15 where `upper_used` says so; see
    /// [`Fpu::upper`].
    pub upper: [u8; 256],
}

impl Fpu {
    /// Offset of XMM0 in the FXSAVE image; registers are 16 bytes apart.
    pub const XMM: usize = 160;
    /// Offset of ST0/MM0; registers are 16 bytes apart.
    pub const ST: usize = 32;
    /// Offset of MXCSR.
    pub const MXCSR: usize = 24;
    /// Offset of YMM0's upper half in an XSAVE area; they are 16 bytes apart.
    pub const UPPER: usize = 576;
    /// [`Fpu::upper_used`] while upper halves may differ from zero: XCR0's bit.
    pub const UPPER_USED: u64 = 4;

    /// The state after reset: FCW 0x40, MXCSR 0x1F80, all else 0.
    pub fn power_on() -> Self {
        let mut fpu = Self {
            fxsave: [0; 512],
            upper_used: 0,
            header: [0; 56],
            upper: [0; 256],
        };
        fpu.fxsave[0] = 0x40;
        fpu.set_mxcsr(0x1f80);
        fpu
    }

    /// XMM register `index`, 0 to 15.
    #[inline]
    pub fn xmm(&self, index: usize) -> u128 {
        let at = Self::XMM + 16 * (index & 15);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.fxsave[at..at + 16]);
        u128::from_le_bytes(bytes)
    }

    /// Writes XMM register `index`, 0 to 15.
    #[inline]
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        let at = Self::XMM + 16 * (index & 15);
        self.fxsave[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    /// Bits 255:128 of YMM register `index`, 0 to 15.
    #[inline]
    pub fn upper(&self, index: usize) -> u128 {
        if self.upper_used == 0 {
            return 0;
        }
        let at = 16 * (index & 15);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.upper[at..at + 16]);
        u128::from_le_bytes(bytes)
    }

    /// Writes bits 255:128 of YMM register `index`, 0 to 15.
    #[inline]
    pub fn set_upper(&mut self, index: usize, value: u128) {
        self.use_upper();
        let at = 16 * (index & 15);
        self.upper[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    /// Brings the upper halves into memory.
    #[inline]
    pub fn use_upper(&mut self) {
        if self.upper_used == 0 {
            self.upper.fill(0);
            self.upper_used = Self::UPPER_USED;
        }
    }

    /// MXCSR.
    #[inline]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes([
            self.fxsave[24],
            self.fxsave[25],
            self.fxsave[26],
            self.fxsave[27],
        ])
    }

    /// Writes MXCSR.
    #[inline]
    pub fn set_mxcsr(&mut self, value: u32) {
        self.fxsave[24..28].copy_from_slice(&value.to_le_bytes());
    }
}

/// The architectural state of one virtual processor.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, then a zero and the
    /// block's instruction pointer (see [`reg`]); the rest is unused and makes
    /// every 5-bit number a valid index.
    pub gpr: [u64; 32],
    /// The instruction pointer (an offset into CS).
    pub rip: u64,
    /// RFLAGS without the six status flags; bit 1 is set.
    pub system_flags: u64,
    /// The status flags.
    pub arith: ArithFlags,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub seg: [Segment; 8],
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PAE page-directory pointers, as loaded with CR3.
    pub pdpte: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Guest TSC minus host TSC.
    pub tsc_offset: u64,
    /// MSRs.
    pub msr: Msrs,
    /// x87 and SSE.
    pub fpu: Fpu,
}

impl State {
    /// The state after power-on (SDM 3A table 9-1).
    pub fn power_on() -> Self {
        let data = Segment {
            base: 0,
            limit: 0xffff,
            attributes: 0x93,
            selector: 0,
        };
        let mut state = Self {
            gpr: [0; 32],
            rip: 0xfff0,
            system_flags: rflags::FIXED,
            arith: ArithFlags::default(),
            seg: [data; 8],
            gdtr: Table {
                base: 0,
                limit: 0xffff,
            },
            idtr: Table {
                base: 0,
                limit: 0xffff,
            },
            cr0: cr::CR0_CD | cr::CR0_NW | cr::CR0_ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            cpl: 0,
            tsc_offset: 0,
            msr: Msrs {
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                ..Msrs::default()
            },
            fpu: Fpu::power_on(),
        };
        state.seg[seg::CS] = Segment {
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: 0x9b,
            selector: 0xf000,
        };
        state.seg[seg::LDTR].attributes = 0x82;
        state.seg[seg::TR].attributes = 0x8b;
        state
    }

    /// RFLAGS.
    #[inline]
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.arith.bits()
    }

    /// Writes all of RFLAGS; reserved bits are dropped. The caller updates
    /// what depends on it ([`crate::Vp::mode_changed`]).
    #[inline]
    pub fn set_rflags(&mut self, value: u64) {
        self.arith = ArithFlags::from_bits(value);
        self.system_flags = (value & rflags::ALL & !rflags::ARITH) | rflags::FIXED;
    }

    /// CR0.PE.
    #[inline]
    pub fn protected(&self) -> bool {
        self.cr0 & cr::CR0_PE != 0
    }

    /// EFER.LMA.
    #[inline]
    pub fn long_mode(&self) -> bool {
        self.efer & cr::EFER_LMA != 0
    }

    /// 64-bit code is running.
    #[inline]
    pub fn code64(&self) -> bool {
        self.long_mode() && self.seg[seg::CS].long()
    }

    /// Virtual-8086 mode.
    #[inline]
    pub fn v86(&self) -> bool {
        self.system_flags & rflags::VM != 0
    }

    /// Real or virtual-8086 mode: segments are paragraphs.
    #[inline]
    pub fn real_segments(&self) -> bool {
        !self.protected() || self.v86()
    }

    /// IOPL, 0 to 3.
    #[inline]
    pub fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }
}
