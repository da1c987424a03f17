//! Disk sizes as people write them.

use std::fmt;

/// Largest whole number that still reads well.
const MAX_WHOLE: u64 = 9999;

/// A new size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// So many bytes.
    To(u64),
    /// So many bytes more.
    By(u64),
}

/// Reads a size in bytes: a number with `B` or a binary unit `K`, `M`, `G` or `T` (also written
/// `KB` or `KiB` and so on). A plain number is refused: programs disagree on what it counts.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let malformed =
        || "it is not a size; write a number with B, K, M, G or T, for example 10G".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "" if digits > 0 => {
            return Err(format!(
                "it lacks a unit; write {text}G, or {text}B for bytes"
            ));
        }
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(0) => Err("it is nothing; give a size like 10G".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("it is too much; the largest disk has 64T".to_owned()),
    }
}

/// Reads a new size, or with a plus sign what to add.
pub(super) fn parse_change(text: &str) -> Result<Change, String> {
    match text.strip_prefix('+') {
        Some(more) => parse_size(more).map(Change::By),
        None => parse_size(text).map(Change::To),
    }
}

/// A number of bytes for people: in the largest unit that gives a whole number of at most four
/// digits, else with one decimal place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let fitting = || units.iter().filter(|(shift, _)| self.0 >> shift > 0);
        let whole = |&&(shift, _): &&(u32, &str)| {
            self.0.is_multiple_of(1 << shift) && self.0 >> shift <= MAX_WHOLE
        };
        match (fitting().find(whole), fitting().next()) {
            (Some((shift, unit)), _) => write!(f, "{} {unit}", self.0 >> shift),
            (None, Some((shift, unit))) => {
                write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64)
            }
            (None, None) => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("512B", 512),
            ("4k", 4096),
            ("10G", 10 << 30),
            ("64TiB", 64 << 40),
            ("1mb", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_would_be_right() {
        for (text, part) in [
            ("10", "write 10G, or 10B"),
            ("G", "for example 10G"),
            ("", "for example 10G"),
            ("-1G", "for example 10G"),
            ("1.5G", "for example 10G"),
            ("0G", "like 10G"),
            ("99999999999T", "64T"),
        ] {
            let message = parse_size(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_plus_sign_adds() {
        assert_eq!(parse_change("+5G"), Ok(Change::By(5 << 30)));
        assert_eq!(parse_change("5G"), Ok(Change::To(5 << 30)));
        assert!(parse_change("++5G").is_err());
    }

    #[test]
    fn bytes_read_well() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (512, "512 bytes"),
            (4096, "4 KiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) + (512 << 20), "10.5 GiB"),
            (1 << 40, "1 TiB"),
            (2040 << 30, "2040 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
