//! VEX-encoded instructions: AVX, AVX2, FMA, F16C, BMI1 and BMI2.
//!
//! Nearly all run as themselves through [`crate::native::VexForm`]; where a
//! memory operand lies within one page the stub accesses the guest's memory
//! itself, all checks having been made. Gathers ([`gather`]) and masked moves
//! ([`masked`]) touch only what their masks choose, element by element where
//! something may fault. [`unmasked`] is for guests that unmask exceptions of
//! MXCSR.
//!
//! The encodings exist in protected mode only; AVX instructions also want
//! CR4.OSXSAVE and both SSE and AVX in XCR0 (SDM 2A 2.3, table 2-14 on).

mod gather;
mod masked;
mod unmasked;

use crate::Vp;
use crate::decode::{Mode, Selected};
use crate::exec::fpu::{self, mxcsr::MASKED};
use crate::fault::{Fault, Step, Stop, vector as exception};
use crate::flags::ArithFlags;
use crate::mmu::Access;
use crate::native::{OPERANDS, Stub, VexForm, vex_feature};
use crate::op::{Op, OpFn};
use crate::state::{Fpu, cr, reg};
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};

/// XCR0 bits of SSE and AVX, both of which AVX wants.
pub(crate) const XCR0_AVX: u64 = 6;

/// Bits of [`Op::aux`].
mod flag {
    /// Has vector registers.
    pub(super) const VECTOR: u8 = 1;
    /// Reads or writes MXCSR.
    pub(super) const MXCSR: u8 = 2;
    /// Writes status flags.
    pub(super) const FLAGS: u8 = 4;
    /// Operands that the encoding does not name.
    pub(super) const IMPLICIT: u8 = 8;
    /// The memory operand is written.
    pub(super) const STORE: u8 = 16;
    /// The memory operand must be aligned to its size.
    pub(super) const ALIGNED: u8 = 32;
    /// PCMPISTRM and its kin: XMM0 is the result.
    pub(super) const XMM0: u8 = 64;
}

/// An operand in [`Op::imm`], 8 bits each above the stub's 32: kind and
/// register number.
mod operand {
    pub(super) const VECTOR: u8 = 0x10;
    pub(super) const GENERAL: u8 = 0x20;
    pub(super) const MEMORY: u8 = 0x30;
    pub(super) const KIND: u8 = 0x30;
}

/// The handler for a VEX-encoded instruction.
pub(crate) fn select(instruction: &Instruction, op: &mut Op, mode: Mode) -> Option<Selected> {
    let code = instruction.code();
    let features = code.cpuid_features();
    let offered = features.iter().all(|&feature| vex_feature(feature));
    if code.encoding() != EncodingKind::VEX || mode.real || !offered {
        return None;
    }
    let run = match instruction.mnemonic() {
        Mnemonic::Vzeroupper => zero_upper,
        Mnemonic::Vzeroall => zero_all,
        Mnemonic::Vldmxcsr => load_mxcsr,
        Mnemonic::Vstmxcsr => store_mxcsr,
        _ if instruction.is_vsib() => return gather::select(instruction, op),
        _ => masked::select(instruction, op).or_else(|| stub(instruction, op))?,
    };
    Selected::plain(run)
}

