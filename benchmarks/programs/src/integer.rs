//! Integer work.

use std::hint::black_box;
use std::io;

use crate::catalogue::{Setting, Work};
use crate::data::{Random, checksum, mix};

const SIEVE: usize = 32_768;

/// How many primes are below the length of `flags`.
pub(crate) fn count_primes(flags: &mut [u8]) -> u64 {
    flags.fill(1);
    let mut count = 0;
    for number in 2..flags.len() {
        if flags[number] == 0 {
            continue;
        }
        count += 1;
        let mut multiple = number * number;
        while multiple < flags.len() {
            flags[multiple] = 0;
            multiple += number;
        }
    }
    count
}

/// The sieve of Eratosthenes.
pub(crate) fn sieve(_: &Setting) -> io::Result<Work> {
    let mut flags = vec![0u8; SIEVE];
    Ok(Box::new(move |operations| {
        Ok((0..operations).fold(0, |sum, _| mix(sum, count_primes(black_box(&mut flags)))))
    }))
}

fn crc_table() -> [u32; 256] {
    std::array::from_fn(|index| {
        (0..8).fold(index as u32, |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

fn crc(table: &[u32; 256], bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (crc >> 8) ^ table[((crc ^ u32::from(*byte)) & 0xff) as usize]
    })
}

/// CRC-32 (IEEE 802.3), byte by byte.
pub(crate) fn crc32(_: &Setting) -> io::Result<Work> {
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..16_384).map(|_| random.next() as u8).collect();
    let table = crc_table();
    Ok(Box::new(move |operations| {
        Ok((0..operations).fold(0, |sum, _| {
            mix(sum, u64::from(crc(&table, black_box(&bytes))))
        }))
    }))
}

/// Sorting of random numbers.
pub(crate) fn sort(_: &Setting) -> io::Result<Work> {
    let mut random = Random::new(2);
    let numbers: Vec<u32> = (0..2048).map(|_| random.next() as u32).collect();
    let mut copy = numbers.clone();
    Ok(Box::new(move |operations| {
        let mut sum = 0;
        for _ in 0..operations {
            copy.copy_from_slice(&numbers);
            black_box(&mut copy).sort_unstable();
            sum = mix(sum, u64::from(copy[100]) << 32 | u64::from(copy[2000]));
        }
        Ok(sum)
    }))
}

#[inline(never)]
fn fib(n: u32) -> u64 {
    let n = black_box(n);
    if n < 2 {
        u64::from(n)
    } else {
        fib(n - 1) + fib(n - 2)
    }
}

/// Calls and returns.
pub(crate) fn recursion(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        Ok((0..operations).fold(0, |sum, _| mix(sum, fib(18))))
    }))
}

/// Divisions of 32 and of 64 bits, each waiting for the one before.
fn divide(mut value: u64) -> u64 {
    for step in 0..512u32 {
        let divisor = black_box(u64::from(step) + 3);
        value = (value / divisor).wrapping_add((value % divisor) << 40) | (1 << 63);
        let narrow = value as u32 / black_box(step + 7);
        value ^= u64::from(narrow);
    }
    value
}

/// Division.
pub(crate) fn division(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        Ok((0..operations).fold(0x1234_5678_9abc_def0, |value, _| divide(value)))
    }))
}

/// Instructions of a small stack machine.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Code {
    Push(i32),
    Load(u8),
    Store(u8),
    Add,
    Multiply,
    And,
    ShiftRight,
    JumpIfZero(u16),
    Jump(u16),
    Stop,
}

/// The Collatz steps of the numbers up to a limit in variable 0, summed in variable 2.
const COLLATZ: &[Code] = &[
    // 0: while n != 0
    Code::Load(0),
    Code::JumpIfZero(32),
    Code::Load(0),
    Code::Store(1),
    // 4: while x - 1 != 0
    Code::Load(1),
    Code::Push(-1),
    Code::Add,
    Code::JumpIfZero(27),
    Code::Load(2),
    Code::Push(1),
    Code::Add,
    Code::Store(2),
    Code::Load(1),
    Code::Push(1),
    Code::And,
    Code::JumpIfZero(22),
    // 16: x = 3 x + 1
    Code::Load(1),
    Code::Push(3),
    Code::Multiply,
    Code::Push(1),
    Code::Add,
    Code::Jump(25),
    // 22: x = x >> 1
    Code::Load(1),
    Code::Push(1),
    Code::ShiftRight,
    // 25:
    Code::Store(1),
    Code::Jump(4),
    // 27: n = n - 1
    Code::Load(0),
    Code::Push(-1),
    Code::Add,
    Code::Store(0),
    Code::Jump(0),
    // 32:
    Code::Stop,
];

