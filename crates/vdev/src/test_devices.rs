//! The devices that processor and interrupt test images drive: debug exit,
//! scratch ports, interrupt line control, a page of scratch memory and the
//! control port of Hyper-V SynIC tests.

use crate::fw_cfg::FwCfgConfig;

/// Guest-physical address of the scratch memory.
pub const TEST_MMIO_GPA: u64 = 0xFF00_0000;
/// Size of the scratch memory in bytes.
pub const TEST_MMIO_SIZE: u64 = 0x1_0000;

pub(crate) const SCRATCH_PORT: u16 = 0xE0;
pub(crate) const SCRATCH_LAST: u16 = 0xE3;
pub(crate) const FLUSH_PORT: u16 = 0xE4;
pub(crate) const FLUSH_LAST: u16 = 0xE7;
pub(crate) const EXIT_PORT: u16 = 0xF4;
pub(crate) const LINE_PORT: u16 = 0x2000;
pub(crate) const LINE_LAST: u16 = LINE_PORT + crate::IOAPIC_PINS as u16 - 1;
pub(crate) const HV_PORT: u16 = 0x3000;

/// What the test devices need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestDeviceConfig {
    /// What the firmware configuration device reports.
    pub fw_cfg: FwCfgConfig,
}

/// What a SynIC test asks of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HvTestControl {
    /// Allow [`HvTestControl::SignalSint`] for the SINT.
    CreateSintRoute,
    /// Undo [`HvTestControl::CreateSintRoute`].
    DestroySintRoute,
    /// Assert the SINT as for a message that is not there.
    SignalSint,
    /// Create a connection with id `connection` that echoes each posted
    /// message as a message to the SINT.
    CreateMessageConnection,
    /// Remove the message connection.
    DestroyMessageConnection,
    /// Create a connection with id `connection` that answers each signal by
    /// setting event flag number `connection` at the SINT.
    CreateEventConnection,
    /// Remove the event connection.
    DestroyEventConnection,
}

/// A request made at the control port of Hyper-V SynIC tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvTestRequest {
    /// What to do.
    pub control: HvTestControl,
    /// Index of the virtual processor, as the guest wrote it.
    pub vp_index: u8,
    /// The synthetic interrupt source; it may be out of range.
    pub sint: u8,
    /// The connection id.
    pub connection: u8,
}

impl HvTestRequest {
    /// Decodes a 32-bit write: connection, control, processor and SINT from
    /// the highest byte down; `None` for controls that do not exist.
    pub fn decode(value: u32) -> Option<Self> {
        let [sint, vp_index, control, connection] = value.to_le_bytes();
        let control = match control {
            1 => HvTestControl::CreateSintRoute,
            2 => HvTestControl::DestroySintRoute,
            3 => HvTestControl::SignalSint,
            4 => HvTestControl::CreateMessageConnection,
            5 => HvTestControl::DestroyMessageConnection,
            6 => HvTestControl::CreateEventConnection,
            7 => HvTestControl::DestroyEventConnection,
            _ => return None,
        };
        Some(Self {
            control,
            vp_index,
            sint,
            connection,
        })
    }
}

/// The memory of the test devices.
#[derive(Debug)]
pub(crate) struct Scratch {
    ports: u32,
    memory: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            ports: 0,
            memory: vec![0; TEST_MMIO_SIZE as usize].into(),
        }
    }

    /// Reads from the scratch ports; `port` is one of them.
    pub(crate) fn read_port(&self, port: u16) -> u32 {
        self.ports >> (8 * (port - SCRATCH_PORT))
    }

    /// Writes `size` bytes to the scratch ports; what lies beyond the last
    /// is cut off.
    pub(crate) fn write_port(&mut self, port: u16, size: u8, value: u32) {
        let shift = 8 * (port - SCRATCH_PORT);
        let mask = crate::chipset::size_mask(size) << shift;
        self.ports = self.ports & !mask | value << shift & mask;
    }

    /// Reads up to eight bytes of scratch memory at `offset`, which is less
    /// than [`TEST_MMIO_SIZE`]; zero past the end.
    pub(crate) fn read_memory(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        for (byte, index) in bytes.iter_mut().zip(offset..).take(size.into()) {
            *byte = self.memory.get(index as usize).copied().unwrap_or(0);
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes up to eight bytes of scratch memory.
    pub(crate) fn write_memory(&mut self, offset: u64, size: u8, value: u64) {
        for (byte, index) in value
            .to_le_bytes()
            .into_iter()
            .zip(offset..)
            .take(size.into())
        {
            if let Some(cell) = self.memory.get_mut(index as usize) {
                *cell = byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synic_requests() {
        let request = HvTestRequest::decode(0x1106_0203).unwrap();
        assert_eq!(request.control, HvTestControl::CreateEventConnection);
        assert_eq!(
            (request.connection, request.vp_index, request.sint),
            (0x11, 2, 3)
        );
        assert_eq!(HvTestRequest::decode(0), None);
        assert_eq!(HvTestRequest::decode(0x0008_0000), None);
    }

    #[test]
    fn scratch_ports_are_one_register() {
        let mut scratch = Scratch::new();
        scratch.write_port(0xE0, 4, 0x1234_5678);
        assert_eq!(scratch.read_port(0xE1) & 0xFF, 0x56);
        scratch.write_port(0xE2, 1, 0xFFFF_FFAB);
        assert_eq!(scratch.read_port(0xE0), 0x12AB_5678);
        scratch.write_port(0xE3, 4, 0xAABB_CCDD);
        assert_eq!(scratch.read_port(0xE0), 0xDDAB_5678);
    }

    #[test]
    fn scratch_memory() {
        let mut scratch = Scratch::new();
        scratch.write_memory(0xFFF8, 8, 0x0123_4567_89AB_CDEF);
        assert_eq!(scratch.read_memory(0xFFFA, 4), 0x4567_89AB);
        assert_eq!(scratch.read_memory(0xFFFE, 8), 0x0123, "cut off at the end");
        scratch.write_memory(0xFFFF, 8, u64::MAX);
        assert_eq!(scratch.read_memory(0xFFFF, 1), 0xFF);
    }
}
