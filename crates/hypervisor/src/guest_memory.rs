//! Access to a partition's memory by guest-physical address.

use tlfs::{HV_PAGE_SHIFT, HV_PAGE_SIZE, HvMapGpaFlags};

use crate::{GpaMap, Platform};

/// Why guest memory could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestAccessError {
    /// Nothing is mapped at the address.
    Unmapped(u64),
    /// The page's rights forbid it.
    Denied(u64),
}

/// Splits an access at page boundaries and translates each part.
fn for_each_part(
    map: &GpaMap,
    gpa: u64,
    length: usize,
    right: HvMapGpaFlags,
    mut part: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), crate::BadSpa>,
) -> Result<(), GuestAccessError> {
    let mut done = 0;
    while done < length {
        let address = gpa
            .checked_add(done as u64)
            .ok_or(GuestAccessError::Unmapped(gpa))?;
        let offset = (address as usize) & (HV_PAGE_SIZE - 1);
        let size = (HV_PAGE_SIZE - offset).min(length - done);
        let page = map
            .lookup(address >> HV_PAGE_SHIFT)
            .ok_or(GuestAccessError::Unmapped(address))?;
        if !page.rights.contains(right) {
            return Err(GuestAccessError::Denied(address));
        }
        part(
            page.spa_page << HV_PAGE_SHIFT | offset as u64,
            done..done + size,
        )
        .map_err(|_| GuestAccessError::Unmapped(address))?;
        done += size;
    }
    Ok(())
}

/// Reads `data.len()` bytes from `gpa` on; may cross pages.
pub(crate) fn read(
    platform: &dyn Platform,
    map: &GpaMap,
    gpa: u64,
    data: &mut [u8],
) -> Result<(), GuestAccessError> {
    let length = data.len();
    for_each_part(map, gpa, length, HvMapGpaFlags::READABLE, |spa, range| {
        platform.read(spa, &mut data[range])
    })
}

/// Writes `data` from `gpa` on; may cross pages.
pub(crate) fn write(
    platform: &dyn Platform,
    map: &GpaMap,
    gpa: u64,
    data: &[u8],
) -> Result<(), GuestAccessError> {
    for_each_part(
        map,
        gpa,
        data.len(),
        HvMapGpaFlags::WRITABLE,
        |spa, range| platform.write(spa, &data[range]),
    )
}

/// Checks that `gpa` may be written, without writing.
pub(crate) fn check_writable(
    map: &GpaMap,
    gpa: u64,
    length: usize,
) -> Result<(), GuestAccessError> {
    for_each_part(map, gpa, length, HvMapGpaFlags::WRITABLE, |_, _| Ok(()))
}
