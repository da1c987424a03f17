//! Memory sizes as people write them.

use vmwp::loader::layout::{MAX_MEMORY, MIN_MEMORY};

const MIB: u64 = 1 << 20;

/// Reads a memory size: a number with a binary unit `K`, `M`, `G` or `T` (also written `KB` or
/// `KiB` and so on). A plain number counts MiB, as in Hyper-V's memory settings. The result is in
/// bytes, a whole number of MiB, within what a VM can have.
pub(crate) fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    if bytes < MIN_MEMORY {
        return Err("it is too little; a VM needs at least 16M".to_owned());
    }
    if bytes > MAX_MEMORY {
        return Err("it is too much; a VM can have at most 1T".to_owned());
    }
    if bytes % MIB != 0 {
        return Err("it is not a whole number of MiB; round it, for example to 512M".to_owned());
    }
    Ok(bytes)
}

fn parse(text: &str) -> Result<u64, String> {
    let malformed =
        || "it is not a size; write a number with K, M, G or T, for example 512M".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 20,
        "k" | "kb" | "kib" => 10,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let number: u64 = number.parse().unwrap_or(u64::MAX);
    Ok(number.saturating_mul(1 << shift))
}

/// A size in bytes for people, in MiB or whole GiB, or in KiB or bytes if it is small.
pub(crate) fn display(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 10 * MIB => format!("{} MiB", b >> 20),
        b if b >= MIB => format!("{:.1} MiB", b as f64 / MIB as f64),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_and_mib_is_the_default() {
        for (text, mib) in [
            ("512", 512),
            ("512M", 512),
            ("512mb", 512),
            ("1g", 1024),
            ("2GiB", 2048),
            ("1T", 1 << 20),
        ] {
            assert_eq!(parse_memory(text), Ok(mib << 20), "{text}");
        }
        assert_eq!(parse_memory("65536K"), Ok(64 << 20));
    }

    #[test]
    fn sizes_out_of_range_say_what_would_be_right() {
        assert!(parse_memory("1M").unwrap_err().contains("at least 16M"));
        assert!(parse_memory("0").unwrap_err().contains("at least 16M"));
        assert!(parse_memory("2T").unwrap_err().contains("at most 1T"));
        assert!(
            parse_memory("99999999999999999999999T")
                .unwrap_err()
                .contains("at most 1T")
        );
        assert!(
            parse_memory("20001K")
                .unwrap_err()
                .contains("whole number of MiB")
        );
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-5M", "5.5G", "1 G", "512X", "0x100", "5MM"] {
            assert!(
                parse_memory(text).unwrap_err().contains("not a size"),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(display(512 << 20), "512 MiB");
        assert_eq!(display(1 << 30), "1 GiB");
        assert_eq!(display(1_500_000), "1.4 MiB");
        assert_eq!(display(5000), "4 KiB");
        assert_eq!(display(7), "7 bytes");
    }
}
