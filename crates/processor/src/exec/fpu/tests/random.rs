//! Seeded random operands with many edge values.

use crate::state::Fpu;

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    /// From a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// One of `values`.
    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    fn single(&mut self) -> u32 {
        let edges = [
            0,
            1,
            0x7f_ffff,
            0x80_0000,
            0x80_0001,
            0x3f80_0000,
            0x3f80_0001,
            0x3f00_0000,
            0x4000_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fbf_ffff,
            0x7fc0_0000,
            0x7fff_ffff,
            0x4f00_0000,
            0x4eff_ffff,
            0x5f00_0000,
            0x3fc0_0000,
            0x0040_0000,
            0x1f00_0000,
            0x2000_0000,
            0x33d6_bf95,
            0x4b00_0000,
        ];
        let value = match self.below(4) {
            0 => self.next() as u32,
            // Near 1, so that sums and products are neither huge nor tiny.
            1 => 0x3c00_0000 + (self.next() as u32 & 0x07ff_ffff),
            _ => self.pick(&edges),
        };
        value ^ (self.next() as u32 & 0x8000_0000)
    }

    fn double(&mut self) -> u64 {
        let edges = [
            0,
            1,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x0010_0000_0000_0001,
            0x3ff0_0000_0000_0000,
            0x3ff0_0000_0000_0001,
            0x3fe0_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0x7ff7_ffff_ffff_ffff,
            0x7ff8_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x41e0_0000_0000_0000,
            0x43e0_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
            0x3810_0000_0000_0000,
            0x380f_ffff_ffff_ffff,
            0x36a0_0000_0000_0000,
            0x47ef_ffff_e000_0000,
            0x47ef_ffff_f000_0000,
            0x1ff0_0000_0000_0000,
            0x3ff8_0000_0000_0000,
            0x4330_0000_0000_0000,
        ];
        let value = match self.below(4) {
            0 => self.next(),
            1 => 0x3f80_0000_0000_0000 + (self.next() & 0x00ff_ffff_ffff_ffff),
            _ => self.pick(&edges),
        };
        value ^ (self.next() & 1 << 63)
    }

    /// 16 bytes: floats of either width, small integers, or noise.
    pub(super) fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(5) {
            0 => bytes.chunks_exact_mut(4).for_each(|lane| {
                lane.copy_from_slice(&self.single().to_le_bytes());
            }),
            1 => bytes.chunks_exact_mut(8).for_each(|lane| {
                lane.copy_from_slice(&self.double().to_le_bytes());
            }),
            2 => bytes.fill_with(|| self.pick(&[0, 1, 0x7f, 0x80, 0xff, 2, 8, 16])),
            3 => {
                let count = self.pick(&[0u64, 1, 7, 8, 15, 16, 31, 32, 63, 64, 65, u64::MAX]);
                bytes[..8].copy_from_slice(&count.to_le_bytes());
            }
            _ => bytes.fill_with(|| self.next() as u8),
        }
        bytes
    }

    /// The 10 bytes of an x87 register.
    pub(super) fn extended(&mut self) -> [u8; 10] {
        let mantissa = match self.below(4) {
            0 => self.next(),
            1 => self.next() | 1 << 63,
            _ => self.pick(&[
                0,
                1 << 63,
                1 << 62,
                3 << 62,
                u64::MAX,
                1,
                1 << 63 | 1,
                1 << 63 | 1 << 11,
                1 << 63 | 1 << 40,
                1 << 63 | 0x3ff,
                0xffff_ffff_ffff_fc00,
            ]),
        };
        let exponent: u16 = match self.below(4) {
            0 => self.next() as u16 & 0x7fff,
            1 => 0x3fff - 40 + self.below(80) as u16,
            _ => self.pick(&[
                0, 1, 0x3fff, 0x3ffe, 0x4000, 0x7fff, 0x7ffe, 0x403e, 0x401e, 0x3c01, 0x3c00,
                0x3bcd, 0x43fe, 0x43ff, 0x3f81, 0x3f80, 0x3f6a, 0x407e, 0x407f, 0x400e,
            ]),
        };
        let sign = self.next() as u16 & 0x8000;
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
        bytes
    }

    /// A whole FXSAVE64 image without a pending x87 exception. `masked`: all
    /// SSE exceptions are masked.
    pub(super) fn image(&mut self, masked: bool) -> [u8; 512] {
        let mut image = [0; 512];
        let mut control = self.next() as u16 & 0x1f3f | 0x40;
        if self.below(2) == 0 {
            control |= 0x3f;
        }
        let flags = self.next() as u16 & 0x3f & control;
        let status = (self.next() as u16 & 0x7f40 & !0x3f) | flags;
        image[0..2].copy_from_slice(&control.to_le_bytes());
        image[2..4].copy_from_slice(&status.to_le_bytes());
        image[4] = if self.below(3) == 0 {
            self.next() as u8
        } else {
            0xff
        };
        let mut mxcsr = self.next() as u32 & 0xe07f;
        if self.below(2) == 0 {
            mxcsr &= 0x603f;
        }
        mxcsr |= if masked {
            0x1f80
        } else {
            self.next() as u32 & 0x1f80
        };
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for index in 0..8 {
            let at = Fpu::ST + 16 * index;
            image[at..at + 10].copy_from_slice(&self.extended());
        }
        for index in 0..16 {
            let at = Fpu::XMM + 16 * index;
            image[at..at + 16].copy_from_slice(&self.vector());
        }
        image
    }

    /// A general register: also what conversions find difficult.
    pub(super) fn general(&mut self) -> u64 {
        match self.below(3) {
            0 => self.next(),
            1 => self.pick(&[
                0,
                1,
                u64::MAX,
                1 << 31,
                1 << 63,
                (1 << 53) + 1,
                16,
                0xffff_ffff,
            ]),
            _ => self.next() % 20,
        }
    }

    /// A memory operand of 16 bytes.
    pub(super) fn operand(&mut self, x87: bool) -> [u8; 16] {
        let mut bytes = self.vector();
        if x87 && self.below(2) == 0 {
            bytes[..10].copy_from_slice(&self.extended());
        } else if x87 && self.below(4) == 0 {
            // Decimal digits.
            for byte in &mut bytes {
                *byte = (self.below(10) << 4 | self.below(10)) as u8;
            }
        }
        bytes
    }
}
