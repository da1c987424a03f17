//! Changing whose child a disk is, and which contents it claims to have.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::Vhdx;
use super::layout::{ITEM_PARENT_LOCATOR, LOG_SECTOR};
use super::metadata::encode_table;
use crate::error::{DiskError, Result};

/// Longest locator that still fits one log entry with room to spare.
const MAX_LOCATOR: u64 = 80 * LOG_SECTOR;

/// A new parent for a differencing disk.
pub(crate) struct NewParent<'a> {
    pub(crate) linkage: Uuid,
    pub(crate) relative: Option<&'a str>,
    pub(crate) absolute: Option<&'a str>,
}

impl Vhdx {
    /// Keeps the data identity through the changes that follow.
    pub(crate) fn keep_identity(&self) {
        self.keep_identity.store(true, Ordering::Release);
    }

    /// Sets the data identity that children are checked against. Durable on return.
    pub(crate) fn set_data_identity(&self, identity: Uuid) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        self.commit(&mut meta)?;
        meta.header.data_write = identity;
        meta.header.write(&*self.file)
    }

    /// Makes this the child of another parent. Durable on return, through the log.
    pub(crate) fn set_parent(&self, new: &NewParent<'_>) -> Result<()> {
        self.change_locator(|locator| {
            locator.set_linkage("parent_linkage", Some(new.linkage));
            locator.set_linkage("parent_linkage2", None);
            locator.set("relative_path", new.relative);
            locator.set("absolute_win32_path", new.absolute);
            locator.set("volume_path", None);
        })
    }

    /// Accepts a second identity of the parent, while a merge changes it.
    pub(crate) fn set_second_linkage(&self, linkage: Option<Uuid>) -> Result<()> {
        self.change_locator(|locator| locator.set_linkage("parent_linkage2", linkage))
    }

    fn change_locator(&self, change: impl FnOnce(&mut super::locator::Locator)) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        let Some(mut locator) = meta.locator.clone() else {
            return Err(DiskError::invalid("the disk has no parent"));
        };
        change(&mut locator);
        let bytes = locator.encode()?;
        let length = bytes.len() as u64;
        if length > MAX_LOCATOR {
            return Err(DiskError::invalid("the parent's path is too long"));
        }
        self.commit(&mut meta)?;
        let end = |items: &[super::metadata::Item]| {
            let others = items.iter().filter(|i| i.id != ITEM_PARENT_LOCATOR);
            others
                .map(|i| u64::from(i.offset) + u64::from(i.length))
                .max()
                .unwrap_or(0)
        };
        // Always after every other item, so that it may grow; the log makes the change whole.
        let offset = end(&meta.items).next_multiple_of(LOG_SECTOR);
        if offset + length > u64::from(meta.metadata_region.length) {
            return Err(DiskError::invalid(
                "the metadata region has no room for the locator",
            ));
        }
        for item in &mut meta.items {
            if item.id == ITEM_PARENT_LOCATOR {
                (item.offset, item.length) = (offset as u32, length as u32);
            }
        }
        let region = meta.metadata_region.offset;
        // Only the sectors that hold entries: the rest of the table stays as it is.
        let used = (32 + meta.items.len() * 32).next_multiple_of(LOG_SECTOR as usize);
        let table = encode_table(&meta.items);
        self.patch(&mut meta, region, &table[..used.min(table.len())])?;
        self.patch(&mut meta, region + offset, &bytes)?;
        self.commit(&mut meta)?;
        meta.locator = Some(locator);
        Ok(())
    }
}
