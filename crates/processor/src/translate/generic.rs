//! Instructions that run as themselves, with other registers and another
//! memory operand.

use super::asm::Mem;
use super::emit::{Access, Address, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RCX, S0, S1, S2, register};
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

/// The general register `number` of the host at the size of `like`; byte
/// registers are low ones.
pub(super) fn host_register(like: Register, number: u8) -> Register {
    let number = u32::from(number);
    match like.size() {
        8 => Register::RAX + number,
        4 => Register::EAX + number,
        2 => Register::AX + number,
        _ => match number {
            0..=3 => Register::AL + number,
            4..=7 => Register::SPL + (number - 4),
            _ => Register::R8L + (number - 8),
        },
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The instruction may run as itself: it does nothing but compute on its
/// operands, the accumulator and RDX, and its handler is not #UD.
pub(super) fn is_plain(item: &Item) -> bool {
    use Mnemonic as M;
    if item.op.is_last() {
        return false;
    }
    let instruction = &item.instruction;
    let general = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => instruction.op_register(i).is_gpr(),
        _ => true,
    });
    if !general {
        return false;
    }
    match instruction.mnemonic() {
        M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Movnti
        | M::Add
        | M::Adc
        | M::Sub
        | M::Sbb
        | M::And
        | M::Or
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Imul
        | M::Mul
        | M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd
        | M::Bsf
        | M::Bsr
        | M::Popcnt
        | M::Tzcnt
        | M::Lzcnt
        | M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsmsk
        | M::Blsr
        | M::Bzhi
        | M::Mulx
        | M::Pdep
        | M::Pext
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Crc32
        | M::Bswap
        | M::Movbe
        | M::Xchg
        | M::Xadd
        | M::Cmpxchg
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Lahf
        | M::Sahf
        | M::Clc
        | M::Stc
        | M::Cmc
        | M::Lfence
        | M::Mfence
        | M::Sfence => true,
        M::Bt | M::Bts | M::Btr | M::Btc => {
            instruction.op0_kind() == OpKind::Register || instruction.op1_kind() != OpKind::Register
        }
        _ => is_conditional(instruction),
    }
}

fn is_conditional(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}

/// The count is in CL.
fn counts_by_cl(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let last = instruction.op_count().wrapping_sub(1);
    matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) && instruction.op_kind(last) == OpKind::Register
}

fn reads(access: OpAccess, size: usize) -> bool {
    // Writes of 1 and 2 bytes keep the rest.
    access != OpAccess::Write || size < 4
}

pub(super) fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
    )
}

/// How an instruction accesses each of its operands.
type Accesses = [OpAccess; 5];

/// A guest register that lives in memory, for the time of one instruction.
struct Borrowed {
    guest: usize,
    host: u8,
    read: bool,
    write: bool,
}

