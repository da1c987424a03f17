//! A small assembler for the sequences that surround the guest's own
//! instructions.

/// Host register numbers.
pub(super) mod host {
    pub(in super::super) const RAX: u8 = 0;
    pub(in super::super) const RCX: u8 = 1;
    pub(in super::super) const RDX: u8 = 2;
    pub(in super::super) const RBX: u8 = 3;
    pub(in super::super) const RSP: u8 = 4;
    pub(in super::super) const RBP: u8 = 5;
    pub(in super::super) const RSI: u8 = 6;
    pub(in super::super) const RDI: u8 = 7;
    pub(in super::super) const R10: u8 = 10;
    pub(in super::super) const R11: u8 = 11;
    pub(in super::super) const R12: u8 = 12;
    pub(in super::super) const R13: u8 = 13;
    pub(in super::super) const R14: u8 = 14;
    pub(in super::super) const R15: u8 = 15;
}

/// Condition codes, as encoded.
pub(super) mod cc {
    pub(in super::super) const B: u8 = 2;
    pub(in super::super) const AE: u8 = 3;
    pub(in super::super) const E: u8 = 4;
    pub(in super::super) const NE: u8 = 5;
    pub(in super::super) const BE: u8 = 6;
    pub(in super::super) const A: u8 = 7;
    pub(in super::super) const S: u8 = 8;
    pub(in super::super) const NS: u8 = 9;
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mem {
    /// `[base + index * 2^scale + disp]`.
    At {
        /// Base register.
        base: u8,
        /// Index register and log2 of its scale; never RSP.
        index: Option<(u8, u8)>,
        /// Displacement.
        disp: i32,
    },
    /// `[index * 2^scale + disp]`.
    Scaled {
        /// Index register; never RSP.
        index: u8,
        /// log2 of its scale.
        scale: u8,
        /// Displacement.
        disp: i32,
    },
    /// `gs:[disp]`: a field of the virtual processor.
    Vp(usize),
    /// RIP-relative, to an address within reach.
    Near(u64),
}

/// `[base + disp]`.
pub(super) fn at(base: u8, disp: i32) -> Mem {
    Mem::At {
        base,
        index: None,
        disp,
    }
}

/// A jump whose target is not known yet: where its displacement lies.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Fix(usize);

/// The same for an 8-bit displacement.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct ShortFix(usize);

/// Code under construction.
pub(super) struct Asm {
    base: u64,
    code: Vec<u8>,
}

impl Asm {
    /// Code that will lie at `base`.
    pub(super) fn new(base: u64) -> Self {
        Self {
            base,
            code: Vec::with_capacity(2048),
        }
    }

    /// The address of the next instruction.
    pub(super) fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// The code.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.code
    }

