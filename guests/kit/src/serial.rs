//! The first serial port, polled.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{inb, outb};

const PORT: u16 = 0x3f8;

static LOCK: AtomicBool = AtomicBool::new(false);

/// Programs the chip: 115200 baud, 8 data bits, no interrupts.
pub fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        outb(PORT + register, value);
    }
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(PORT + 5) & 0x20 == 0 {}
            outb(PORT, byte);
        }
        Ok(())
    }
}

/// Prints a line while no other processor does.
pub fn print_line(text: fmt::Arguments) {
    // A processor that died while printing must not silence the others for ever.
    let mut patience = 10_000_000u32;
    while LOCK.swap(true, Ordering::Acquire) && patience > 0 {
        patience -= 1;
        crate::cpu::pause();
    }
    let _ = writeln!(Port, "{text}");
    LOCK.store(false, Ordering::Release);
}

/// Prints a line on the serial port.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::serial::print_line(::core::format_args!($($argument)*)) };
}