impl Emitter<'_> {
    /// Emits an instruction as itself; false (with nothing emitted) where its
    /// form does not allow that.
    pub(super) fn plain(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_plain(item).is_some() {
            self.resume_here(&mark);
            true
        } else {
            self.back_to(&mark);
            false
        }
    }

    fn try_plain(&mut self, item: &Item) -> Option<()> {
        let instruction = &item.instruction;
        let accesses = self.accesses(instruction);
        let memory =
            (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory);
        let by_cl = counts_by_cl(instruction);
        if by_cl {
            self.forget_scratch();
        }
        let mut operand = match memory {
            Some(i) => Some(self.memory_operand(item, writes(accesses[i as usize]))?),
            None => None,
        };
        if by_cl && let Some(mem) = operand {
            // RCX is about to be the count.
            self.forget_scratch();
            self.asm.lea(S1, mem);
            operand = Some(super::asm::at(S1, 0));
        }
        self.emit_accessing(item, operand, by_cl, &accesses)
    }

    fn accesses(&mut self, instruction: &Instruction) -> Accesses {
        let info = self.info.info(instruction);
        std::array::from_fn(|i| info.op_access(i as u32))
    }

    /// Emits an instruction with its registers in their places and the given
    /// memory operand.
    pub(super) fn emit_with(
        &mut self,
        item: &Item,
        operand: Option<Mem>,
        by_cl: bool,
    ) -> Option<()> {
        let accesses = self.accesses(&item.instruction);
        self.emit_accessing(item, operand, by_cl, &accesses)
    }

    fn emit_accessing(
        &mut self,
        item: &Item,
        operand: Option<Mem>,
        by_cl: bool,
        accesses: &Accesses,
    ) -> Option<()> {
        let mut instruction = item.instruction;
        let borrowed = self.borrow(&mut instruction, accesses, operand, by_cl)?;
        for one in borrowed.iter().filter(|one| one.read) {
            self.asm.load(one.host, register(one.guest));
        }
        if by_cl {
            self.asm.copy(S0, GUEST_RCX);
        }
        if let Some(mem) = operand {
            set_memory(&mut instruction, mem);
        }
        self.encode(&instruction)?;
        for one in borrowed.iter().filter(|one| one.write) {
            self.asm.store(register(one.guest), one.host);
        }
        Some(())
    }

    /// Encodes an instruction here.
    pub(super) fn encode(&mut self, instruction: &Instruction) -> Option<()> {
        let ip = self.asm.here();
        let result = self.encoder.encode(instruction, ip);
        let bytes = self.encoder.take_buffer();
        result.ok()?;
        self.asm.raw(&bytes);
        self.encoder.set_buffer({
            let mut bytes = bytes;
            bytes.clear();
            bytes
        });
        Some(())
    }

    fn memory_operand(&mut self, item: &Item, write: bool) -> Option<Mem> {
        let instruction = &item.instruction;
        let size = instruction.memory_size().size() as u32;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return None;
        }
        let access = Access {
            address: Address::of(instruction, self.start)?,
            size,
            write,
            live: item.live != 0,
            aligned: 0,
        };
        Some(self.probe(&access, &item.op))
    }

    /// Gives every general register operand its place in the host.
    fn borrow(
        &mut self,
        instruction: &mut Instruction,
        accesses: &Accesses,
        operand: Option<Mem>,
        by_cl: bool,
    ) -> Option<Vec<Borrowed>> {
        let free: &[u8] = match (operand, by_cl) {
            (Some(_), _) => &[S2],
            (None, true) => &[S2, S1],
            (None, false) => &[S2, S1, S0],
        };
        let mut free = free.iter().copied();
        let mut borrowed: Vec<Borrowed> = Vec::new();
        let last = instruction.op_count().wrapping_sub(1);
        for i in 0..instruction.op_count() {
            if instruction.op_kind(i) != OpKind::Register || (by_cl && i == last) {
                continue;
            }
            let name = instruction.op_register(i);
            if !name.is_gpr() {
                continue;
            }
            let guest = name.full_register().number();
            let access = accesses[i as usize];
            if is_high_byte(name) {
                // Encodes without REX only, and RCX has no high byte here.
                if self.place(guest) != Some(guest as u8) {
                    return None;
                }
                continue;
            }
            if let Some(place) = self.place(guest) {
                instruction.set_op_register(i, host_register(name, place));
                continue;
            }
            let read = reads(access, name.size());
            let host = match borrowed.iter_mut().find(|one| one.guest == guest) {
                Some(one) => {
                    one.read |= read;
                    one.write |= writes(access);
                    one.host
                }
                None => {
                    let host = free.next()?;
                    if host != S2 {
                        self.forget_scratch();
                    }
                    borrowed.push(Borrowed {
                        guest,
                        host,
                        read,
                        write: writes(access),
                    });
                    host
                }
            };
            instruction.set_op_register(i, host_register(name, host));
        }
        Some(borrowed)
    }

    /// LEA; false where its form is not handled.
    pub(super) fn lea(&mut self, item: &Item) -> bool {
        let instruction = &item.instruction;
        let to = instruction.op0_register();
        let Some(address) = lea_address(instruction, self.start) else {
            return false;
        };
        if to.size() < 4 {
            return false;
        }
        let guest = to.full_register().number();
        self.forget_scratch();
        let narrow = to.size() == 4 || short_address(instruction);
        self.address(&address, 0, S0, S1);
        let host = self.place(guest);
        if narrow {
            // MOV r32, r32 cuts.
            self.asm
                .with_registers(false, &[0x8b], host.unwrap_or(S0), S0);
        } else if let Some(host) = host {
            self.asm.copy(host, S0);
        }
        if host.is_none() {
            self.asm.store(register(guest), S0);
        }
        true
    }
}

fn short_address(instruction: &Instruction) -> bool {
    instruction.memory_base().is_gpr32()
        || instruction.memory_index().is_gpr32()
        || instruction.memory_base() == Register::EIP
}

/// The address that LEA computes; with a short address its low half is right.
fn lea_address(instruction: &Instruction, start: u64) -> Option<Address> {
    let mut instruction = *instruction;
    instruction.set_segment_prefix(Register::None);
    if instruction.memory_base() == Register::EIP {
        return None;
    }
    for register in [instruction.memory_base(), instruction.memory_index()] {
        if register != Register::None
            && !register.is_gpr32()
            && !register.is_gpr64()
            && register != Register::RIP
        {
            return None;
        }
    }
    if instruction.memory_base().is_gpr32() {
        instruction.set_memory_base(instruction.memory_base().full_register());
    }
    if instruction.memory_index().is_gpr32() {
        instruction.set_memory_index(instruction.memory_index().full_register());
    }
    let mut address = Address::of(&instruction, start)?;
    address.segment = None;
    Some(address)
}

/// Replaces the memory operand.
pub(super) fn set_memory(instruction: &mut Instruction, mem: Mem) {
    instruction.set_segment_prefix(Register::None);
    let Mem::At { base, index, disp } = mem else {
        return;
    };
    instruction.set_memory_base(Register::RAX + u32::from(base));
    match index {
        Some((index, scale)) => {
            instruction.set_memory_index(Register::RAX + u32::from(index));
            instruction.set_memory_index_scale(1 << scale);
        }
        None => instruction.set_memory_index(Register::None),
    }
    instruction.set_memory_displacement64(i64::from(disp) as u64);
    instruction.set_memory_displ_size(u32::from(disp != 0));
}
