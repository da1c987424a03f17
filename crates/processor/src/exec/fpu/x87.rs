//! x87 arithmetic, loads, stores and stack handling, run as themselves on a
//! copy of the guest's x87 state.

use super::registers::{BUSY, ES};
use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Step, Stop};
use crate::flags::ArithFlags;
use crate::mmu::Access;
use crate::native::{Form, Stub};
use crate::op::Op;
use crate::state::{Fpu, cr};
use iced_x86::{Code, Encoder, Instruction, Mnemonic};

/// `Op::aux`: reads or writes the status flags.
const FLAGS: u8 = 1;
/// `Op::aux`: writes the memory operand.
const STORE: u8 = 2;
/// Bits of `Op::imm` above the stub: the 11 opcode bits for FOP.
const OPCODE_SHIFT: u32 = 32;
/// Exception flags with which an unmasked store does not happen: invalid,
/// overflow, underflow.
const NO_STORE: u16 = 0x19;

/// The handler for an x87 instruction that has a stub.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    if instruction.code() == Code::Wait {
        return Selected::plain(wait);
    }
    let form = Form::new(instruction).filter(Form::is_x87)?;
    op.size = instruction.memory_size().size() as u8;
    op.aux = if form.uses_flags() { FLAGS } else { 0 };
    if op.has_memory() && stores(instruction.mnemonic()) {
        op.aux |= STORE;
    }
    op.imm = u64::from(form.stub()?) | u64::from(opcode(instruction)) << OPCODE_SHIFT;
    Selected::plain(match (op.has_memory(), op.aux & STORE != 0) {
        (false, _) => registers,
        (true, false) => load,
        (true, true) => store,
    })
}

fn stores(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    )
}

/// The low 3 bits of the first opcode byte, and the ModRM byte.
fn opcode(instruction: &Instruction) -> u16 {
    let mut encoder = Encoder::new(bits(instruction));
    if encoder.encode(instruction, instruction.ip()).is_err() {
        return 0;
    }
    let bytes = encoder.take_buffer();
    let escape = bytes.iter().position(|byte| byte & 0xf8 == 0xd8);
    match escape.and_then(|at| bytes.get(at..at + 2)) {
        Some(&[first, second]) => u16::from(first & 7) << 8 | u16::from(second),
        _ => 0,
    }
}

fn bits(instruction: &Instruction) -> u32 {
    use iced_x86::CodeSize;
    match instruction.code_size() {
        CodeSize::Code16 => 16,
        CodeSize::Code32 => 32,
        _ => 64,
    }
}

/// FWAIT: #NM only if both CR0.MP and CR0.TS are set.
fn wait(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cr0 & cr::CR0_MP != 0 && vp.state.cr0 & cr::CR0_TS != 0 {
        return vp.check_x87();
    }
    vp.check_pending()
}

fn registers(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    compute(vp, op);
    commit(vp, op);
    Ok(())
}

fn load(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    let size = usize::from(op.size).min(16);
    let linear = vp.linear(op, size as u64, Access::Read)?;
    let mut bytes = [0; 16];
    load_operand(vp, linear, &mut bytes[..size])?;
    vp.native.frame.memory[..16].copy_from_slice(&bytes);
    compute(vp, op);
    commit(vp, op);
    set_data_pointer(vp, op);
    Ok(())
}

fn load_operand(vp: &mut Vp, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
    match bytes.len() {
        2 | 4 | 8 => {
            let value = vp.load_sized(linear, bytes.len() as u8)?;
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
            Ok(())
        }
        _ => vp.load_bytes(linear, bytes),
    }
}

/// The guest's state changes only once the store has been made.
fn store(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    let size = usize::from(op.size).min(16);
    let linear = vp.linear(op, size as u64, Access::Write)?;
    compute(vp, op);
    let image = &vp.native.frame.image;
    let control = u16::from_le_bytes([image[0], image[1]]);
    let status = u16::from_le_bytes([image[2], image[3]]);
    if status & !control & NO_STORE == 0 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&vp.native.frame.memory[..16]);
        vp.store_bytes(linear, &bytes[..size])?;
    } else {
        vp.check_access(linear, size as u64, Access::Write)?;
    }
    commit(vp, op);
    set_data_pointer(vp, op);
    Ok(())
}

/// Runs the stub on a copy of the x87 state in the frame. The host must not
/// see a pending exception, which would come as a signal: one may be there
/// with CR0.NE clear, or if the state was set from outside.
fn compute(vp: &mut Vp, op: &Op) {
    let fpu = &vp.state.fpu;
    let frame = &mut vp.native.frame;
    let (control, status) = (fpu.control(), fpu.status());
    let raised = status & !control & 0x3f != 0;
    frame.image[..Fpu::ST + 128].copy_from_slice(&fpu.fxsave[..Fpu::ST + 128]);
    if raised {
        frame.image[0] |= 0x3f;
    }
    frame.image[2..4].copy_from_slice(&(status & !(ES | BUSY)).to_le_bytes());
    // Pointers that the host would only carry around, and a MXCSR that it takes.
    frame.image[6..24].fill(0);
    frame.image[24..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0, 0, 0, 0]);
    frame.flags = vp.state.arith.0;
    vp.native.run_x87(op.imm as Stub);
    if raised {
        vp.native.frame.image[0] = control as u8;
    }
}

/// Takes over the state, but for the pointers: those are the guest's.
fn commit(vp: &mut Vp, op: &Op) {
    let fpu = &mut vp.state.fpu;
    let image = &vp.native.frame.image;
    let tags = image[4];
    fpu.fxsave[Fpu::ST..Fpu::ST + 128].copy_from_slice(&image[Fpu::ST..Fpu::ST + 128]);
    let control = u16::from_le_bytes([image[0], image[1]]);
    fpu.set_control_status(control, u16::from_le_bytes([image[2], image[3]]));
    fpu.set_tags(tags);
    if op.aux & FLAGS != 0 {
        vp.state.arith = ArithFlags(vp.native.frame.flags);
    }
    if fpu.pending() {
        fpu.set_opcode((op.imm >> OPCODE_SHIFT) as u16);
    }
    let at = vp.next_rip(u64::from(op.offset));
    let rip = if vp.state.code64() {
        at
    } else {
        at & 0xffff_ffff
    };
    vp.state.fpu.set_instruction_pointer(rip);
}

/// Only with an unmasked exception (CPUID.7 EBX bit 6).
fn set_data_pointer(vp: &mut Vp, op: &Op) {
    if !vp.state.fpu.pending() {
        return;
    }
    let offset = vp.effective(op);
    vp.state.fpu.set_data_pointer(offset);
}
