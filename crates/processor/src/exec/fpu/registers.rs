//! The x87 and MMX registers in their FXSAVE image.
//!
//! The image names registers by their distance from the top of stack, the
//! tags (one bit: not empty) and MMX by physical number.

use crate::state::Fpu;

/// Status word: an unmasked exception is pending.
pub(super) const ES: u16 = 1 << 7;
/// Status word: busy, a copy of ES.
pub(super) const BUSY: u16 = 1 << 15;
const TOP: u16 = 7 << 11;

impl Fpu {
    /// Offset of FOP in the FXSAVE image.
    pub(crate) const FOP: usize = 6;
    /// Offset of FIP.
    pub(crate) const FIP: usize = 8;
    /// Offset of FDP.
    pub(crate) const FDP: usize = 16;

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fxsave[at], self.fxsave[at + 1]])
    }

    fn set_word(&mut self, at: usize, value: u16) {
        self.fxsave[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn quad(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.fxsave[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn set_quad(&mut self, at: usize, value: u64) {
        self.fxsave[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// FCW.
    pub(crate) fn control(&self) -> u16 {
        self.word(0)
    }

    /// FSW.
    pub(crate) fn status(&self) -> u16 {
        self.word(2)
    }

    /// The abridged tag word: one bit per physical register, 1 for in use.
    pub(crate) fn tags(&self) -> u8 {
        self.fxsave[4]
    }

    /// Writes the abridged tag word.
    pub(crate) fn set_tags(&mut self, tags: u8) {
        self.fxsave[4] = tags;
    }

    /// FOP, 11 bits.
    pub(crate) fn opcode(&self) -> u16 {
        self.word(Self::FOP)
    }

    /// Writes FOP.
    pub(crate) fn set_opcode(&mut self, opcode: u16) {
        self.set_word(Self::FOP, opcode & 0x7ff);
    }

    /// FIP, an offset in the code segment.
    pub(crate) fn instruction_pointer(&self) -> u64 {
        self.quad(Self::FIP)
    }

    /// Writes FIP.
    pub(crate) fn set_instruction_pointer(&mut self, value: u64) {
        self.set_quad(Self::FIP, value);
    }

    /// FDP, an offset in the operand's segment.
    pub(crate) fn data_pointer(&self) -> u64 {
        self.quad(Self::FDP)
    }

    /// Writes FDP.
    pub(crate) fn set_data_pointer(&mut self, value: u64) {
        self.set_quad(Self::FDP, value);
    }

    /// An unmasked exception is pending.
    #[inline]
    pub(crate) fn pending(&self) -> bool {
        self.fxsave[2] & ES as u8 != 0
    }

    /// Writes FCW and FSW. Bits that do not exist are dropped, and ES and B
    /// follow from the exception flags and masks. Registers stay where they
    /// are in relation to the top of stack: see [`Fpu::set_top`].
    pub(crate) fn set_control_status(&mut self, control: u16, status: u16) {
        let control = control & 0x1f3f | 0x40;
        let mut status = status & !(ES | BUSY);
        if status & !control & 0x3f != 0 {
            status |= ES | BUSY;
        }
        self.set_word(0, control);
        self.set_word(2, status);
    }

    /// The top of stack, a physical register number.
    pub(crate) fn top(&self) -> usize {
        usize::from(self.status() >> 11 & 7)
    }

    /// Moves the top of stack; physical registers keep their contents.
    pub(crate) fn set_top(&mut self, top: usize) {
        let by = (top & 7).wrapping_sub(self.top()) & 7;
        self.fxsave[Self::ST..Self::ST + 128].rotate_left(16 * by);
        let status = self.status() & !TOP | ((top & 7) as u16) << 11;
        self.set_word(2, status);
    }

    /// What every MMX instruction does to the x87 (SDM 1 9.5.1): top of stack
    /// 0, so that the image's registers are in physical order, and all in use.
    #[inline]
    pub(crate) fn enter_mmx(&mut self) {
        if self.status() & TOP != 0 {
            self.set_top(0);
        }
        self.set_tags(0xff);
    }

    /// MMX register `index`; [`Fpu::enter_mmx`] first.
    pub(crate) fn mm(&self, index: u8) -> u64 {
        self.quad(Self::ST + 16 * usize::from(index & 7))
    }

    /// Writes an MMX register; [`Fpu::enter_mmx`] first.
    pub(crate) fn set_mm(&mut self, index: u8, value: u64) {
        self.set_quad(Self::ST + 16 * usize::from(index & 7), value);
        self.mark_mm(index);
    }

    /// The exponent of a written MMX register is all ones.
    pub(crate) fn mark_mm(&mut self, index: u8) {
        self.set_word(Self::ST + 16 * usize::from(index & 7) + 8, 0xffff);
    }

    /// The 10 bytes of ST(`index`).
    pub(crate) fn st(&self, index: usize) -> [u8; 10] {
        let at = Self::ST + 16 * (index & 7);
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&self.fxsave[at..at + 10]);
        bytes
    }

    /// Writes ST(`index`).
    pub(crate) fn set_st(&mut self, index: usize, bytes: &[u8]) {
        let at = Self::ST + 16 * (index & 7);
        self.fxsave[at..at + 16].fill(0);
        self.fxsave[at..at + bytes.len().min(10)].copy_from_slice(&bytes[..bytes.len().min(10)]);
    }

    /// FNINIT: control and status as after reset, all registers empty.
    pub(crate) fn initialize_x87(&mut self) {
        self.set_top(0);
        self.set_control_status(0x37f, 0);
        self.set_tags(0);
        self.set_opcode(0);
        self.set_instruction_pointer(0);
        self.set_data_pointer(0);
    }

    /// The full tag word: 2 bits per physical register, 0 valid, 1 zero,
    /// 2 special, 3 empty (SDM 1 8.1.7).
    pub(crate) fn full_tags(&self) -> u16 {
        let mut tags = 0;
        for physical in 0..8usize {
            let tag = if self.tags() >> physical & 1 == 0 {
                3
            } else {
                classify(self.st(physical.wrapping_sub(self.top())))
            };
            tags |= tag << (2 * physical);
        }
        tags
    }

    /// Takes a full tag word: what is not empty is in use.
    pub(crate) fn set_full_tags(&mut self, tags: u16) {
        let used = (0..8).filter(|physical| tags >> (2 * physical) & 3 != 3);
        self.set_tags(used.fold(0, |bits, physical| bits | 1 << physical));
    }
}

/// The tag of a register in use.
fn classify(bytes: [u8; 10]) -> u16 {
    let exponent = u16::from_le_bytes([bytes[8], bytes[9]]) & 0x7fff;
    let zero = bytes[..8].iter().all(|&byte| byte == 0);
    let integer = bytes[7] & 0x80 != 0;
    match exponent {
        0 if zero => 1,
        0 | 0x7fff => 2,
        _ if integer => 0,
        _ => 2,
    }
}
