//! The MC146818 real-time clock with its CMOS memory, at wall time (UTC).
//!
//! The update-in-progress bit never shows: every read takes the time at that
//! moment, so a guest that waits for the bit to clear goes on at once.

use std::time::Duration;

pub(crate) const INDEX_PORT: u16 = 0x70;
pub(crate) const DATA_PORT: u16 = 0x71;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0A;
const REG_B: u8 = 0x0B;
const REG_C: u8 = 0x0C;
const REG_D: u8 = 0x0D;
const CENTURY: u8 = 0x32;

/// Divider running, 1024 Hz periodic rate.
const REG_A_DEFAULT: u8 = 0x26;
const REG_A_WRITABLE: u8 = 0x7F;
const REG_A_RATE: u8 = 0x0F;
const REG_B_24_HOURS: u8 = 1 << 1;
const REG_B_BINARY: u8 = 1 << 2;
const REG_B_SET: u8 = 1 << 7;
/// Memory and time are valid.
const REG_D_VALID: u8 = 0x80;

/// Flags of register C; register B enables them in the same places.
const UPDATE: u8 = 1 << 4;
const ALARM: u8 = 1 << 5;
const PERIODIC: u8 = 1 << 6;
const INTERRUPT: u8 = 1 << 7;

/// Alarm bytes from here up match every value.
const ALARM_ANY: u8 = 0xC0;
const DAY_SECONDS: i64 = 86_400;
const CRYSTAL_HZ: u128 = 32_768;

/// A calendar date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Calendar {
    /// The date of a count of seconds since 1970. Years are counted from
    /// March, so that the leap day is the last of its year.
    fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (
            seconds.div_euclid(DAY_SECONDS),
            seconds.rem_euclid(DAY_SECONDS),
        );
        // Days since 0000-03-01, in eras of 400 years.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// The inverse; fields out of range carry over, the month is clamped.
    fn to_seconds(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let march_month = (month + 9) % 12;
        let of_year = (153 * march_month + 2) / 5 + self.day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - 719_468;
        days * DAY_SECONDS + self.hour * 3600 + self.minute * 60 + self.second
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Monotonic time, in which deadlines are given.
    pub(crate) monotonic: Duration,
    /// Time since 1970 UTC.
    pub(crate) wall: Duration,
}

impl Now {
    fn wall_seconds(self) -> i64 {
        i64::try_from(self.wall.as_secs()).unwrap_or(i64::MAX / 2)
    }
}

#[derive(Debug)]
pub(crate) struct Rtc {
    index: u8,
    memory: [u8; 128],
    reg_a: u8,
    reg_b: u8,
    reg_c: u8,
    /// Guest time minus wall time, in seconds.
    offset: i64,
    /// The time while the guest holds the clock to set it.
    held: Option<Calendar>,
    /// Guest second up to which updates and alarms were looked at.
    seen_second: Option<i64>,
    /// Periodic ticks that were looked at.
    seen_tick: u128,
}

impl Rtc {
    pub(crate) fn new() -> Self {
        Self {
            index: 0,
            memory: [0; 128],
            reg_a: REG_A_DEFAULT,
            reg_b: REG_B_24_HOURS,
            reg_c: 0,
            offset: 0,
            held: None,
            seen_second: None,
            seen_tick: 0,
        }
    }

    /// Writes the index port; bit 7 would mask NMIs and is dropped.
    pub(crate) fn write_index(&mut self, value: u8) {
        self.index = value & 0x7F;
    }

