//! Guest pages that a device keeps in use: translated once, then reached with
//! no further look at the address space.
//!
//! The translation is that of the moment. Whoever keeps it must give it up
//! when the guest takes the pages back, as the channel bus does.

use crate::partition::{BadGpa, Partition};
use crate::system_memory::{PAGE_SIZE, SystemMemory};
use hypervisor::BadSpa;
use std::sync::Arc;
use tlfs::HvMapGpaFlags;

const RIGHTS: HvMapGpaFlags = HvMapGpaFlags::READABLE.union(HvMapGpaFlags::WRITABLE);

/// Looks pages up for reading and writing: the system-physical address of
/// each.
fn translate(partition: &Partition, pfns: &[u64]) -> Result<Vec<u64>, BadGpa> {
    let map = partition
        .hypervisor
        .gpa_map(partition.id())
        .unwrap_or_default();
    let size = partition.memory().size();
    let spa = |&pfn: &u64| {
        let gpa = BadGpa(pfn.saturating_mul(PAGE_SIZE));
        let found = map
            .lookup(pfn)
            .filter(|page| page.rights.contains(RIGHTS))
            .ok_or(gpa)?;
        let spa = found
            .spa_page
            .checked_mul(PAGE_SIZE)
            .filter(|&spa| spa < size);
        spa.ok_or(gpa)
    };
    pfns.iter().map(spa).collect()
}

/// Pages as one range of bytes, from 0 on.
pub struct GuestPages {
    memory: Arc<SystemMemory>,
    pages: Vec<u64>,
}

impl GuestPages {
    /// The pages with the numbers `pfns`, in that order.
    ///
    /// # Errors
    ///
    /// [`BadGpa`] where one is not RAM that the guest itself can read and
    /// write.
    pub fn new(partition: &Partition, pfns: &[u64]) -> Result<Self, BadGpa> {
        let pages = translate(partition, pfns)?;
        Ok(Self {
            memory: partition.memory().clone(),
            pages,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE as usize
    }

    /// No page at all.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    fn at(&self, offset: usize) -> Result<u64, BadSpa> {
        let page = self.pages.get(offset / PAGE_SIZE as usize).ok_or(BadSpa)?;
        Ok(page + offset as u64 % PAGE_SIZE)
    }

    /// Cuts a range at the pages' borders.
    fn pieces(
        &self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), BadSpa>,
    ) -> Result<(), BadSpa> {
        let mut done = 0;
        while done < length {
            let at = offset.checked_add(done).ok_or(BadSpa)?;
            let room = PAGE_SIZE as usize - at % PAGE_SIZE as usize;
            let here = room.min(length - done);
            each(self.at(at)?, done..done + here)?;
            done += here;
        }
        Ok(())
    }

    /// Copies out.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the pages.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BadSpa> {
        self.pieces(offset, data.len(), |spa, piece| {
            self.memory.read(spa, &mut data[piece])
        })
    }

    /// Copies in.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the pages.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), BadSpa> {
        self.pieces(offset, data.len(), |spa, piece| {
            self.memory.write(spa, &data[piece])
        })
    }

    /// Loads an aligned word, ordered as `Acquire`.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the pages, or not aligned.
    pub fn load_u32(&self, offset: usize) -> Result<u32, BadSpa> {
        self.memory.load_u32(self.at(offset)?)
    }

    /// Stores an aligned word, ordered as `Release`.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the pages, or not aligned.
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<(), BadSpa> {
        self.memory.store_u32(self.at(offset)?, value)
    }
}

/// Memory in this process: for system calls that read or write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPiece {
    /// Where it begins. Guests access it at any time, so it must not be made
    /// a reference.
    pub address: *mut u8,
    /// Bytes.
    pub length: usize,
}

/// A guest's buffer, scattered over its memory, for device I/O in place.
pub struct GuestBuffer {
    memory: Arc<SystemMemory>,
    /// System-physical address and length of each piece.
    pieces: Vec<(u64, usize)>,
}

