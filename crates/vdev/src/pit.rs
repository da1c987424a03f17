//! The 8254 interval timer and the system control port 0x61 that gates its
//! third channel (Intel 8254 data sheet).

use std::time::Duration;

/// Input clock in Hz.
const FREQUENCY: u128 = 1_193_182;
const NANOSECONDS: u128 = 1_000_000_000;
/// Expiries closer together than this reach the host as one.
const SHORTEST_WAIT: Duration = Duration::from_micros(50);
/// Half of the refresh cycle that port 0x61 shows.
const REFRESH_HALF_CYCLE_NS: u128 = 15_085;

/// Data port of channel 0; the other two follow.
pub(crate) const CHANNEL0: u16 = 0x40;
pub(crate) const CHANNEL2: u16 = 0x42;
pub(crate) const COMMAND: u16 = 0x43;

fn ticks(time: Duration) -> u64 {
    (time.as_nanos() * FREQUENCY / NANOSECONDS) as u64
}

/// The first moment at which [`ticks`] is at least `ticks`.
fn time_of(ticks: u64) -> Duration {
    let nanoseconds = (u128::from(ticks) * NANOSECONDS).div_ceil(FREQUENCY);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| {
        sum * 10 + u32::from(value >> (4 * digit) & 0xF)
    })
}

fn to_bcd(mut value: u32) -> u16 {
    let mut bcd = 0;
    for digit in 0..4 {
        bcd |= ((value % 10) as u16) << (4 * digit);
        value /= 10;
    }
    bcd
}

/// Which half of a 16-bit value the data port takes or gives next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Debug)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    /// The programmed count, 1 to 65536 (10000 in BCD).
    reload: u32,
    /// When counting began, in ticks; `None` until a count was written.
    start: Option<u64>,
    /// Ticks counted when the gate went low.
    paused: Option<u64>,
    gate: bool,
    /// Rising edges of OUT since `start` that were reported.
    reported: u64,
    latched: Option<u16>,
    latched_status: Option<u8>,
    low_written: Option<u8>,
    high_next: bool,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::Both,
            reload: 0x1_0000,
            start: None,
            paused: None,
            gate,
            reported: 0,
            latched: None,
            latched_status: None,
            low_written: None,
            high_next: false,
        }
    }

    fn configure(&mut self, command: u8) {
        let access = match command >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // Modes 6 and 7 are other names of 2 and 3.
        let mode = match command >> 1 & 7 {
            mode @ 6.. => mode - 4,
            mode => mode,
        };
        *self = Self {
            mode,
            access,
            bcd: command & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.low_written) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.low_written = Some(value);
                return;
            }
            (Access::Both, Some(low)) => {
                self.low_written = None;
                u16::from_le_bytes([low, value])
            }
        };
        self.reload = match (count, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => count.into(),
            (count, true) => from_bcd(count).max(1),
        };
        self.restart(now);
    }

    fn restart(&mut self, now: u64) {
        // Modes 1 and 5 wait for the gate to rise.
        let triggered = matches!(self.mode, 1 | 5);
        self.start = (!triggered).then_some(now);
        self.paused = (!triggered && !self.gate).then_some(0);
        self.reported = 0;
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        let elapsed = self.elapsed(now);
        self.gate = gate;
        match self.mode {
            0 | 4 if rising => {
                if let Some(counted) = self.paused.take() {
                    self.start = Some(now.saturating_sub(counted));
                }
            }
            0 | 2..=4 if falling => self.paused = elapsed,
            1..=3 | 5 if rising => {
                self.start = Some(now);
                self.paused = None;
                self.reported = 0;
            }
            _ => {}
        }
    }

    fn elapsed(&self, now: u64) -> Option<u64> {
        let start = self.start?;
        Some(self.paused.unwrap_or(now.saturating_sub(start)))
    }

    /// The counting element.
    fn count(&self, now: u64) -> u16 {
        let Some(elapsed) = self.elapsed(now) else {
            return 0;
        };
        let reload = u64::from(self.reload);
        let count = match self.mode {
            2 => reload - elapsed % reload,
            3 => {
                let phase = 2 * (elapsed % reload);
                if phase < reload {
                    reload - phase
                } else {
                    2 * reload - phase
                }
            }
            _ => {
                let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
                (reload + modulus - elapsed % modulus) % modulus
            }
        };
        // 65536 shows as 0.
        if self.bcd {
            to_bcd(count as u32)
        } else {
            count as u16
        }
    }

    fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else {
            return self.mode != 0;
        };
        let reload = u64::from(self.reload);
        match self.mode {
            0 | 1 => elapsed >= reload,
            2 => elapsed % reload != reload - 1,
            3 => elapsed % reload < reload.div_ceil(2),
            _ => elapsed != reload,
        }
    }

    fn status(&self, now: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let no_count = self.start.is_none();
        u8::from(self.output(now)) << 7
            | u8::from(no_count) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.count(now));
        let [low, high] = value.to_le_bytes();
        let (byte, complete) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.high_next => (high, true),
            Access::Both => (low, false),
        };
        self.high_next = !complete;
        if complete {
            self.latched = None;
        }
        byte
    }

    fn latch_count(&mut self, now: u64) {
        self.latched = self.latched.or(Some(self.count(now)));
    }

    /// Ticks from the start to the `n`th rising edge of OUT (from 1), if
    /// there is one.
    fn edge(&self, n: u64) -> Option<u64> {
        let reload = u64::from(self.reload);
        match self.mode {
            2 | 3 => Some(n.saturating_mul(reload)),
            0 | 1 => (n == 1).then_some(reload),
            _ => (n == 1).then_some(reload + 1),
        }
    }

    /// Edges that lie `elapsed` ticks or less after the start.
    fn edges_until(&self, elapsed: u64) -> u64 {
        match self.mode {
            2 | 3 => elapsed / u64::from(self.reload),
            _ => self.edge(1).is_some_and(|edge| edge <= elapsed).into(),
        }
    }

    /// Ticks at which OUT next rises.
    fn next_edge(&self) -> Option<u64> {
        let start = self.start.filter(|_| self.paused.is_none())?;
        Some(start.saturating_add(self.edge(self.reported + 1)?))
    }

    /// Whether OUT rose since the last call.
    fn rose(&mut self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else {
            return false;
        };
        let edges = self.edges_until(elapsed);
        let rose = edges > self.reported;
        self.reported = self.reported.max(edges);
        rose
    }
}

