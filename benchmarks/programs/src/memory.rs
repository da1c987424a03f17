//! Memory: in bulk, and one load after the other.

use std::arch::asm;
use std::hint::black_box;
use std::io;

use crate::catalogue::{Setting, Work};
use crate::data::{Random, mix};

const SMALL: usize = 64 << 10;
const LARGE: usize = 8 << 20;

fn bytes(length: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let words = (0..length / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

/// A few bytes of many.
fn sample(bytes: &[u8]) -> u64 {
    let step = (bytes.len() / 64).max(1);
    bytes
        .iter()
        .step_by(step)
        .fold(0, |sum, byte| mix(sum, u64::from(*byte)))
}

fn copy_of(length: usize, copy: fn(&[u8], &mut [u8])) -> Work {
    let source = bytes(length);
    let mut target = vec![0; length];
    Box::new(move |operations| {
        for _ in 0..operations {
            copy(black_box(&source), black_box(&mut target));
        }
        Ok(sample(&target))
    })
}

fn library_copy(source: &[u8], target: &mut [u8]) {
    target.copy_from_slice(source);
}

fn string_copy(source: &[u8], target: &mut [u8]) {
    let length = source.len().min(target.len());
    // SAFETY: both slices are at least `length` bytes long and do not overlap; the direction flag
    // is clear, as the ABI has it.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") length => _,
            inout("rsi") source.as_ptr() => _,
            inout("rdi") target.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// The C library's memcpy within the second-level cache.
pub(crate) fn copy(_: &Setting) -> io::Result<Work> {
    Ok(copy_of(SMALL, library_copy))
}

/// The C library's memcpy.
pub(crate) fn copy_large(_: &Setting) -> io::Result<Work> {
    Ok(copy_of(LARGE, library_copy))
}

/// The string instruction.
pub(crate) fn rep_movsb(_: &Setting) -> io::Result<Work> {
    Ok(copy_of(SMALL, string_copy))
}

/// The C library's memset.
pub(crate) fn set(_: &Setting) -> io::Result<Work> {
    let mut target = vec![0u8; SMALL];
    let mut value = 0u8;
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            value = value.wrapping_add(1);
            black_box(&mut target[..]).fill(black_box(value));
        }
        Ok(sample(&target))
    }))
}

fn triad(a: &mut [f64], b: &[f64], c: &[f64], factor: f64) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + factor * c;
    }
}

/// The triad of the STREAM benchmark.
pub(crate) fn stream(_: &Setting) -> io::Result<Work> {
    let length = (2 << 20) / 8;
    let mut random = Random::new(8);
    let b: Vec<f64> = (0..length).map(|_| random.unit()).collect();
    let c: Vec<f64> = (0..length).map(|_| random.unit()).collect();
    let mut a = vec![0.0; length];
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            triad(
                black_box(&mut a),
                black_box(&b),
                black_box(&c),
                black_box(3.0),
            );
        }
        let some = a.iter().step_by(length / 64);
        Ok(some.fold(0, |sum, value| mix(sum, value.to_bits())))
    }))
}

/// Loads of one operation. No multiple of a list's length, so that the last place tells them all.
const LOADS: u64 = 1000;

/// An element of a list, as large as a line of the cache.
#[repr(align(64))]
#[derive(Debug, Clone, Copy)]
struct Node {
    next: u32,
}

/// A ring through all elements in random order (Sattolo's algorithm).
fn ring(length: usize) -> Vec<Node> {
    let mut random = Random::new(9);
    let mut nodes: Vec<Node> = (0..length as u32).map(|next| Node { next }).collect();
    for index in (1..length).rev() {
        let other = random.below(index);
        let next = nodes[index].next;
        nodes[index].next = nodes[other].next;
        nodes[other].next = next;
    }
    nodes
}

fn chase(length: usize) -> Work {
    let nodes = ring(length);
    let mut place = 0;
    Box::new(move |operations| {
        for _ in 0..operations * LOADS {
            place = nodes[place as usize].next;
        }
        Ok(u64::from(place))
    })
}

/// A list within the first-level cache.
pub(crate) fn chase_cached(_: &Setting) -> io::Result<Work> {
    Ok(chase((16 << 10) / size_of::<Node>()))
}

/// A list larger than the caches.
pub(crate) fn chase_memory(_: &Setting) -> io::Result<Work> {
    Ok(chase((64 << 20) / size_of::<Node>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_goes_through_all_elements() {
        let nodes = ring(100);
        let mut place = 0;
        let mut seen = [false; 100];
        for _ in 0..100 {
            assert!(!std::mem::replace(&mut seen[place as usize], true));
            place = nodes[place as usize].next;
        }
        assert_eq!(place, 0);
    }

    #[test]
    fn copies_are_equal() {
        let source = bytes(1000);
        for copy in [library_copy, string_copy] {
            let mut target = vec![0; source.len()];
            copy(&source, &mut target);
            assert_eq!(source, target);
        }
    }

    #[test]
    fn the_triad_multiplies_and_adds() {
        let mut a = [0.0; 3];
        triad(&mut a, &[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0], 2.0);
        assert_eq!(a, [21.0, 42.0, 63.0]);
    }
}
