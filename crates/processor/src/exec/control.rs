//! Near control flow: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ, and UD.

use crate::Vp;
use crate::decode::{Mode, Selected};
use crate::exec::data::condition_number;
use crate::fault::{Fault, Step, vector};
use crate::mmu;
use crate::op::{Op, OpFn};
use crate::state::{reg, seg};
use iced_x86::{Instruction, Mnemonic};

pub(crate) fn select(instruction: &Instruction, op: &mut Op, mode: Mode) -> Option<Selected> {
    let code = instruction.op_code();
    op.aux = branch_size(instruction, mode);
    let run: OpFn = if instruction.is_jcc_short_or_near() {
        let condition = condition_number(instruction.condition_code());
        op.dst = condition;
        if mode.bits == 64 && op.aux == 8 {
            JCC64[usize::from(condition & 15)]
        } else {
            jcc
        }
    } else if instruction.is_jmp_short_or_near() {
        if mode.bits == 64 && op.aux == 8 {
            jmp64
        } else {
            jmp
        }
    } else if instruction.is_call_near() {
        if mode.bits == 64 && op.aux == 8 {
            call64
        } else {
            call
        }
    } else if instruction.is_jmp_near_indirect() {
        op.size = op.aux;
        jmp_indirect
    } else if instruction.is_call_near_indirect() {
        op.size = op.aux;
        call_indirect
    } else {
        match instruction.mnemonic() {
            Mnemonic::Ret => {
                if mode.bits == 64 && op.aux == 8 {
                    ret64
                } else {
                    ret
                }
            }
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
                op.dst = match instruction.mnemonic() {
                    Mnemonic::Loop => 0,
                    Mnemonic::Loope => 1,
                    _ => 2,
                };
                op.address_size = (code.address_size().max(16) / 8) as u8;
                loop_count
            }
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
                op.address_size = match instruction.mnemonic() {
                    Mnemonic::Jcxz => 2,
                    Mnemonic::Jecxz => 4,
                    _ => 8,
                };
                jcxz
            }
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => crate::exec::undefined,
            _ => {
                op.aux = 0;
                return None;
            }
        }
    };
    Selected::last(run)
}

/// Operand size of a branch: what the instruction pointer is cut to.
fn branch_size(instruction: &Instruction, mode: Mode) -> u8 {
    match instruction.op_code().operand_size() {
        16 => 2,
        32 if mode.bits != 64 => 4,
        64 => 8,
        _ => mode.bits / 8,
    }
}

impl Vp {
    /// Goes to `target`, checked against the code segment's limit or for
    /// being canonical. Nothing of the branch may have been done before.
    #[inline]
    pub(crate) fn check_target(
        &mut self,
        target: u64,
        size: u8,
    ) -> Result<u64, crate::fault::Stop> {
        if self.state.code64() {
            if !mmu::canonical(target) {
                return Err(self.gp(0));
            }
            return Ok(target);
        }
        let target = if size == 2 {
            target & 0xffff
        } else {
            target & 0xffff_ffff
        };
        if target > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.raise(Fault::new(vector::GP, 0)));
        }
        Ok(target)
    }

    #[inline]
    fn relative(&self, op: &Op) -> u64 {
        self.state.gpr[reg::BLOCK_RIP].wrapping_add(op.imm)
    }

    fn branch(&mut self, op: &Op) -> Step {
        let target = self.relative(op);
        self.state.rip = self.check_target(target, op.aux)?;
        Ok(())
    }

    #[inline(always)]
    fn branch64(&mut self, op: &Op) -> Step {
        let target = self.relative(op);
        if !mmu::canonical(target) {
            return Err(self.gp(0));
        }
        self.state.rip = target;
        Ok(())
    }
}

macro_rules! jcc64 {
    ($($name:ident $code:literal),*) => {
        $(fn $name(vp: &mut Vp, op: &Op) -> Step {
            if vp.state.arith.condition($code) { vp.branch64(op) } else { Ok(()) }
        })*
        static JCC64: [OpFn; 16] = [$($name),*];
    };
}
jcc64!(jo 0, jno 1, jb 2, jae 3, je 4, jne 5, jbe 6, ja 7, js 8, jns 9, jp 10, jnp 11, jl 12, jge 13, jle 14, jg 15);

fn jcc(vp: &mut Vp, op: &Op) -> Step {
    if vp.state.arith.condition(op.dst) {
        vp.branch(op)
    } else {
        Ok(())
    }
}

fn jmp64(vp: &mut Vp, op: &Op) -> Step {
    vp.branch64(op)
}

fn jmp(vp: &mut Vp, op: &Op) -> Step {
    vp.branch(op)
}

fn call64(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.relative(op);
    if !mmu::canonical(target) {
        return Err(vp.gp(0));
    }
    vp.push(vp.next_rip(op.end()), 8)?;
    vp.state.rip = target;
    Ok(())
}

fn call(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.relative(op);
    call_to(vp, op, target)
}

fn call_to(vp: &mut Vp, op: &Op, target: u64) -> Step {
    let target = vp.check_target(target, op.aux)?;
    let back = vp.next_rip(op.end());
    vp.push(back, op.aux)?;
    vp.state.rip = target;
    Ok(())
}

fn jmp_indirect(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.read_rm(op, op.aux)?;
    vp.state.rip = vp.check_target(target, op.aux)?;
    Ok(())
}

fn call_indirect(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.read_rm(op, op.aux)?;
    call_to(vp, op, target)
}

fn ret64(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.stack_peek(0, 8)?;
    if !mmu::canonical(target) {
        return Err(vp.gp(0));
    }
    vp.stack_drop(8 + (op.imm & 0xffff));
    vp.state.rip = target;
    Ok(())
}

fn ret(vp: &mut Vp, op: &Op) -> Step {
    let target = vp.stack_peek(0, op.aux)?;
    let target = vp.check_target(target, op.aux)?;
    vp.stack_drop(u64::from(op.aux) + (op.imm & 0xffff));
    vp.state.rip = target;
    Ok(())
}

fn loop_count(vp: &mut Vp, op: &Op) -> Step {
    let count = vp.gpr(op.address_size, reg::RCX as u8).wrapping_sub(1);
    let count = vp.mask_address(count, op.address_size);
    let zero = vp.state.arith.zero();
    let again = count != 0
        && match op.dst {
            1 => zero,
            2 => !zero,
            _ => true,
        };
    if again {
        let target = vp.relative(op);
        vp.state.rip = vp.check_target(target, op.aux)?;
    }
    vp.set_gpr(op.address_size, reg::RCX as u8, count);
    Ok(())
}

fn jcxz(vp: &mut Vp, op: &Op) -> Step {
    if vp.gpr(op.address_size, reg::RCX as u8) == 0 {
        vp.branch(op)
    } else {
        Ok(())
    }
}