/// Runs `code` and gives variable 2 and the number of steps.
#[inline(never)]
fn interpret(code: &[Code], limit: i64) -> (i64, u64) {
    let mut variables = [limit, 0, 0, 0];
    let mut stack = [0i64; 16];
    let (mut top, mut next, mut steps) = (0usize, 0usize, 0u64);
    loop {
        let instruction = code[next];
        next += 1;
        steps += 1;
        match instruction {
            Code::Push(value) => {
                stack[top] = i64::from(value);
                top += 1;
            }
            Code::Load(variable) => {
                stack[top] = variables[usize::from(variable)];
                top += 1;
            }
            Code::Store(variable) => {
                top -= 1;
                variables[usize::from(variable)] = stack[top];
            }
            Code::Add => {
                top -= 1;
                stack[top - 1] = stack[top - 1].wrapping_add(stack[top]);
            }
            Code::Multiply => {
                top -= 1;
                stack[top - 1] = stack[top - 1].wrapping_mul(stack[top]);
            }
            Code::And => {
                top -= 1;
                stack[top - 1] &= stack[top];
            }
            Code::ShiftRight => {
                top -= 1;
                stack[top - 1] >>= stack[top] & 63;
            }
            Code::JumpIfZero(target) => {
                top -= 1;
                if stack[top] == 0 {
                    next = usize::from(target);
                }
            }
            Code::Jump(target) => next = usize::from(target),
            Code::Stop => return (variables[2], steps),
        }
    }
}

/// A bytecode interpreter.
pub(crate) fn bytecode(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        let mut sum = 0;
        for _ in 0..operations {
            let (result, steps) = interpret(black_box(COLLATZ), black_box(22));
            sum = mix(sum, result as u64 ^ steps << 32);
        }
        Ok(sum)
    }))
}

/// Functions that differ, so that no two become one.
fn functions() -> [fn(u64) -> u64; 8] {
    [
        |x| x.wrapping_add(0x1111),
        |x| x.rotate_left(5),
        |x| x ^ 0x5555_aaaa,
        |x| x.wrapping_mul(3),
        |x| x.wrapping_sub(77),
        |x| !x,
        |x| x.swap_bytes(),
        |x| x.rotate_right(9) ^ x,
    ]
}

/// Calls through pointers, to targets that change.
pub(crate) fn indirect_calls(_: &Setting) -> io::Result<Work> {
    let mut random = Random::new(3);
    let targets = functions();
    let order: Vec<fn(u64) -> u64> = (0..1024).map(|_| targets[random.below(8)]).collect();
    Ok(Box::new(move |operations| {
        let mut value = checksum(b"indirect");
        for _ in 0..operations {
            for function in black_box(&order) {
                value = function(value);
            }
        }
        Ok(value)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_results() {
        // There are 25 primes below 100 and 3512 below 32768.
        assert_eq!(count_primes(&mut [0; 100]), 25);
        assert_eq!(count_primes(&mut vec![0; SIEVE]), 3512);
        // The check value of CRC-32.
        assert_eq!(crc(&crc_table(), b"123456789"), 0xcbf4_3926);
        assert_eq!(fib(18), 2584);
    }

    #[test]
    fn the_stack_machine_counts_collatz_steps() {
        let steps = |mut x: u64| {
            let mut count = 0;
            while x != 1 {
                x = if x & 1 == 1 { 3 * x + 1 } else { x >> 1 };
                count += 1;
            }
            count
        };
        let expected: i64 = (1..=22).map(steps).sum();
        let (result, executed) = interpret(COLLATZ, 22);
        assert_eq!(result, expected);
        assert!((3000..6000).contains(&executed), "{executed}");
    }
}