    pub(crate) fn read_data(&mut self, now: Now) -> u8 {
        self.advance(now);
        let time = self.calendar(now);
        match self.index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => {
                self.encode((time.to_seconds().div_euclid(DAY_SECONDS) + 4).rem_euclid(7) + 1)
            }
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year.rem_euclid(100)),
            CENTURY => self.encode(time.year.div_euclid(100).rem_euclid(100)),
            REG_A => self.reg_a,
            REG_B => self.reg_b,
            REG_C => std::mem::take(&mut self.reg_c),
            REG_D => REG_D_VALID,
            index => self.memory[usize::from(index)],
        }
    }

    /// Writes the data port; whether deadlines may have changed.
    pub(crate) fn write_data(&mut self, value: u8, now: Now) -> bool {
        self.advance(now);
        match self.index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => {
                self.write_time(value, now);
                false
            }
            REG_A => {
                self.reg_a = value & REG_A_WRITABLE;
                self.seen_tick = self.tick(now);
                true
            }
            REG_B => {
                self.write_reg_b(value, now);
                true
            }
            WEEKDAY | REG_C | REG_D => false,
            index => {
                self.memory[usize::from(index)] = value;
                false
            }
        }
    }

    /// Whether IRQ 8 is asserted.
    pub(crate) fn irq(&self) -> bool {
        self.reg_c & INTERRUPT != 0
    }

    /// When an enabled interrupt is next due.
    pub(crate) fn next_deadline(&self, now: Now) -> Option<Duration> {
        let second = (self.reg_b & (UPDATE | ALARM) != 0).then(|| {
            let fraction = Duration::from_nanos(now.wall.subsec_nanos().into());
            now.monotonic + Duration::from_secs(1) - fraction
        });
        let tick = self
            .shift()
            .filter(|_| self.reg_b & PERIODIC != 0)
            .map(|shift| {
                let crystal = (self.seen_tick + 1) << shift;
                let nanoseconds = (crystal * 1_000_000_000).div_ceil(CRYSTAL_HZ);
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            });
        match (second, tick) {
            (Some(second), Some(tick)) => Some(second.min(tick)),
            (second, tick) => second.or(tick),
        }
    }

    /// Brings the flags up to date.
    pub(crate) fn advance(&mut self, now: Now) {
        let second = now.wall_seconds().saturating_add(self.offset);
        let seen = self.seen_second.replace(second).unwrap_or(second);
        if self.held.is_none() && second > seen {
            self.reg_c |= UPDATE;
            // One day holds every time of day there is.
            let first = second.saturating_sub(DAY_SECONDS).max(seen);
            if (first + 1..=second).any(|second| self.alarm_matches(second)) {
                self.reg_c |= ALARM;
            }
        }
        let tick = self.tick(now);
        if tick != std::mem::replace(&mut self.seen_tick, tick) {
            self.reg_c |= PERIODIC;
        }
        self.update_interrupt();
    }

    fn update_interrupt(&mut self) {
        if self.reg_b & self.reg_c & (UPDATE | ALARM | PERIODIC) != 0 {
            self.reg_c |= INTERRUPT;
        }
    }

    fn write_reg_b(&mut self, value: u8, now: Now) {
        let time = self.calendar(now);
        if value & REG_B_SET != 0 {
            self.held = Some(time);
        } else if self.held.take().is_some() {
            self.set_time(time, now);
        }
        self.reg_b = value;
        self.update_interrupt();
    }

    fn write_time(&mut self, value: u8, now: Now) {
        let mut time = self.calendar(now);
        let number = self.decode(value);
        match self.index {
            SECONDS => time.second = number,
            MINUTES => time.minute = number,
            HOURS => time.hour = self.decode_hour(value),
            DAY => time.day = number,
            MONTH => time.month = number,
            YEAR => time.year += number - time.year.rem_euclid(100),
            _ => time.year = number * 100 + time.year.rem_euclid(100),
        }
        if self.held.is_some() {
            self.held = Some(time);
        } else {
            self.set_time(time, now);
        }
    }

    fn set_time(&mut self, time: Calendar, now: Now) {
        let seconds = time.to_seconds();
        self.offset = seconds.saturating_sub(now.wall_seconds());
        self.seen_second = Some(seconds);
    }

    fn calendar(&self, now: Now) -> Calendar {
        self.held.unwrap_or_else(|| {
            Calendar::from_seconds(now.wall_seconds().saturating_add(self.offset))
        })
    }

    fn alarm_matches(&self, second: i64) -> bool {
        let time = Calendar::from_seconds(second);
        let matches = |index: u8, encoded: u8| {
            let alarm = self.memory[usize::from(index)];
            alarm >= ALARM_ANY || alarm == encoded
        };
        matches(SECONDS_ALARM, self.encode(time.second))
            && matches(MINUTES_ALARM, self.encode(time.minute))
            && matches(HOURS_ALARM, self.encode_hour(time.hour))
    }

    /// Log2 of crystal cycles between periodic ticks; `None` if off.
    fn shift(&self) -> Option<u32> {
        match self.reg_a & REG_A_RATE {
            0 => None,
            // The two lowest codes repeat rates of higher ones.
            rate @ 1..=2 => Some(u32::from(rate) + 6),
            rate => Some(u32::from(rate) - 1),
        }
    }

    fn tick(&self, now: Now) -> u128 {
        let crystal = now.monotonic.as_nanos() * CRYSTAL_HZ / 1_000_000_000;
        self.shift().map_or(0, |shift| crystal >> shift)
    }

    /// `value` is 0 to 99.
    fn encode(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.reg_b & REG_B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> i64 {
        if self.reg_b & REG_B_BINARY != 0 {
            value.into()
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 0xF)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.reg_b & REG_B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.reg_b & REG_B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7F) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: u64 = 1_709_251_198;

    fn at(milliseconds: u64) -> Now {
        let monotonic = Duration::from_millis(milliseconds);
        Now {
            monotonic,
            wall: Duration::from_secs(LEAP) + monotonic,
        }
    }

    fn read(rtc: &mut Rtc, index: u8, now: Now) -> u8 {
        rtc.write_index(index);
        rtc.read_data(now)
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8, now: Now) -> bool {
        rtc.write_index(index);
        rtc.write_data(value, now)
    }

    fn time(rtc: &mut Rtc, now: Now) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|i| read(rtc, i, now))
    }

    #[test]
    fn bcd_wall_time_over_a_leap_day() {
        let mut rtc = Rtc::new();
        assert_eq!(
            time(&mut rtc, at(0)),
            [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]
        );
        assert_eq!(
            time(&mut rtc, at(2000)),
            [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]
        );
        assert_eq!(
            (read(&mut rtc, REG_A, at(0)), read(&mut rtc, REG_D, at(0))),
            (0x26, 0x80)
        );
    }

    #[test]
    fn binary_and_twelve_hours() {
        let mut rtc = Rtc::new();
        write(&mut rtc, REG_B, REG_B_BINARY, at(0));
        assert_eq!(read(&mut rtc, HOURS, at(0)), 0x8B);
        assert_eq!(read(&mut rtc, HOURS, at(2000)), 12, "midnight");
        assert_eq!(read(&mut rtc, SECONDS, at(0)), 58);
        write(&mut rtc, HOURS, 0x8C, at(0));
        write(&mut rtc, REG_B, REG_B_BINARY | REG_B_24_HOURS, at(0));
        assert_eq!(read(&mut rtc, HOURS, at(0)), 12, "noon");
    }

    #[test]
    fn calendar_round_trip() {
        for day in (-800_000..3_000_000).step_by(97) {
            let seconds = day * DAY_SECONDS + 12_345;
            assert_eq!(Calendar::from_seconds(seconds).to_seconds(), seconds);
        }
        let epoch = Calendar::from_seconds(0);
        assert_eq!((epoch.year, epoch.month, epoch.day), (1970, 1, 1));
    }

    #[test]
    fn setting_the_time_holds_the_clock() {
        let mut rtc = Rtc::new();
        write(&mut rtc, REG_B, REG_B_SET | REG_B_24_HOURS, at(0));
        for (index, value) in [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31)] {
            write(&mut rtc, index, value, at(500));
        }
        assert_eq!(read(&mut rtc, SECONDS, at(9000)), 0x58, "held");
        write(&mut rtc, REG_B, REG_B_24_HOURS, at(9000));
        assert_eq!(
            time(&mut rtc, at(11_000)),
            [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]
        );
    }

    #[test]
    fn memory_keeps_bytes() {
        let mut rtc = Rtc::new();
        write(&mut rtc, 0xC0, 0xA5, at(0));
        assert_eq!(
            read(&mut rtc, 0x40, at(0)),
            0xA5,
            "bit 7 of the index is not part of it"
        );
        write(&mut rtc, REG_D, 0, at(0));
        assert_eq!(read(&mut rtc, REG_D, at(0)), 0x80);
    }

    #[test]
    fn update_and_alarm_interrupts() {
        let mut rtc = Rtc::new();
        write(&mut rtc, REG_A, 0x20, at(0));
        assert_eq!(rtc.next_deadline(at(0)), None);
        assert!(write(&mut rtc, REG_B, REG_B_24_HOURS | UPDATE, at(300)));
        assert_eq!(
            rtc.next_deadline(at(300)),
            Some(Duration::from_millis(1000))
        );
        rtc.advance(at(1000));
        assert!(rtc.irq());
        assert_eq!(read(&mut rtc, REG_C, at(1000)), INTERRUPT | UPDATE);
        assert!(!rtc.irq());
        for (index, value) in [
            (SECONDS_ALARM, 0),
            (MINUTES_ALARM, 0xFF),
            (HOURS_ALARM, 0xC0),
        ] {
            write(&mut rtc, index, value, at(1000));
        }
        write(&mut rtc, REG_B, REG_B_24_HOURS | ALARM, at(1000));
        rtc.advance(at(1999));
        assert!(!rtc.irq());
        rtc.advance(at(2000));
        assert_eq!(read(&mut rtc, REG_C, at(2000)), INTERRUPT | ALARM | UPDATE);
    }

    #[test]
    fn periodic_interrupt() {
        let mut rtc = Rtc::new();
        write(&mut rtc, REG_A, 0x2F, at(0));
        write(&mut rtc, REG_B, REG_B_24_HOURS | PERIODIC, at(0));
        assert_eq!(rtc.next_deadline(at(0)), Some(Duration::from_millis(500)));
        rtc.advance(at(499));
        assert!(!rtc.irq());
        rtc.advance(at(500));
        assert_eq!(read(&mut rtc, REG_C, at(500)), INTERRUPT | PERIODIC);
        assert_eq!(
            rtc.next_deadline(at(500)),
            Some(Duration::from_millis(1000))
        );
        write(&mut rtc, REG_A, 0x20, at(600));
        assert_eq!(rtc.next_deadline(at(600)), None, "rate 0 is off");
    }

    #[test]
    fn nonsense_dates_do_no_harm() {
        let mut rtc = Rtc::new();
        for index in [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS] {
            for value in [0, 0x5A, 0xFF] {
                write(&mut rtc, index, value, at(0));
                time(&mut rtc, at(100_000_000));
            }
        }
    }
}