impl GuestBuffer {
    /// The bytes at the guest-physical addresses and lengths of `segments`,
    /// one behind the other.
    ///
    /// # Errors
    ///
    /// [`BadGpa`] where one is not RAM that the guest itself can read and
    /// write.
    pub fn new(
        partition: &Partition,
        segments: impl IntoIterator<Item = (u64, usize)>,
    ) -> Result<Self, BadGpa> {
        let mut pieces: Vec<(u64, usize)> = Vec::new();
        for (gpa, length) in segments.into_iter().filter(|&(_, length)| length > 0) {
            let last = gpa.checked_add(length as u64 - 1).ok_or(BadGpa(gpa))?;
            let pfns: Vec<u64> = (gpa / PAGE_SIZE..=last / PAGE_SIZE).collect();
            let (mut offset, mut left) = (gpa % PAGE_SIZE, length);
            for spa in translate(partition, &pfns)? {
                let here = left.min((PAGE_SIZE - offset) as usize);
                match pieces.last_mut() {
                    Some(last) if last.0 + last.1 as u64 == spa + offset => last.1 += here,
                    _ => pieces.push((spa + offset, here)),
                }
                (offset, left) = (0, left - here);
            }
        }
        Ok(Self {
            memory: partition.memory().clone(),
            pieces,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// No byte at all.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The pieces as memory of this process. They stay valid for as long as
    /// the buffer exists. After the host's kernel has written there,
    /// [`GuestBuffer::written`] must be called.
    pub fn host_pieces(&self) -> impl Iterator<Item = HostPiece> + '_ {
        self.pieces.iter().filter_map(|&(spa, length)| {
            let page = self.memory.page(spa / PAGE_SIZE)?;
            Some(HostPiece {
                address: page.wrapping_add((spa % PAGE_SIZE) as usize),
                length,
            })
        })
    }

    /// Tells processors that the buffer was written behind their back.
    pub fn written(&self) {
        for &(spa, length) in &self.pieces {
            for page in spa / PAGE_SIZE..=(spa + length as u64 - 1) / PAGE_SIZE {
                self.memory.code().written(page as u32);
            }
        }
    }

    fn each(
        &self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), BadSpa>,
    ) -> Result<(), BadSpa> {
        let (mut skip, mut done) = (offset, 0);
        for &(spa, size) in &self.pieces {
            let here = size.saturating_sub(skip).min(length - done);
            if here > 0 {
                each(spa + skip as u64, done..done + here)?;
            }
            skip = skip.saturating_sub(size);
            done += here;
        }
        if done == length { Ok(()) } else { Err(BadSpa) }
    }

    /// Copies out.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the buffer; the part within has been copied.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BadSpa> {
        self.each(offset, data.len(), |spa, piece| {
            self.memory.read(spa, &mut data[piece])
        })
    }

    /// Copies in.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] beyond the buffer; the part within has been copied.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), BadSpa> {
        self.each(offset, data.len(), |spa, piece| {
            self.memory.write(spa, &data[piece])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::{PartitionConfig, RamRange};

    fn partition() -> Arc<Partition> {
        let ram = vec![
            RamRange {
                gpa: 0,
                size: 1 << 20,
            },
            RamRange {
                gpa: 1 << 32,
                size: 1 << 20,
            },
        ];
        Partition::new(&PartitionConfig {
            processors: 1,
            ram,
            processor_mode: processor::ProcessorMode::default(),
        })
        .unwrap()
        .0
    }

    #[test]
    fn pages_in_any_order() {
        let partition = partition();
        let pages = GuestPages::new(&partition, &[7, 3, 1 << 20]).unwrap();
        assert_eq!(pages.len(), 3 * 4096);
        let data: Vec<u8> = (0..=255).cycle().take(9000).collect();
        pages.write(3000, &data).unwrap();
        let mut back = vec![0; 9000];
        pages.read(3000, &mut back).unwrap();
        assert_eq!(back, data);
        partition.read_guest(3 * 4096, &mut back[..4096]).unwrap();
        assert_eq!(back[..4096], data[1096..1096 + 4096]);
        pages.store_u32(8192, 0x1234_5678).unwrap();
        assert_eq!(pages.load_u32(8192), Ok(0x1234_5678));
        assert_eq!(pages.load_u32(8190), Err(BadSpa));
        assert_eq!(pages.load_u32(3 * 4096), Err(BadSpa));
        assert_eq!(pages.write(3 * 4096 - 1, &[1, 2]), Err(BadSpa));
    }

    #[test]
    fn pages_that_are_no_ram() {
        let partition = partition();
        assert!(matches!(
            GuestPages::new(&partition, &[0, 256]),
            Err(BadGpa(0x10_0000))
        ));
        assert!(GuestPages::new(&partition, &[u64::MAX]).is_err());
        assert!(GuestBuffer::new(&partition, [(0xf_f000, 0x1001)]).is_err());
        assert!(GuestBuffer::new(&partition, [(u64::MAX, 2)]).is_err());
    }

    #[test]
    fn buffers_join_neighbours() {
        let partition = partition();
        let buffer = GuestBuffer::new(&partition, [(0xf00, 0x2100), (0x3000, 8), (0x9004, 4)]);
        let buffer = buffer.unwrap();
        let pieces: Vec<usize> = buffer.host_pieces().map(|piece| piece.length).collect();
        assert_eq!(pieces, [0x2108, 4]);
        assert_eq!(buffer.len(), 0x210c);
        buffer.write(0x2104, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        buffer.written();
        let mut four = [0; 4];
        partition.read_guest(0x9004, &mut four).unwrap();
        assert_eq!(four, [5, 6, 7, 8]);
        let mut all = vec![0; 0x210c];
        buffer.read(0, &mut all).unwrap();
        assert_eq!(all[0x2104..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(buffer.read(1, &mut all), Err(BadSpa));
    }
}
