//! PAT and the memory type range registers (SDM 3A chapter 12). All guest
//! memory is the host's write-back memory: they are kept and checked, and
//! change nothing.

use crate::state::Msrs;

const CAP: u32 = 0xfe;
const VARIABLE_FIRST: u32 = 0x200;
const VARIABLE_LAST: u32 = 0x20f;
const FIX64K_00000: u32 = 0x250;
const FIX16K_80000: u32 = 0x258;
const FIX16K_A0000: u32 = 0x259;
const FIX4K_FIRST: u32 = 0x268;
const FIX4K_LAST: u32 = 0x26f;
const PAT: u32 = 0x277;
const DEF_TYPE: u32 = 0x2ff;

/// Eight variable ranges, fixed ranges, write combining.
const CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;

/// The fixed range register's place.
fn fixed(index: u32) -> Option<usize> {
    match index {
        FIX64K_00000 => Some(0),
        FIX16K_80000 => Some(1),
        FIX16K_A0000 => Some(2),
        FIX4K_FIRST..=FIX4K_LAST => Some((index - FIX4K_FIRST) as usize + 3),
        _ => None,
    }
}

/// UC, WC, WT, WP or WB.
fn is_mtrr_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// The same and UC-.
fn is_pat_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4..=7)
}

/// Reads one of these registers; `None` for other MSRs.
pub(super) fn read(msrs: &Msrs, index: u32) -> Option<u64> {
    if let Some(slot) = fixed(index) {
        return Some(msrs.mtrr_fixed[slot]);
    }
    match index {
        CAP => Some(CAP_VALUE),
        VARIABLE_FIRST..=VARIABLE_LAST => {
            Some(msrs.mtrr_variable[(index - VARIABLE_FIRST) as usize])
        }
        PAT => Some(msrs.pat),
        DEF_TYPE => Some(msrs.mtrr_def_type),
        _ => None,
    }
}

/// Writes one of these registers; `None` for other MSRs, `Some(false)` when
/// the value is refused.
pub(super) fn write(msrs: &mut Msrs, index: u32, value: u64, physical_bits: u32) -> Option<bool> {
    let types = value.to_le_bytes();
    if let Some(slot) = fixed(index) {
        let valid = types.iter().all(|&kind| is_mtrr_type(kind));
        if valid {
            msrs.mtrr_fixed[slot] = value;
        }
        return Some(valid);
    }
    let beyond = !((1u64 << physical_bits) - 1);
    let (valid, place) = match index {
        CAP => return Some(false),
        VARIABLE_FIRST..=VARIABLE_LAST => {
            let is_mask = index & 1 != 0;
            let reserved = if is_mask {
                beyond | 0x7ff
            } else {
                beyond | 0xf00
            };
            let valid = value & reserved == 0 && (is_mask || is_mtrr_type(types[0]));
            (
                valid,
                &mut msrs.mtrr_variable[(index - VARIABLE_FIRST) as usize],
            )
        }
        PAT => (types.iter().all(|&kind| is_pat_type(kind)), &mut msrs.pat),
        DEF_TYPE => {
            let valid = value & !0xcff == 0 && is_mtrr_type(types[0]);
            (valid, &mut msrs.mtrr_def_type)
        }
        _ => return None,
    };
    if valid {
        *place = value;
    }
    Some(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_types_and_reserved_bits_are_refused_and_change_nothing() {
        let mut msrs = Msrs {
            pat: 0x0007_0406_0007_0406,
            ..Msrs::default()
        };
        assert_eq!(write(&mut msrs, PAT, 2, 40), Some(false));
        assert_eq!(read(&msrs, PAT), Some(0x0007_0406_0007_0406));
        assert_eq!(write(&mut msrs, PAT, 0x0507_0406_0007_0106, 40), Some(true));
        assert_eq!(write(&mut msrs, DEF_TYPE, 0xc06, 40), Some(true));
        assert_eq!(write(&mut msrs, DEF_TYPE, 0x1c06, 40), Some(false));
        assert_eq!(write(&mut msrs, DEF_TYPE, 0xc07, 40), Some(false));
        assert_eq!(read(&msrs, DEF_TYPE), Some(0xc06));
        assert_eq!(write(&mut msrs, 0x201, 1 << 40 | 0x800, 40), Some(false));
        assert_eq!(write(&mut msrs, 0x201, 0xff_ffff_f800, 40), Some(true));
        assert_eq!(write(&mut msrs, 0x200, 0x106, 40), Some(false));
        assert_eq!(
            write(&mut msrs, 0x268, 0x0606_0606_0606_0606, 40),
            Some(true)
        );
        assert_eq!(
            write(&mut msrs, 0x268, 0x0206_0606_0606_0606, 40),
            Some(false)
        );
        assert_eq!(write(&mut msrs, CAP, 0, 40), Some(false));
        assert_eq!(write(&mut msrs, 0x300, 0, 40), None);
    }
}
