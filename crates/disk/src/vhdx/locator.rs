//! The parent locator of a differencing disk (MS-VHDX 2.6.2.6): key-value pairs in UTF-16LE.

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{LOCATOR_TYPE_VHDX, LocatorEntry, LocatorHeader, guid};
use crate::error::{DiskError, Result};
use crate::types::ParentInfo;

const NAME: &str = "VHDX parent locator";
/// An honest locator has five pairs.
const MAX_PAIRS: u16 = 64;
/// Room that is kept for a locator, so that another path fits in place.
const MIN_LEN: usize = 4096;

/// Where the parent is, and which contents it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Locator {
    pairs: Vec<(String, String)>,
}

impl Locator {
    /// A locator with the linkage and both paths.
    pub(super) fn new(linkage: Uuid, relative: Option<&str>, absolute: Option<&str>) -> Self {
        let mut locator = Self { pairs: Vec::new() };
        locator.set("parent_linkage", Some(&braced(linkage)));
        locator.set("relative_path", relative);
        locator.set("absolute_win32_path", absolute);
        locator
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// Sets or removes a pair.
    pub(super) fn set(&mut self, key: &str, value: Option<&str>) {
        self.pairs.retain(|(k, _)| k != key);
        if let Some(value) = value {
            self.pairs.push((key.to_owned(), value.to_owned()));
        }
    }

    /// Sets one of the linkage GUIDs.
    pub(super) fn set_linkage(&mut self, key: &str, value: Option<Uuid>) {
        self.set(key, value.map(braced).as_deref());
    }

    fn linkage(&self, key: &str) -> Option<Uuid> {
        Uuid::try_parse(self.get(key)?).ok()
    }

    pub(super) fn info(&self) -> ParentInfo {
        ParentInfo {
            linkage: self.linkage("parent_linkage").unwrap_or_default(),
            linkage2: self.linkage("parent_linkage2"),
            relative_path: self.get("relative_path").map(str::to_owned),
            absolute_path: self.get("absolute_win32_path").map(str::to_owned),
            resolved: None,
        }
    }

    /// Reads the item that lies at `at` in the file.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let corrupt = |reason: &str| DiskError::corrupt(NAME, at, reason);
        let (header, rest) =
            LocatorHeader::read_from_prefix(bytes).map_err(|_| corrupt("it is too short"))?;
        if guid(header.locator_type) != LOCATOR_TYPE_VHDX {
            let reason = format!("type {} is unknown", guid(header.locator_type));
            return Err(DiskError::unsupported(NAME, at, reason));
        }
        if header.count.get() > MAX_PAIRS {
            return Err(corrupt("it has more than 64 pairs"));
        }
        let mut pairs = Vec::new();
        let mut rest = rest;
        for _ in 0..header.count.get() {
            let (entry, tail) =
                LocatorEntry::read_from_prefix(rest).map_err(|_| corrupt("an entry is cut"))?;
            rest = tail;
            let text = |offset: u32, length: u16| {
                let start = offset as usize;
                let raw = bytes.get(start..start.checked_add(usize::from(length))?)?;
                utf16le(raw)
            };
            let key = text(entry.key_offset.get(), entry.key_length.get());
            let value = text(entry.value_offset.get(), entry.value_length.get());
            let (Some(key), Some(value)) = (key, value) else {
                return Err(corrupt("a key or value is not UTF-16 text inside it"));
            };
            pairs.push((key, value));
        }
        let locator = Self { pairs };
        if locator.linkage("parent_linkage").is_none() {
            return Err(corrupt("parent_linkage is missing or not a GUID"));
        }
        Ok(locator)
    }

    /// Lays out the item.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let header = LocatorHeader {
            locator_type: LOCATOR_TYPE_VHDX.to_bytes_le(),
            reserved: 0.into(),
            count: (self.pairs.len() as u16).into(),
        };
        let mut entries = header.as_bytes().to_vec();
        let mut text = Vec::new();
        let text_at = entries.len() + self.pairs.len() * size_of::<LocatorEntry>();
        let mut put = |s: &str| -> Result<(u32, u16)> {
            let raw: Vec<u8> = s.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let offset = (text_at + text.len()) as u32;
            let length = u16::try_from(raw.len())
                .map_err(|_| DiskError::invalid("a path is too long for a parent locator"))?;
            text.extend_from_slice(&raw);
            Ok((offset, length))
        };
        for (key, value) in &self.pairs {
            let (key_offset, key_length) = put(key)?;
            let (value_offset, value_length) = put(value)?;
            let entry = LocatorEntry {
                key_offset: key_offset.into(),
                value_offset: value_offset.into(),
                key_length: key_length.into(),
                value_length: value_length.into(),
            };
            entries.extend_from_slice(entry.as_bytes());
        }
        entries.extend_from_slice(&text);
        entries.resize(entries.len().max(MIN_LEN), 0);
        Ok(entries)
    }
}

fn braced(guid: Uuid) -> String {
    guid.braced().to_string()
}

fn utf16le(raw: &[u8]) -> Option<String> {
    let (units, []) = raw.as_chunks::<2>() else {
        return None;
    };
    let units: Vec<u16> = units.iter().map(|b| u16::from_le_bytes(*b)).collect();
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_keeps_every_pair() {
        let linkage = Uuid::new_v4();
        let mut locator = Locator::new(linkage, Some(".\\dad é.vhdx"), Some("/srv/dad.vhdx"));
        let second = Uuid::new_v4();
        locator.set_linkage("parent_linkage2", Some(second));
        let back = Locator::parse(&locator.encode().expect("encode"), 0).expect("parse");
        assert_eq!(back, locator);
        let info = back.info();
        assert!(info.accepts(linkage) && info.accepts(second) && !info.accepts(Uuid::nil()));
        assert_eq!(back.info().relative_path.as_deref(), Some(".\\dad é.vhdx"));
    }

    #[test]
    fn hostile_offsets_are_refused() {
        let locator = Locator::new(Uuid::new_v4(), None, None);
        let good = locator.encode().expect("encode");
        for (at, value) in [(20, 0xff), (23, 0xff), (27, 0xff), (28, 3), (18, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Locator::parse(&bad, 64).is_err(), "byte {at}");
        }
        assert!(Locator::parse(&good[..30], 64).is_err());
    }
}
