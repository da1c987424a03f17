//! Globally unique identifiers.

use std::fmt;
use std::str::FromStr;

wire! {
    /// A GUID in Microsoft's layout: the first three fields little-endian.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct Guid {
        /// Time, low.
        pub data1: u32,
        /// Time, middle.
        pub data2: u16,
        /// Time, high, and version.
        pub data3: u16,
        /// Clock sequence and node, in order.
        pub data4: [u8; 8],
    }
}

/// A text is not a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID")]
pub struct BadGuid;

impl Guid {
    /// All zero: no GUID.
    pub const ZERO: Self = Self::from_u128(0);

    /// From the 32 hexadecimal digits of the text form, as one number.
    pub const fn from_u128(value: u128) -> Self {
        Self {
            data1: (value >> 96) as u32,
            data2: (value >> 80) as u16,
            data3: (value >> 64) as u16,
            data4: (value as u64).to_be_bytes(),
        }
    }

    /// The digits of the text form as one number.
    pub const fn to_u128(self) -> u128 {
        (self.data1 as u128) << 96
            | (self.data2 as u128) << 80
            | (self.data3 as u128) << 64
            | u64::from_be_bytes(self.data4) as u128
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = u64::from_be_bytes(self.data4);
        let (clock, node) = (low >> 48, low & 0xffff_ffff_ffff);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{clock:04x}-{node:012x}",
            self.data1, self.data2, self.data3
        )
    }
}

impl FromStr for Guid {
    type Err = BadGuid;

    /// The form `8-4-4-4-12`, with or without braces.
    fn from_str(text: &str) -> Result<Self, BadGuid> {
        let inner = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or(text);
        let parts: Vec<&str> = inner.split('-').collect();
        if parts.len() != 5 || !parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) {
            return Err(BadGuid);
        }
        let mut value = 0_u128;
        for digit in parts.concat().chars() {
            value = value << 4 | u128::from(digit.to_digit(16).ok_or(BadGuid)?);
        }
        Ok(Self::from_u128(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn text_and_wire_forms() {
        let text = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f";
        let guid: Guid = text.parse().unwrap();
        assert_eq!(guid.to_string(), text);
        assert_eq!(format!("{{{text}}}").parse(), Ok(guid));
        assert_eq!(guid, Guid::from_u128(guid.to_u128()));
        assert_eq!(
            guid.as_bytes(),
            [
                0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d, 0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1,
                0xdc, 0x7f
            ]
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ba6163d9",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc7",
            "{",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dcxx",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(BadGuid));
        }
        // Multi-byte characters keep the byte lengths but are no digits.
        assert_eq!("éééé-éé-éé-éé-éééééé".parse::<Guid>(), Err(BadGuid));
    }
}
