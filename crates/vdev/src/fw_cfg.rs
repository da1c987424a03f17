//! The firmware configuration device that test images ask for the shape of
//! the machine (QEMU's documented fw_cfg interface, without DMA).

/// What the device reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FwCfgConfig {
    /// Memory of the machine in bytes.
    pub ram_size: u64,
    /// Number of processors present at start.
    pub processors: u16,
    /// Highest number of processors; at least `processors`.
    pub max_processors: u16,
}

pub(crate) const SELECTOR_PORT: u16 = 0x510;
pub(crate) const DATA_PORT: u16 = 0x511;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_RAM_SIZE: u16 = 0x03;
const KEY_PROCESSORS: u16 = 0x05;
const KEY_MAX_PROCESSORS: u16 = 0x0F;
const KEY_FILE_DIRECTORY: u16 = 0x19;
/// The traditional interface is there; bit 1 would be DMA.
const ID_TRADITIONAL: u32 = 1;

#[derive(Debug)]
pub(crate) struct FwCfg {
    config: FwCfgConfig,
    item: [u8; 8],
    length: usize,
    offset: usize,
}

impl FwCfg {
    pub(crate) fn new(config: FwCfgConfig) -> Self {
        let mut device = Self {
            config,
            item: [0; 8],
            length: 0,
            offset: 0,
        };
        device.select(KEY_SIGNATURE);
        device
    }

    /// Selects an item and starts reading it from its beginning. Unknown
    /// items are empty.
    pub(crate) fn select(&mut self, key: u16) {
        let FwCfgConfig {
            ram_size,
            processors,
            max_processors,
        } = self.config;
        self.offset = 0;
        self.length = 0;
        match key {
            KEY_SIGNATURE => self.fill(b"QEMU"),
            KEY_ID => self.fill(&ID_TRADITIONAL.to_le_bytes()),
            KEY_RAM_SIZE => self.fill(&ram_size.to_le_bytes()),
            KEY_PROCESSORS => self.fill(&processors.to_le_bytes()),
            KEY_MAX_PROCESSORS => self.fill(&max_processors.max(processors).to_le_bytes()),
            // The number of files, big-endian.
            KEY_FILE_DIRECTORY => self.fill(&0u32.to_be_bytes()),
            _ => {}
        }
    }

    /// The next byte of the item; zero past its end.
    pub(crate) fn read(&mut self) -> u8 {
        let value = self.item[..self.length]
            .get(self.offset)
            .copied()
            .unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        value
    }

    fn fill(&mut self, bytes: &[u8]) {
        self.length = bytes.len();
        self.item[..bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item<const N: usize>(device: &mut FwCfg, key: u16) -> [u8; N] {
        device.select(key);
        std::array::from_fn(|_| device.read())
    }

    #[test]
    fn items() {
        let config = FwCfgConfig {
            ram_size: 0x1_2345_6789,
            processors: 4,
            max_processors: 2,
        };
        let mut device = FwCfg::new(config);
        assert_eq!(item(&mut device, 0), *b"QEMU\0");
        assert_eq!(item(&mut device, 1), [1, 0, 0, 0]);
        assert_eq!(u64::from_le_bytes(item(&mut device, 3)), 0x1_2345_6789);
        assert_eq!(u16::from_le_bytes(item(&mut device, 5)), 4);
        assert_eq!(
            u16::from_le_bytes(item(&mut device, 0x0F)),
            4,
            "never fewer than present"
        );
        assert_eq!(item(&mut device, 0x19), [0; 4]);
        assert_eq!(item(&mut device, 0x1234), [0; 9]);
    }
}