/// Fills in what [`run`] wants.
fn stub(instruction: &Instruction, op: &mut Op) -> Option<OpFn> {
    let form = VexForm::new(instruction)?;
    let mut imm = u64::from(form.stub()?);
    op.aux = 0;
    op.size = instruction.memory_size().size() as u8;
    for i in 0..instruction.op_count().min(OPERANDS as u32) {
        let kind = match instruction.op_kind(i) {
            OpKind::Memory => operand::MEMORY,
            OpKind::Register if instruction.op_register(i).is_gpr() => operand::GENERAL,
            OpKind::Register => operand::VECTOR,
            _ => continue,
        };
        if kind == operand::VECTOR {
            op.aux |= flag::VECTOR;
        }
        let number = match kind {
            operand::MEMORY => 0,
            _ => instruction.op_register(i).number() as u8 & 15,
        };
        imm |= u64::from(kind | number) << (32 + 8 * i);
    }
    op.imm = imm;
    // For `unmasked`.
    op.dst = fpu::Shape::of(instruction.mnemonic()).bits() as u8;
    let wide =
        op.size == 32 || (0..instruction.op_count()).any(|i| instruction.op_register(i).is_ymm());
    op.src = 1 + u8::from(wide);
    let mut set = |bit, on: bool| op.aux |= if on { bit } else { 0 };
    set(flag::MXCSR, form.uses_mxcsr());
    set(flag::FLAGS, form.writes_flags());
    set(flag::IMPLICIT, form.has_implicit());
    set(flag::STORE, instruction.op0_kind() == OpKind::Memory);
    set(flag::ALIGNED, is_aligned(instruction.mnemonic()));
    set(flag::XMM0, gives_mask(instruction.mnemonic()));
    Some(if op.aux & (flag::VECTOR | flag::MXCSR) == flag::VECTOR {
        plain
    } else {
        run
    })
}

/// The string comparisons whose result is XMM0.
fn gives_mask(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Vpcmpestrm | M::Vpcmpestrm64 | M::Vpcmpistrm)
}

/// The only ones whose memory operands must be aligned (SDM 1 14.9).
pub(crate) fn is_aligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    )
}

/// A pointer for every operand, and a store that is still to be made.
struct Operands {
    pointers: [*mut u8; OPERANDS],
    /// Page that the stub writes itself.
    page: Option<u32>,
    /// Linear address to copy staging memory to.
    store: Option<u64>,
}

impl Vp {
    /// AVX may be used: #UD unless the operating system has enabled it, then
    /// #NM with CR0.TS.
    #[inline(always)]
    pub(crate) fn check_avx(&mut self) -> Step {
        let state = &self.state;
        if state.cr4 & cr::CR4_OSXSAVE != 0
            && state.xcr0 & XCR0_AVX == XCR0_AVX
            && state.cr0 & cr::CR0_TS == 0
        {
            return Ok(());
        }
        self.avx_unavailable()
    }

    #[cold]
    fn avx_unavailable(&mut self) -> Step {
        let state = &self.state;
        if state.cr4 & cr::CR4_OSXSAVE == 0 || state.xcr0 & XCR0_AVX != XCR0_AVX {
            return Err(self.ud());
        }
        Err(self.raise(Fault::new(exception::NM, 0)))
    }

    /// Where vector register `number` lies for a stub.
    #[inline(always)]
    fn vector_pointer(&mut self, number: u8) -> *mut u8 {
        let base: *mut u8 = (&raw mut self.state.fpu).cast();
        base.wrapping_add(16 * usize::from(number & 15))
    }

    fn vex_operands(&mut self, op: &Op) -> Result<Operands, Stop> {
        let mut operands = Operands {
            pointers: [std::ptr::null_mut(); OPERANDS],
            page: None,
            store: None,
        };
        let mut described = op.imm >> 32;
        for i in 0..OPERANDS {
            let one = described as u8;
            described >>= 8;
            operands.pointers[i] = match one & operand::KIND {
                operand::VECTOR => self.vector_pointer(one),
                operand::GENERAL => (&raw mut self.state.gpr[usize::from(one & 15)]).cast(),
                operand::MEMORY => self.vex_memory(op, &mut operands)?,
                _ => continue,
            };
        }
        Ok(operands)
    }

    /// The memory operand: in place within a page, else staged.
    fn vex_memory(&mut self, op: &Op, operands: &mut Operands) -> Result<*mut u8, Stop> {
        let size = u64::from(op.size);
        let store = op.aux & flag::STORE != 0;
        let access = if store { Access::Write } else { Access::Read };
        let linear = self.linear(op, size, access)?;
        if op.aux & flag::ALIGNED != 0 {
            self.check_aligned(linear, size)?;
        }
        if store {
            if let Some((at, page)) = self.mmu.lookup_write(linear, size) {
                operands.page = Some(page);
                return Ok(at);
            }
            // What the stub does besides must not happen if the store faults.
            self.check_store(linear, size)?;
            operands.store = Some(linear);
        } else {
            if let Some(at) = self.mmu.lookup_read(linear, size) {
                return Ok(at);
            }
            let mut bytes = [0; 32];
            let length = bytes.len().min(usize::from(op.size));
            self.load_bytes(linear, &mut bytes[..length])?;
            self.native.frame.memory[..32].copy_from_slice(&bytes);
        }
        Ok(self.native.frame.memory.as_mut_ptr())
    }

