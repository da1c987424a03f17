//! Vector work, written with the vector instructions themselves.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::io;

use crate::catalogue::{Setting, Work};
use crate::data::{Random, mix};

const SIDE: usize = 64;
const CELLS: usize = SIDE * SIDE;

/// A matrix of floats.
#[repr(align(64))]
#[derive(Debug, Clone)]
struct Matrix([f32; CELLS]);

type Multiply = fn(&Matrix, &Matrix, &mut Matrix);

fn multiply_sse(a: &Matrix, b: &Matrix, product: &mut Matrix) {
    for row in 0..SIDE {
        for column in (0..SIDE).step_by(16) {
            // SAFETY: SSE is part of x86-64; every address lies within its matrix, because
            // `row` and `index` are below SIDE and `column` is at most SIDE - 16.
            unsafe {
                let mut sums = [_mm_setzero_ps(); 4];
                for index in 0..SIDE {
                    let factor = _mm_set1_ps(a.0[row * SIDE + index]);
                    for (part, sum) in sums.iter_mut().enumerate() {
                        let cells = b.0.as_ptr().add(index * SIDE + column + part * 4);
                        *sum = _mm_add_ps(*sum, _mm_mul_ps(factor, _mm_loadu_ps(cells)));
                    }
                }
                for (part, sum) in sums.iter().enumerate() {
                    let cells = product.0.as_mut_ptr().add(row * SIDE + column + part * 4);
                    _mm_storeu_ps(cells, *sum);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_avx_inner(a: &Matrix, b: &Matrix, product: &mut Matrix) {
    for row in 0..SIDE {
        for column in (0..SIDE).step_by(32) {
            // SAFETY: as above, with `column` at most SIDE - 32.
            unsafe {
                let mut sums = [_mm256_setzero_ps(); 4];
                for index in 0..SIDE {
                    let factor = _mm256_set1_ps(a.0[row * SIDE + index]);
                    for (part, sum) in sums.iter_mut().enumerate() {
                        let cells = b.0.as_ptr().add(index * SIDE + column + part * 8);
                        *sum = _mm256_fmadd_ps(factor, _mm256_loadu_ps(cells), *sum);
                    }
                }
                for (part, sum) in sums.iter().enumerate() {
                    let cells = product.0.as_mut_ptr().add(row * SIDE + column + part * 8);
                    _mm256_storeu_ps(cells, *sum);
                }
            }
        }
    }
}

fn multiply_avx(a: &Matrix, b: &Matrix, product: &mut Matrix) {
    // SAFETY: `matrix_avx` gives this function away only where AVX2 and FMA were found.
    unsafe { multiply_avx_inner(a, b, product) }
}

fn matrix(multiply: Multiply) -> Work {
    let mut random = Random::new(6);
    let mut numbers = || Box::new(Matrix(std::array::from_fn(|_| random.unit() as f32)));
    let (a, b) = (numbers(), numbers());
    let mut product = Box::new(Matrix([0.0; CELLS]));
    Box::new(move |operations| {
        for _ in 0..operations {
            multiply(black_box(&a), black_box(&b), black_box(&mut product));
        }
        let bits = product.0.iter().map(|value| u64::from(value.to_bits()));
        Ok(bits.fold(0, mix))
    })
}

/// The product of two matrices of floats with SSE.
pub(crate) fn matrix_sse(_: &Setting) -> io::Result<Work> {
    Ok(matrix(multiply_sse))
}

/// The product of two matrices of floats with AVX2 and FMA.
pub(crate) fn matrix_avx(_: &Setting) -> io::Result<Work> {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Ok(matrix(multiply_avx))
    } else {
        let text = "the processor has no AVX2 and FMA";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

/// Rotates each word of `$x` left by `$n` bits.
macro_rules! rotate {
    ($x:expr, $n:literal) => {{
        let x = $x;
        _mm_or_si128(_mm_slli_epi32::<$n>(x), _mm_srli_epi32::<{ 32 - $n }>(x))
    }};
}

/// Four quarter rounds of ChaCha (RFC 8439, 2.1) at once.
#[inline(always)]
fn quarter(s: &mut [__m128i; 4]) {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        s[0] = _mm_add_epi32(s[0], s[1]);
        s[3] = rotate!(_mm_xor_si128(s[3], s[0]), 16);
        s[2] = _mm_add_epi32(s[2], s[3]);
        s[1] = rotate!(_mm_xor_si128(s[1], s[2]), 12);
        s[0] = _mm_add_epi32(s[0], s[1]);
        s[3] = rotate!(_mm_xor_si128(s[3], s[0]), 8);
        s[2] = _mm_add_epi32(s[2], s[3]);
        s[1] = rotate!(_mm_xor_si128(s[1], s[2]), 7);
    }
}

/// A block of key stream of ChaCha20 (RFC 8439, 2.3).
fn block(start: &[u32; 16]) -> [u32; 16] {
    let mut out = [0; 16];
    // SAFETY: SSE2 is part of x86-64; loads and stores stay within the two arrays.
    unsafe {
        let row = |index: usize| _mm_loadu_si128(start.as_ptr().add(index * 4).cast());
        let rows = [row(0), row(1), row(2), row(3)];
        let mut s = rows;
        for _ in 0..10 {
            quarter(&mut s);
            s[1] = _mm_shuffle_epi32::<0b00_11_10_01>(s[1]);
            s[2] = _mm_shuffle_epi32::<0b01_00_11_10>(s[2]);
            s[3] = _mm_shuffle_epi32::<0b10_01_00_11>(s[3]);
            quarter(&mut s);
            s[1] = _mm_shuffle_epi32::<0b10_01_00_11>(s[1]);
            s[2] = _mm_shuffle_epi32::<0b01_00_11_10>(s[2]);
            s[3] = _mm_shuffle_epi32::<0b00_11_10_01>(s[3]);
        }
        for index in 0..4 {
            let sum = _mm_add_epi32(s[index], rows[index]);
            _mm_storeu_si128(out.as_mut_ptr().add(index * 4).cast(), sum);
        }
    }
    out
}

/// The key, counter and nonce of the example in RFC 8439, 2.3.2.
fn cipher_start() -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for (index, word) in start[4..12].iter_mut().enumerate() {
        *word = u32::from_le_bytes(std::array::from_fn(|byte| (index * 4 + byte) as u8));
    }
    start[12..].copy_from_slice(&[1, 0x0900_0000, 0x4a00_0000, 0]);
    start
}

/// A stream cipher in vectors of integers.
pub(crate) fn cipher(_: &Setting) -> io::Result<Work> {
    let mut start = cipher_start();
    let mut data = vec![[0u32; 16]; 64];
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            for words in &mut data {
                start[12] = start[12].wrapping_add(1);
                let key = block(black_box(&start));
                for (word, key) in words.iter_mut().zip(key) {
                    *word ^= key;
                }
            }
        }
        let words = data.iter().flatten();
        Ok(words.fold(0, |sum, word| mix(sum, u64::from(*word))))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(a: &Matrix, b: &Matrix) -> Vec<f32> {
        let cell = |i: usize| {
            let (row, column) = (i / SIDE, i % SIDE);
            (0..SIDE)
                .map(|k| a.0[row * SIDE + k] * b.0[k * SIDE + column])
                .sum()
        };
        (0..CELLS).map(cell).collect()
    }

    #[test]
    fn products_are_products() {
        let mut random = Random::new(1);
        let mut numbers = || Matrix(std::array::from_fn(|_| random.unit() as f32));
        let (a, b) = (numbers(), numbers());
        let expected = reference(&a, &b);
        let mut ways: Vec<Multiply> = vec![multiply_sse];
        if matrix_avx(&Setting {
            busybox: "".into(),
            folder: "".into(),
        })
        .is_ok()
        {
            ways.push(multiply_avx);
        }
        for multiply in ways {
            let mut product = Matrix([0.0; CELLS]);
            multiply(&a, &b, &mut product);
            for (seen, expected) in product.0.iter().zip(&expected) {
                assert!((seen - expected).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn the_example_of_rfc_8439() {
        let out = block(&cipher_start());
        assert_eq!(
            out[..4],
            [0xe4e7_f110, 0x1559_3bd1, 0x1fdd_0f50, 0xc471_20a3]
        );
        assert_eq!(out[15], 0x4e3c_50a2);
    }
}
