//! Whether a result that is out of range would be inexact if exponents were
//! unlimited: what PE tells beside an unmasked overflow or underflow (SDM 1
//! 4.9.1.5 and 4.9.1.6). Asked of the host by the same instruction with
//! operands of the same significands whose result is in range.

use iced_x86::Mnemonic;

/// How operands become a result, as far as exactness goes. The values are kept
/// in an op's immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Scaling {
    /// No overflow or underflow, or more than one rounding.
    None = 0,
    /// Products and quotients: exactness does not depend on exponents.
    Product = 1,
    /// Sums of the same lane of both operands.
    Sum = 2,
    /// Sums of two neighbouring lanes of one operand.
    Horizontal = 3,
    /// To a narrower format.
    Narrow = 4,
}

/// A shape and the bytes of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) scaling: Scaling,
    pub(crate) width: usize,
}

impl Shape {
    /// Of an instruction.
    pub(crate) fn of(mnemonic: Mnemonic) -> Self {
        use Mnemonic as M;
        use Scaling as S;
        let (scaling, width) = match mnemonic {
            M::Mulps
            | M::Vmulps
            | M::Mulss
            | M::Vmulss
            | M::Divps
            | M::Vdivps
            | M::Divss
            | M::Vdivss => (S::Product, 4),
            M::Mulpd
            | M::Vmulpd
            | M::Mulsd
            | M::Vmulsd
            | M::Divpd
            | M::Vdivpd
            | M::Divsd
            | M::Vdivsd => (S::Product, 8),
            M::Addps
            | M::Vaddps
            | M::Addss
            | M::Vaddss
            | M::Subps
            | M::Vsubps
            | M::Subss
            | M::Vsubss
            | M::Addsubps
            | M::Vaddsubps => (S::Sum, 4),
            M::Addpd
            | M::Vaddpd
            | M::Addsd
            | M::Vaddsd
            | M::Subpd
            | M::Vsubpd
            | M::Subsd
            | M::Vsubsd
            | M::Addsubpd
            | M::Vaddsubpd => (S::Sum, 8),
            M::Haddps | M::Vhaddps | M::Hsubps | M::Vhsubps => (S::Horizontal, 4),
            M::Haddpd | M::Vhaddpd | M::Hsubpd | M::Vhsubpd => (S::Horizontal, 8),
            M::Cvtpd2ps | M::Vcvtpd2ps | M::Cvtsd2ss | M::Vcvtsd2ss => (S::Narrow, 8),
            M::Vcvtps2ph => (S::Narrow, 4),
            _ => (S::None, 8),
        };
        Self { scaling, width }
    }

    /// As a small number.
    pub(crate) fn bits(self) -> u64 {
        self.scaling as u64 | if self.width == 4 { 8 } else { 0 }
    }

    /// From [`Shape::bits`].
    pub(crate) fn from_bits(bits: u64) -> Self {
        let scaling = match bits & 7 {
            1 => Scaling::Product,
            2 => Scaling::Sum,
            3 => Scaling::Horizontal,
            4 => Scaling::Narrow,
            _ => Scaling::None,
        };
        Self {
            scaling,
            width: if bits & 8 != 0 { 4 } else { 8 },
        }
    }

    /// Lanes, which is also the number of results.
    pub(crate) fn lanes(self) -> usize {
        16 / self.width
    }

    /// Whether lane `lane` of operand `operand` (0 or 1) takes part in `result`.
    fn takes_part(self, result: usize, operand: usize, lane: usize) -> bool {
        if self.scaling != Scaling::Horizontal {
            return lane == result;
        }
        let half = self.lanes() / 2;
        operand == result / half && lane / 2 == result % half
    }

    /// The operands with every lane that has no part in `result` set to 1,
    /// which gives exact results.
    pub(crate) fn isolate(self, result: usize, mut operands: [[u8; 16]; 2]) -> [[u8; 16]; 2] {
        for (operand, bytes) in operands.iter_mut().enumerate() {
            for (lane, bytes) in bytes.chunks_exact_mut(self.width).enumerate() {
                if !self.takes_part(result, operand, lane) {
                    put(bytes, self.format().one());
                }
            }
        }
        operands
    }

    /// The operands with other exponents, so that no result is out of range.
    /// `zeros`: denormal operands count as zeros.
    pub(crate) fn rescale(self, mut operands: [[u8; 16]; 2], zeros: bool) -> [[u8; 16]; 2] {
        let format = self.format();
        for bytes in operands
            .iter_mut()
            .flat_map(|bytes| bytes.chunks_exact_mut(self.width))
        {
            let value = get(bytes);
            put(
                bytes,
                match self.scaling {
                    Scaling::Product | Scaling::Narrow => format.near_one(value, zeros),
                    _ => format.halved(value),
                },
            );
        }
        operands
    }

    fn format(self) -> Format {
        if self.width == 4 {
            Format {
                fraction: 23,
                all: 0xff,
            }
        } else {
            Format {
                fraction: 52,
                all: 0x7ff,
            }
        }
    }
}

fn get(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(value)
}

fn put(bytes: &mut [u8], value: u64) {
    let length = bytes.len();
    bytes.copy_from_slice(&value.to_le_bytes()[..length]);
}

/// A binary interchange format.
#[derive(Clone, Copy)]
struct Format {
    /// Bits of the fraction.
    fraction: u32,
    /// The exponent field of infinities and NaNs.
    all: u64,
}

impl Format {
    fn one(self) -> u64 {
        (self.all >> 1) << self.fraction
    }

    fn exponent(self, value: u64) -> u64 {
        value >> self.fraction & self.all
    }

    /// The same significand with exponent 0; zeros, infinities and NaNs stay.
    fn near_one(self, value: u64, zeros: bool) -> u64 {
        let mask = (1 << self.fraction) - 1;
        let fraction = value & mask;
        match self.exponent(value) {
            exponent if exponent == self.all => value,
            0 if fraction == 0 || zeros => value,
            0 => {
                // The leading one becomes the implicit bit.
                let shift = self.fraction + 1 - (u64::BITS - fraction.leading_zeros());
                self.one() | fraction << shift & mask
            }
            _ => self.one() | fraction,
        }
    }

    /// Half of a finite value. The smallest stay: beside an operand large
    /// enough for an overflow they count as inexact all the same.
    fn halved(self, value: u64) -> u64 {
        let exponent = self.exponent(value);
        if exponent > 1 && exponent != self.all {
            value - (1 << self.fraction)
        } else {
            value
        }
    }
}