    /// Makes the store that is left, and notices code that was overwritten.
    #[inline]
    fn vex_stored(&mut self, op: &Op, operands: &Operands) -> Step {
        if let Some(page) = operands.page {
            self.wrote(page);
        }
        if let Some(linear) = operands.store {
            let mut bytes = [0; 32];
            bytes.copy_from_slice(&self.native.frame.memory[..32]);
            let length = bytes.len().min(usize::from(op.size));
            self.store_bytes(linear, &bytes[..length])?;
        }
        Ok(())
    }

    fn vex_implicit(&mut self) {
        let frame = &mut self.native.frame;
        frame.rax = self.state.gpr[reg::RAX];
        frame.rcx = self.state.gpr[reg::RCX];
        frame.rdx = self.state.gpr[reg::RDX];
    }

    /// Takes over the results besides operands.
    fn vex_results(&mut self, op: &Op) {
        if op.aux & flag::FLAGS == 0 {
            return;
        }
        self.state.arith = ArithFlags(self.native.frame.flags);
        if op.aux & flag::IMPLICIT == 0 {
            return;
        }
        // The string comparisons.
        if op.aux & flag::XMM0 != 0 {
            self.state.fpu.set_xmm(0, self.native.frame.xmm0);
            self.state.fpu.set_upper(0, 0);
        } else {
            self.state.gpr[reg::RCX] = self.native.frame.rcx;
        }
    }
}

/// Vector registers and memory only, or flags beside them; no MXCSR.
fn plain(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    let operands = vp.vex_operands(op)?;
    vp.state.fpu.use_upper();
    finish(vp, op, &operands)
}

/// All others.
fn run(vp: &mut Vp, op: &Op) -> Step {
    if op.aux & flag::VECTOR != 0 {
        vp.check_avx()?;
    }
    let operands = vp.vex_operands(op)?;
    if op.aux & flag::VECTOR != 0 {
        vp.state.fpu.use_upper();
    }
    if op.aux & flag::MXCSR == 0 {
        return finish(vp, op, &operands);
    }
    let guest = vp.state.fpu.mxcsr() & fpu::MXCSR_MASK;
    if guest & MASKED != MASKED {
        return unmasked::run(vp, op, operands);
    }
    vp.native.frame.mxcsr = guest;
    finish(vp, op, &operands)?;
    vp.state.fpu.set_mxcsr(vp.native.frame.mxcsr);
    Ok(())
}

fn finish(vp: &mut Vp, op: &Op, operands: &Operands) -> Step {
    if op.aux & flag::FLAGS != 0 {
        vp.native.frame.flags = vp.state.arith.0;
    }
    if op.aux & flag::IMPLICIT != 0 {
        vp.vex_implicit();
    }
    vp.native.run_vex(op.imm as Stub, &operands.pointers);
    vp.vex_stored(op, operands)?;
    vp.vex_results(op);
    Ok(())
}

/// VZEROUPPER: the registers that the mode has.
fn zero_upper(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_avx()?;
    if vp.state.code64() {
        vp.state.fpu.upper_used = 0;
    } else {
        (0..8).for_each(|number| vp.state.fpu.set_upper(number, 0));
    }
    Ok(())
}

/// VZEROALL.
fn zero_all(vp: &mut Vp, op: &Op) -> Step {
    zero_upper(vp, op)?;
    let count = if vp.state.code64() { 16 } else { 8 };
    vp.state.fpu.fxsave[Fpu::XMM..Fpu::XMM + 16 * count].fill(0);
    Ok(())
}

fn load_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    fpu::load_mxcsr(vp, op)
}

fn store_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    fpu::store_mxcsr(vp, op)
}
