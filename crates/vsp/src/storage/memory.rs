//! The guest's memory as requests name it.

use super::medium::{BufferError, DataBuffer};
use std::sync::Arc;
use vid::{GuestBuffer, HostPiece, Partition};
use vmbus::bus::BusHost;
use vmbus::protocol::GpaRange;
use vmbus::ring::GuestPages;

/// Finds the buffers of a guest's requests.
pub trait GuestMemory: Send + Sync {
    /// The bytes of the ranges, one behind the other.
    ///
    /// # Errors
    ///
    /// [`BufferError`] where one is not RAM.
    fn buffer(&self, ranges: &[GpaRange]) -> Result<Box<dyn DataBuffer>, BufferError>;
}

impl GuestMemory for Partition {
    fn buffer(&self, ranges: &[GpaRange]) -> Result<Box<dyn DataBuffer>, BufferError> {
        let segments = ranges.iter().flat_map(GpaRange::segments);
        let buffer = GuestBuffer::new(self, segments).map_err(|_| BufferError)?;
        Ok(Box::new(InPlace {
            length: buffer.len(),
            buffer,
        }))
    }
}

/// A guest's buffer that system calls can work on.
struct InPlace {
    buffer: GuestBuffer,
    length: usize,
}

impl DataBuffer for InPlace {
    fn len(&self) -> usize {
        self.length
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BufferError> {
        self.buffer.read(offset, data).map_err(|_| BufferError)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), BufferError> {
        self.buffer.write(offset, data).map_err(|_| BufferError)
    }

    fn host_pieces(&self) -> Option<Vec<HostPiece>> {
        Some(self.buffer.host_pieces().collect())
    }

    fn written(&self) {
        self.buffer.written();
    }
}

/// The memory behind a bus whose pages can only be copied.
pub struct CopiedMemory(pub Arc<dyn BusHost>);

impl GuestMemory for CopiedMemory {
    fn buffer(&self, ranges: &[GpaRange]) -> Result<Box<dyn DataBuffer>, BufferError> {
        let parts = ranges.iter().map(|range| {
            let pages = self.0.map_pages(&range.pfns).map_err(|_| BufferError)?;
            let (start, length) = (range.byte_offset as usize, range.byte_count as usize);
            Ok(Part {
                pages,
                start,
                length,
            })
        });
        Ok(Box::new(Copied(parts.collect::<Result<_, _>>()?)))
    }
}

struct Part {
    pages: Arc<dyn GuestPages>,
    start: usize,
    length: usize,
}

struct Copied(Vec<Part>);

impl Copied {
    /// Cuts a range at the parts' borders.
    fn each(
        &self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(&Part, usize, std::ops::Range<usize>) -> Result<(), BufferError>,
    ) -> Result<(), BufferError> {
        let (mut skip, mut done) = (offset, 0);
        for part in &self.0 {
            let here = part.length.saturating_sub(skip).min(length - done);
            if here > 0 {
                each(part, part.start + skip, done..done + here)?;
            }
            skip = skip.saturating_sub(part.length);
            done += here;
        }
        if done == length {
            Ok(())
        } else {
            Err(BufferError)
        }
    }
}

impl DataBuffer for Copied {
    fn len(&self) -> usize {
        self.0.iter().map(|part| part.length).sum()
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BufferError> {
        self.each(offset, data.len(), |part, at, piece| {
            part.pages
                .read(at, &mut data[piece])
                .map_err(|_| BufferError)
        })
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), BufferError> {
        self.each(offset, data.len(), |part, at, piece| {
            part.pages.write(at, &data[piece]).map_err(|_| BufferError)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vid::{PartitionConfig, RamRange};
    use vmbus::client::Loopback;

    fn ranges() -> Vec<GpaRange> {
        vec![
            GpaRange {
                byte_count: 0x1800,
                byte_offset: 0xc00,
                pfns: vec![3, 4, 9],
            },
            GpaRange {
                byte_count: 4,
                byte_offset: 8,
                pfns: vec![1],
            },
        ]
    }

    fn check(memory: &dyn GuestMemory, in_place: bool) {
        let buffer = memory.buffer(&ranges()).unwrap();
        assert_eq!(buffer.len(), 0x1804);
        let data: Vec<u8> = (0..=255).cycle().take(0x1804).collect();
        buffer.write(0, &data).unwrap();
        let mut back = vec![0; 0x1800];
        buffer.read(4, &mut back).unwrap();
        assert_eq!(back, data[4..]);
        assert_eq!(buffer.read(5, &mut back), Err(BufferError));
        assert_eq!(buffer.host_pieces().is_some(), in_place);
        let far = GpaRange {
            byte_count: 8,
            byte_offset: 0,
            pfns: vec![1 << 30],
        };
        assert!(memory.buffer(&[far]).is_err());
    }

    #[test]
    fn both_kinds_of_memory() {
        let ram = vec![RamRange {
            gpa: 0,
            size: 1 << 20,
        }];
        let config = PartitionConfig {
            processors: 1,
            ram,
            processor_mode: vid::ProcessorMode::default(),
        };
        let partition = Partition::new(&config).unwrap().0;
        check(&*partition, true);
        check(&CopiedMemory(Loopback::new(1, 16)), false);
    }
}
