//! Freshly generated programs, in memory that held other programs before.

use guest_kit::memory;

use crate::{Random, repeat, result, run};

/// Writes machine code.
struct Writer {
    at: u64,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        memory::copy_to(self.at, bytes);
        self.at += bytes.len() as u64;
    }

    fn with_immediate(&mut self, bytes: &[u8], value: u32) {
        self.bytes(bytes);
        self.bytes(&value.to_le_bytes());
    }
}

/// Adds one random operation on EAX and does the same to `value`.
fn operation(writer: &mut Writer, random: &mut Random, value: u32) -> u32 {
    let number = random.next();
    match random.next() % 10 {
        0 => {
            writer.with_immediate(&[0x05], number);
            value.wrapping_add(number)
        }
        1 => {
            writer.with_immediate(&[0x2d], number);
            value.wrapping_sub(number)
        }
        2 => {
            writer.with_immediate(&[0x35], number);
            value ^ number
        }
        3 => {
            writer.with_immediate(&[0x69, 0xc0], number);
            value.wrapping_mul(number)
        }
        4 => {
            writer.bytes(&[0xc1, 0xc0, number as u8 & 31]);
            value.rotate_left(number & 31)
        }
        5 => {
            writer.bytes(&[0xf7, 0xd0]);
            !value
        }
        6 => {
            writer.bytes(&[0x0f, 0xc8]);
            value.swap_bytes()
        }
        7 => {
            // lea eax, [rax + rax*4 + disp8]
            writer.bytes(&[0x8d, 0x44, 0x80, number as u8]);
            value
                .wrapping_mul(5)
                .wrapping_add(number as u8 as i8 as u32)
        }
        8 => {
            // A jump over bytes that would otherwise spoil the value.
            writer.with_immediate(&[0xeb, 5, 0xb8], number);
            value
        }
        _ => {
            // test eax, eax; jns over a NOT
            writer.bytes(&[0x85, 0xc0, 0x79, 2, 0xf7, 0xd0]);
            if value as i32 >= 0 { value } else { !value }
        }
    }
}

/// Writes a program at `at`; returns its result and its end.
fn program(at: u64, random: &mut Random) -> (u32, u64) {
    let mut writer = Writer { at };
    let mut value = random.next();
    writer.with_immediate(&[0xb8], value);
    for _ in 0..random.next() % 30 {
        value = operation(&mut writer, random, value);
    }
    writer.bytes(&[0xc3]);
    (value, writer.at)
}

pub fn programs() {
    let buffer = memory::pages(4);
    let mut random = Random(0x0123_4567_89ab_cdef);
    result(
        "generated programs",
        repeat(|_| {
            let at = buffer + u64::from(random.next()) % 0x3e00;
            let (expected, _) = program(at, &mut random);
            run(at) == expected && run(at) == expected
        }),
    );
}

/// Functions that call one another; one of them is replaced in each round.
pub fn chains() {
    const LINKS: u64 = 8;
    let buffer = memory::pages(LINKS);
    let mut random = Random(0xfedc_ba98_7654_3210);
    let mut addends = [0u32; LINKS as usize];
    let write = |link: u64, addend: u32| {
        let at = buffer + link * 0x1000 + 0x10;
        let mut writer = Writer { at };
        if link + 1 < LINKS {
            // call the next link, add the addend
            let next = buffer + (link + 1) * 0x1000 + 0x10;
            writer.with_immediate(&[0xe8], (next - (at + 5)) as u32);
            writer.with_immediate(&[0x05], addend);
        } else {
            writer.with_immediate(&[0xb8], addend);
        }
        writer.bytes(&[0xc3]);
    };
    for link in 0..LINKS {
        write(link, 0);
    }
    result(
        "chain of functions",
        repeat(|_| {
            let link = u64::from(random.next()) % LINKS;
            let addend = random.next();
            addends[link as usize] = addend;
            write(link, addend);
            let expected = addends
                .iter()
                .fold(0u32, |sum, value| sum.wrapping_add(*value));
            run(buffer + 0x10) == expected
        }),
    );
}