    /// Cuts back to an address returned by [`Asm::here`].
    pub(super) fn truncate(&mut self, address: u64) {
        self.code.truncate((address - self.base) as usize);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn dword(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// ModRM, SIB and displacement. `tail`: bytes of the instruction behind them.
    fn operand(&mut self, reg: u8, mem: Mem, tail: u64) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::Vp(disp) => {
                self.raw(&[reg | 4, 0x25]);
                self.dword(disp as u32);
            }
            Mem::Near(target) => {
                self.raw(&[reg | 5]);
                let end = self.here() + 4 + tail;
                self.dword(target.wrapping_sub(end) as u32);
            }
            Mem::Scaled { index, scale, disp } => {
                self.raw(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
                self.dword(disp as u32);
            }
            Mem::At { base, index, disp } => {
                let short = i8::try_from(disp);
                let mode = match short {
                    Ok(0) if base & 7 != 5 => 0,
                    Ok(_) => 0x40,
                    Err(_) => 0x80,
                };
                match index {
                    Some((index, scale)) => {
                        let sib = scale << 6 | (index & 7) << 3 | base & 7;
                        self.raw(&[mode | reg | 4, sib]);
                    }
                    None if base & 7 == 4 => self.raw(&[mode | reg | 4, 0x24]),
                    None => self.raw(&[mode | reg | base & 7]),
                }
                match (mode, short) {
                    (0, _) => {}
                    (0x40, Ok(disp)) => self.raw(&[disp as u8]),
                    _ => self.dword(disp as u32),
                }
            }
        }
    }

    fn rex_bits(reg: u8, mem: Mem) -> u8 {
        let (index, base) = match mem {
            Mem::At { base, index, .. } => (index.map_or(0, |(index, _)| index), base),
            Mem::Scaled { index, .. } => (index, 0),
            _ => (0, 0),
        };
        (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3
    }

    /// An instruction with a memory operand; `prefixes` are mandatory ones.
    pub(super) fn with_memory(
        &mut self,
        prefixes: &[u8],
        wide: bool,
        opcode: &[u8],
        reg: u8,
        mem: Mem,
        immediate: &[u8],
    ) {
        if matches!(mem, Mem::Vp(_)) {
            self.raw(&[0x65]);
        }
        self.raw(prefixes);
        let rex = 0x40 | u8::from(wide) << 3 | Self::rex_bits(reg, mem);
        if rex != 0x40 {
            self.raw(&[rex]);
        }
        self.raw(opcode);
        self.operand(reg, mem, immediate.len() as u64);
        self.raw(immediate);
    }

    /// An instruction on two registers: ModRM.reg and ModRM.rm.
    pub(super) fn with_registers(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.raw(&[rex]);
        }
        self.raw(opcode);
        self.raw(&[0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// MOV r64, m64.
    pub(super) fn load(&mut self, to: u8, mem: Mem) {
        self.with_memory(&[], true, &[0x8b], to, mem, &[]);
    }

    /// MOV r32, m32.
    pub(super) fn load32(&mut self, to: u8, mem: Mem) {
        self.with_memory(&[], false, &[0x8b], to, mem, &[]);
    }

    /// MOV m64, r64.
    pub(super) fn store(&mut self, mem: Mem, from: u8) {
        self.with_memory(&[], true, &[0x89], from, mem, &[]);
    }

    /// MOV r64, r64.
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        if to != from {
            self.with_registers(true, &[0x8b], to, from);
        }
    }

    /// MOV of a constant, in the shortest form; flags stay.
    pub(super) fn constant(&mut self, to: u8, value: u64) {
        if let Ok(low) = u32::try_from(value) {
            if to > 7 {
                self.raw(&[0x41]);
            }
            self.raw(&[0xb8 | to & 7]);
            self.dword(low);
        } else if i32::try_from(value as i64).is_ok() {
            self.raw(&[0x48 | to >> 3, 0xc7, 0xc0 | to & 7]);
            self.dword(value as u32);
        } else {
            self.raw(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// LEA r64.
    pub(super) fn lea(&mut self, to: u8, mem: Mem) {
        self.with_memory(&[], true, &[0x8d], to, mem, &[]);
    }

    /// LEA r32.
    pub(super) fn lea32(&mut self, to: u8, mem: Mem) {
        self.with_memory(&[], false, &[0x8d], to, mem, &[]);
    }

    /// ADD r64, m64.
    pub(super) fn add(&mut self, to: u8, mem: Mem) {
        self.with_memory(&[], true, &[0x03], to, mem, &[]);
    }

    /// ADD r64, r64.
    pub(super) fn add_registers(&mut self, to: u8, from: u8) {
        self.with_registers(true, &[0x03], to, from);
    }

    /// CMP r64, imm32.
    pub(super) fn compare(&mut self, register: u8, value: i32) {
        self.raw(&[0x48 | register >> 3, 0x81, 0xf8 | register & 7]);
        self.dword(value as u32);
    }

    /// SHR r64, imm8.
    pub(super) fn shift_right(&mut self, register: u8, count: u8) {
        self.raw(&[0x48 | register >> 3, 0xc1, 0xe8 | register & 7, count]);
    }

    /// AND r32, imm32.
    pub(super) fn and32(&mut self, register: u8, mask: u32) {
        if register > 7 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x81, 0xe0 | register & 7]);
        self.dword(mask);
    }

    /// PEXT r64, r64, m64: flags stay.
    pub(super) fn extract(&mut self, to: u8, from: u8, mask: Mem) {
        if matches!(mask, Mem::Vp(_)) {
            self.raw(&[0x65]);
        }
        let rex = Self::rex_bits(to, mask);
        self.raw(&[
            0xc4,
            (!rex & 7) << 5 | 2,
            0x80 | (!from & 15) << 3 | 2,
            0xf5,
        ]);
        self.operand(to, mask, 0);
    }

    /// Jcc rel32.
    pub(super) fn jump_if(&mut self, condition: u8) -> Fix {
        self.raw(&[0x0f, 0x80 | condition]);
        self.dword(0);
        Fix(self.code.len() - 4)
    }

    /// Jcc rel32 to a known place.
    pub(super) fn jump_if_to(&mut self, condition: u8, target: u64) {
        let fix = self.jump_if(condition);
        self.bind_to(fix, target);
    }

    /// JMP rel32.
    pub(super) fn jump(&mut self) -> Fix {
        self.raw(&[0xe9]);
        self.dword(0);
        Fix(self.code.len() - 4)
    }

    /// JMP rel32 to a known place.
    pub(super) fn jump_to(&mut self, target: u64) {
        let fix = self.jump();
        self.bind_to(fix, target);
    }

    /// CALL rel32.
    pub(super) fn call(&mut self) -> Fix {
        self.raw(&[0xe8]);
        self.dword(0);
        Fix(self.code.len() - 4)
    }

    /// JMP m64.
    pub(super) fn jump_through(&mut self, mem: Mem) {
        self.with_memory(&[], false, &[0xff], 4, mem, &[]);
    }

    /// CALL m64.
    pub(super) fn call_through(&mut self, mem: Mem) {
        self.with_memory(&[], false, &[0xff], 2, mem, &[]);
    }

    /// JRCXZ rel8 back to a known place, which must be near.
    pub(super) fn jump_back_if_rcx_zero(&mut self, target: u64) {
        let displacement = target.wrapping_sub(self.here() + 2) as u8;
        self.raw(&[0xe3, displacement]);
    }

    /// JRCXZ rel8: flags stay.
    pub(super) fn jump_if_rcx_zero(&mut self) -> ShortFix {
        self.raw(&[0xe3, 0]);
        ShortFix(self.code.len() - 1)
    }

    /// Makes a jump lead here.
    pub(super) fn bind(&mut self, fix: Fix) {
        self.bind_to(fix, self.here());
    }

    /// Makes a jump lead to an address.
    pub(super) fn bind_to(&mut self, fix: Fix, target: u64) {
        let end = self.base + fix.0 as u64 + 4;
        let displacement = target.wrapping_sub(end) as u32;
        self.code[fix.0..fix.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// Makes a short jump lead here; false if that is too far.
    pub(super) fn bind_short(&mut self, fix: ShortFix) -> bool {
        let distance = self.code.len() - fix.0 - 1;
        self.code[fix.0] = distance as u8;
        distance < 0x80
    }

    /// Where a jump's displacement lies.
    pub(super) fn address(&self, fix: Fix) -> u64 {
        self.base + fix.0 as u64
    }
}
