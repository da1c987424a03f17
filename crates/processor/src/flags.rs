//! The six status flags, kept as the host leaves them.
//!
//! `LAHF; SETO AL` saves them and `ADD AL, 7Fh; SAHF` restores them: two
//! instructions each way, cheaper than PUSHFQ and POPFQ, and no formula to
//! get wrong. Undefined flags come out as the host's processor makes them,
//! so interpreter, translator and host agree bit for bit.

/// Status flags: AH as LAHF stores it (SF ZF 0 AF 0 PF 1 CF), AL 1 for OF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ArithFlags(pub u16);

impl ArithFlags {
    /// From RFLAGS.
    #[inline]
    pub fn from_bits(rflags: u64) -> Self {
        Self((((rflags & 0xd5) << 8) | (rflags >> 11 & 1)) as u16)
    }

    /// As RFLAGS bits.
    #[inline]
    pub fn bits(self) -> u64 {
        u64::from(self.0 >> 8 & 0xd5) | u64::from(self.0 & 1) << 11
    }

    /// Carry.
    #[inline]
    pub fn carry(self) -> bool {
        self.0 & 0x100 != 0
    }

    /// Replaces carry.
    #[inline]
    pub fn set_carry(&mut self, carry: bool) {
        self.0 = self.0 & !0x100 | u16::from(carry) << 8;
    }

    /// Zero.
    #[inline]
    pub fn zero(self) -> bool {
        self.0 & 0x4000 != 0
    }

    /// Replaces zero.
    #[inline]
    pub fn set_zero(&mut self, zero: bool) {
        self.0 = self.0 & !0x4000 | u16::from(zero) << 14;
    }

    /// Sign.
    #[inline]
    pub fn sign(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// Overflow.
    #[inline]
    pub fn overflow(self) -> bool {
        self.0 & 1 != 0
    }

    /// Parity.
    #[inline]
    pub fn parity(self) -> bool {
        self.0 & 0x400 != 0
    }

    /// The condition `code` of Jcc, SETcc and CMOVcc (0 O, 1 NO, 2 B … 15 G).
    #[inline]
    pub fn condition(self, code: u8) -> bool {
        let holds = match code >> 1 & 7 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() != self.overflow(),
            _ => self.zero() || self.sign() != self.overflow(),
        };
        holds != (code & 1 != 0)
    }
}
