//! FLDENV, FNSTENV, FRSTOR and FNSAVE in their four formats (SDM 1 figures
//! 8-9 to 8-12): 16- and 32-bit, protected and real mode.
//!
//! The selectors of the last instruction and operand are saved as 0 (CPUID.7
//! EBX bit 13).

use crate::Vp;
use crate::decode::Selected;
use crate::fault::Step;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::Fpu;
use iced_x86::{Code, Instruction};

/// Bytes of an environment by operand size.
const fn size(wide: bool) -> usize {
    if wide { 28 } else { 14 }
}

/// The handler for one of these.
pub(super) fn select(instruction: &Instruction) -> Option<Selected> {
    let run: OpFn = match instruction.code() {
        Code::Fldenv_m14byte => load_environment::<false>,
        Code::Fldenv_m28byte => load_environment::<true>,
        Code::Fnstenv_m14byte => store_environment::<false>,
        Code::Fnstenv_m28byte => store_environment::<true>,
        Code::Frstor_m94byte => restore::<false>,
        Code::Frstor_m108byte => restore::<true>,
        Code::Fnsave_m94byte => save::<false>,
        Code::Fnsave_m108byte => save::<true>,
        _ => return None,
    };
    Selected::plain(run)
}

/// The environment in its format.
fn encode(fpu: &Fpu, wide: bool, real: bool) -> [u8; 28] {
    let pointers = [fpu.instruction_pointer() as u32, fpu.data_pointer() as u32];
    let opcode = u32::from(fpu.opcode());
    let words = [fpu.control(), fpu.status(), fpu.full_tags()].map(u32::from);
    let fields = if real {
        let high = pointers.map(|pointer| pointer >> 16);
        let keep = if wide { 0xffff } else { 0xf };
        let first = (high[0] & keep) << 12 | opcode;
        [
            pointers[0] & 0xffff,
            first,
            pointers[1] & 0xffff,
            (high[1] & keep) << 12,
        ]
    } else if wide {
        [pointers[0], opcode << 16, pointers[1], 0]
    } else {
        [pointers[0] & 0xffff, 0, pointers[1] & 0xffff, 0]
    };
    let mut bytes = [0; 28];
    for (at, &word) in words.iter().enumerate() {
        put(&mut bytes, at, word | 0xffff_0000, wide);
    }
    for (at, &field) in fields.iter().enumerate() {
        // Unused upper halves read as ones, the selector's zero is its own.
        let unused = if real && at % 2 == 0 || !real && at == 3 {
            0xffff_0000
        } else {
            0
        };
        put(&mut bytes, at + 3, field | unused, wide);
    }
    bytes
}

fn put(bytes: &mut [u8], field: usize, value: u32, wide: bool) {
    let each = if wide { 4 } else { 2 };
    bytes[field * each..][..each].copy_from_slice(&value.to_le_bytes()[..each]);
}

fn get(bytes: &[u8], field: usize, wide: bool) -> u32 {
    let each = if wide { 4 } else { 2 };
    let mut value = [0; 4];
    value[..each].copy_from_slice(&bytes[field * each..][..each]);
    u32::from_le_bytes(value)
}

/// Takes over an environment. Physical registers keep their contents.
fn decode(fpu: &mut Fpu, bytes: &[u8], wide: bool, real: bool) {
    let field = |at| get(bytes, at, wide);
    let status = field(1) as u16;
    fpu.set_top(usize::from(status >> 11 & 7));
    fpu.set_control_status(field(0) as u16, status);
    fpu.set_full_tags(field(2) as u16);
    let (mut instruction, mut opcode, mut data) = (field(3), 0, field(5));
    if real {
        let keep = if wide { 0x0fff_f000 } else { 0xf000 };
        instruction = instruction & 0xffff | (field(4) & keep) << 4;
        data = data & 0xffff | (field(6) & keep) << 4;
        opcode = field(4) as u16;
    } else if wide {
        opcode = (field(4) >> 16) as u16;
    }
    fpu.set_instruction_pointer(u64::from(instruction));
    fpu.set_data_pointer(u64::from(data));
    fpu.set_opcode(opcode);
}

fn store_environment<const WIDE: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let linear = vp.linear(op, size(WIDE) as u64, Access::Write)?;
    let bytes = encode(&vp.state.fpu, WIDE, vp.state.real_segments());
    vp.store_bytes(linear, &bytes[..size(WIDE)])?;
    // Afterwards all exceptions are masked.
    let (control, status) = (vp.state.fpu.control(), vp.state.fpu.status());
    vp.state.fpu.set_control_status(control | 0x3f, status);
    Ok(())
}

fn load_environment<const WIDE: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    let linear = vp.linear(op, size(WIDE) as u64, Access::Read)?;
    let mut bytes = [0; 28];
    vp.load_bytes(linear, &mut bytes[..size(WIDE)])?;
    let real = vp.state.real_segments();
    decode(&mut vp.state.fpu, &bytes, WIDE, real);
    Ok(())
}

fn save<const WIDE: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let length = size(WIDE) + 80;
    let linear = vp.linear(op, length as u64, Access::Write)?;
    let mut bytes = [0; 108];
    let environment = encode(&vp.state.fpu, WIDE, vp.state.real_segments());
    bytes[..size(WIDE)].copy_from_slice(&environment[..size(WIDE)]);
    for (index, register) in bytes[size(WIDE)..length].chunks_exact_mut(10).enumerate() {
        register.copy_from_slice(&vp.state.fpu.st(index));
    }
    vp.store_bytes(linear, &bytes[..length])?;
    vp.state.fpu.initialize_x87();
    Ok(())
}

fn restore<const WIDE: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    let length = size(WIDE) + 80;
    let linear = vp.linear(op, length as u64, Access::Read)?;
    let mut bytes = [0; 108];
    vp.load_bytes(linear, &mut bytes[..length])?;
    let real = vp.state.real_segments();
    decode(&mut vp.state.fpu, &bytes, WIDE, real);
    for (index, register) in bytes[size(WIDE)..length].chunks_exact(10).enumerate() {
        vp.state.fpu.set_st(index, register);
    }
    Ok(())
}
