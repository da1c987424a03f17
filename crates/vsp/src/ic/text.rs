//! Text in fixed fields of UTF-16.

use super::IcError;
use zerocopy::little_endian::U16;

/// Writes text and its terminator into a field; the bytes that both take.
pub(super) fn put(field: &mut [U16], text: &str) -> Result<u32, IcError> {
    if text.contains('\0') {
        return Err(IcError::Argument("the text holds a NUL"));
    }
    let mut length = 0;
    for unit in text.encode_utf16().chain([0]) {
        *field
            .get_mut(length)
            .ok_or(IcError::Argument("the text is too long"))? = unit.into();
        length += 1;
    }
    Ok(length as u32 * 2)
}

/// The text of a field up to its terminator.
pub(super) fn take(field: &[U16]) -> Result<String, IcError> {
    let end = field.iter().position(|unit| unit.get() == 0);
    Ok(decode(
        &field[..end.ok_or(IcError::Protocol("a text without an end"))?],
    ))
}

/// The text in the first `size` bytes of a field. The terminator that should
/// be among them may be missing.
pub(super) fn take_sized(field: &[U16], size: u32) -> Result<String, IcError> {
    let units = field
        .get(..size as usize / 2)
        .filter(|_| size.is_multiple_of(2));
    let units = units.ok_or(IcError::Protocol("a text longer than its field"))?;
    let end = units
        .iter()
        .position(|unit| unit.get() == 0)
        .unwrap_or(units.len());
    Ok(decode(&units[..end]))
}

/// What is not UTF-16 becomes replacement characters: the text is for people.
fn decode(units: &[U16]) -> String {
    let units = units.iter().map(|unit| unit.get());
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<const N: usize>(text: [u16; N]) -> [U16; N] {
        text.map(U16::new)
    }

    #[test]
    fn text_goes_there_and_back() {
        let mut room = [U16::new(0xffff); 6];
        assert_eq!(put(&mut room, "aß𝄞"), Ok(10));
        assert_eq!(take(&room).as_deref(), Ok("aß𝄞"));
        assert_eq!(take_sized(&room, 10).as_deref(), Ok("aß𝄞"));
        assert_eq!(put(&mut room, ""), Ok(2));
        assert_eq!(take(&room).as_deref(), Ok(""));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut room = [U16::new(0); 3];
        assert_eq!(put(&mut room, "ab"), Ok(6));
        assert!(matches!(put(&mut room, "abc"), Err(IcError::Argument(_))));
        assert!(matches!(put(&mut room, "a\0"), Err(IcError::Argument(_))));
    }

    #[test]
    fn hostile_fields() {
        let open = field([0x61, 0x62]);
        assert!(matches!(take(&open), Err(IcError::Protocol(_))));
        assert!(matches!(take(&[]), Err(IcError::Protocol(_))));
        assert_eq!(take_sized(&open, 4).as_deref(), Ok("ab"));
        for size in [1, 3, 5, 6, u32::MAX, u32::MAX - 1] {
            assert!(matches!(take_sized(&open, size), Err(IcError::Protocol(_))));
        }
        assert_eq!(
            take_sized(&field([0xd800, 0x61]), 4).as_deref(),
            Ok("\u{fffd}a")
        );
    }
}