/// The three channels and port 0x61.
#[derive(Debug)]
pub(crate) struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    earliest: Duration,
}

impl Pit {
    pub(crate) fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            earliest: Duration::ZERO,
        }
    }

    /// Reads data port `port`; the command port cannot be read.
    pub(crate) fn read(&mut self, port: u16, now: Duration) -> u8 {
        match self
            .channels
            .get_mut(usize::from(port.wrapping_sub(CHANNEL0)))
        {
            Some(channel) => channel.read(ticks(now)),
            None => 0xFF,
        }
    }

    /// Writes a data port or the command port.
    pub(crate) fn write(&mut self, port: u16, value: u8, now: Duration) {
        if port == COMMAND {
            self.command(value, ticks(now));
        } else if let Some(channel) = self
            .channels
            .get_mut(usize::from(port.wrapping_sub(CHANNEL0)))
        {
            channel.write(value, ticks(now));
        }
    }

    fn command(&mut self, command: u8, now: u64) {
        match self.channels.get_mut(usize::from(command >> 6)) {
            Some(channel) if command & 0x30 == 0 => channel.latch_count(now),
            Some(channel) => channel.configure(command),
            None => self.read_back(command, now),
        }
    }

    fn read_back(&mut self, command: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if command & 2 << index == 0 {
                continue;
            }
            if command & 0x20 == 0 {
                channel.latch_count(now);
            }
            if command & 0x10 == 0 && channel.latched_status.is_none() {
                channel.latched_status = Some(channel.status(now));
            }
        }
    }

    /// Port 0x61: gate of channel 2, speaker, refresh and OUT of channel 2.
    pub(crate) fn read_control(&self, now: Duration) -> u8 {
        let refresh = !(now.as_nanos() / REFRESH_HALF_CYCLE_NS).is_multiple_of(2);
        let channel = &self.channels[2];
        u8::from(channel.gate)
            | u8::from(self.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(channel.output(ticks(now))) << 5
    }

    pub(crate) fn write_control(&mut self, value: u8, now: Duration) {
        self.speaker = value & 2 != 0;
        self.channels[2].set_gate(value & 1 != 0, ticks(now));
    }

    /// When channel 0 next interrupts.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.channels[0]
            .next_edge()
            .map(|edge| time_of(edge).max(self.earliest))
    }

    /// Whether channel 0 interrupted since the last call; several expiries
    /// count as one.
    pub(crate) fn expire(&mut self, now: Duration) -> bool {
        let rose = self.channels[0].rose(ticks(now));
        if rose {
            self.earliest = now + SHORTEST_WAIT;
        }
        rose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ticks: u64) -> Duration {
        time_of(ticks)
    }

    fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
        pit.write(COMMAND, channel << 6 | 0x30 | mode << 1, at(now));
        let [low, high] = count.to_le_bytes();
        pit.write(CHANNEL0 + u16::from(channel), low, at(now));
        pit.write(CHANNEL0 + u16::from(channel), high, at(now));
    }

    fn count(pit: &mut Pit, channel: u8, now: u64) -> u16 {
        pit.write(COMMAND, channel << 6, at(now));
        let port = CHANNEL0 + u16::from(channel);
        let low = pit.read(port, at(now + 3));
        u16::from_le_bytes([low, pit.read(port, at(now + 9))])
    }

    #[test]
    fn time_conversion_is_consistent() {
        for tick in [0, 1, 2, 1193, 1_193_182, u64::from(u32::MAX)] {
            assert_eq!(ticks(time_of(tick)), tick);
        }
        assert_eq!(ticks(Duration::from_secs(1)), 1_193_182);
    }

    #[test]
    fn rate_generator_interrupts_periodically() {
        let mut pit = Pit::new();
        assert_eq!(pit.next_deadline(), None);
        program(&mut pit, 0, 2, 11_932, 100);
        assert_eq!(pit.next_deadline(), Some(at(100 + 11_932)));
        assert!(!pit.expire(at(100 + 11_931)));
        assert!(pit.expire(at(100 + 11_932)));
        assert!(!pit.expire(at(100 + 11_940)));
        assert!(
            pit.expire(at(100 + 5 * 11_932)),
            "missed periods count as one"
        );
        assert_eq!(pit.next_deadline(), Some(at(100 + 6 * 11_932)));
        assert_eq!(count(&mut pit, 0, 100 + 6 * 11_932 + 32), 11_900);
    }

    #[test]
    fn one_shot_interrupts_once() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 0, 1000, 0);
        assert_eq!(count(&mut pit, 0, 400), 600);
        assert!(pit.expire(at(1000)));
        assert_eq!(pit.next_deadline(), None);
        assert!(!pit.expire(at(70_000)));
        assert_eq!(
            count(&mut pit, 0, 1001),
            0xFFFF,
            "counting goes on below zero"
        );
    }

    #[test]
    fn count_zero_is_the_longest() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 3, 0, 0);
        assert_eq!(pit.next_deadline(), Some(at(65_536)));
        assert_eq!(
            count(&mut pit, 0, 100),
            65_336,
            "the square wave counts by two"
        );
    }

    #[test]
    fn gate_and_output_of_channel_two() {
        let mut pit = Pit::new();
        pit.write_control(0, at(0));
        program(&mut pit, 2, 0, 500, 0);
        assert_eq!(
            pit.read_control(at(600)) & 0x21,
            0,
            "the gate holds the count"
        );
        pit.write_control(1, at(1000));
        assert_eq!(pit.read_control(at(1499)) & 0x21, 1);
        assert_eq!(pit.read_control(at(1500)) & 0x21, 0x21);
        pit.write_control(2, at(1600));
        assert_eq!(pit.read_control(at(1600)) & 3, 2);
        assert_ne!(
            pit.read_control(Duration::ZERO) & 0x10,
            pit.read_control(Duration::from_micros(16)) & 0x10
        );
    }

    #[test]
    fn read_back_latches_status_and_count() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1000, 0);
        pit.write(COMMAND, 0xC2, at(10));
        assert_eq!(
            pit.read(CHANNEL0, at(20)),
            0xB4,
            "OUT high, both bytes, mode 2"
        );
        assert_eq!(pit.read(CHANNEL0, at(20)), (990 & 0xFF) as u8);
        assert_eq!(pit.read(CHANNEL0, at(20)), (990 >> 8) as u8);
    }

    #[test]
    fn single_byte_access_and_bcd() {
        let mut pit = Pit::new();
        pit.write(COMMAND, 0x10, at(0));
        pit.write(CHANNEL0, 200, at(0));
        assert_eq!(pit.read(CHANNEL0, at(50)), 150);
        pit.write(COMMAND, 0x35, at(0));
        pit.write(CHANNEL0, 0x34, at(0));
        pit.write(CHANNEL0, 0x12, at(0));
        assert_eq!(pit.next_deadline(), Some(at(1234)));
        assert_eq!(count(&mut pit, 0, 34), 0x1200);
    }

    #[test]
    fn absurdly_short_periods_do_not_flood_the_host() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1, 0);
        let now = Duration::from_millis(1);
        assert!(pit.expire(now));
        assert_eq!(pit.next_deadline(), Some(now + SHORTEST_WAIT));
    }
}
