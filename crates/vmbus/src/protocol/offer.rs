//! What an offer says beside its identity.

use super::Guid;
use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

bitflags! {
    /// Flags of an offer.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct OfferFlags: u16 {
        /// The device is shown to the guest's user mode.
        const ENUMERATE_DEVICE_INTERFACE = 0x1;
        /// The rings must not be visible to the host.
        const CONFIDENTIAL_RING_BUFFER = 0x2;
        /// Nor must memory outside the rings.
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x4;
        /// Memory outside the rings must be pinned.
        const PINNED_EXTERNAL_MEMORY = 0x8;
        /// A pipe: [`super::PipeHeader`]s lead the packets' data.
        const NAMED_PIPE_MODE = 0x10;
        /// A socket (hv_sock).
        const TLNPI_PROVIDER = 0x2000;
    }
}

open_enum! {
    /// What a pipe carries.
    pub struct PipeType(u32) {
        /// A stream of bytes.
        BYTE = 0,
        /// Messages.
        MESSAGE = 4,
    }
}

/// Bytes that a pipe's offer leaves to the device.
pub const PIPE_USER_DATA_SIZE: usize = 112;

wire! {
    /// An offer's 120 bytes for the device, in the form of pipes.
    pub struct UserDefined {
        /// What the pipe carries.
        pub pipe_type: PipeType,
        /// The device's own.
        pub data: [u8; PIPE_USER_DATA_SIZE],
        /// Bit 0: packets may be GPA-direct.
        pub flags: u32,
    }
}

impl UserDefined {
    /// Those of a pipe.
    pub fn pipe(pipe_type: PipeType) -> [u8; 120] {
        let value = Self {
            pipe_type,
            ..Self::default()
        };
        let mut bytes = [0; 120];
        bytes.copy_from_slice(value.as_bytes());
        bytes
    }
}

wire! {
    /// An offer's 120 bytes for a socket: packed.
    pub struct HvSockUserDefined {
        /// BYTE.
        pub pipe_type: PipeType,
        /// 1: the guest listens, the host connects.
        pub is_for_guest_accept: u8,
        /// 1: for a container.
        pub is_for_guest_container: u8,
        /// 0 before RS5, then 1; not aligned.
        pub version: [u8; 4],
        /// The container.
        pub silo_id: [u8; 16],
        /// Zero.
        pub padding: [u8; 94],
    }
}

impl HvSockUserDefined {
    /// The bytes of a socket's offer.
    pub fn offer_bytes(is_for_guest_accept: bool, silo_id: Guid) -> [u8; 120] {
        let mut value = Self {
            is_for_guest_accept: is_for_guest_accept.into(),
            is_for_guest_container: (silo_id != Guid::ZERO).into(),
            version: 1_u32.to_le_bytes(),
            ..Self::default()
        };
        value.silo_id.copy_from_slice(silo_id.as_bytes());
        let mut bytes = [0; 120];
        bytes.copy_from_slice(value.as_bytes());
        bytes
    }

    /// From an offer's bytes.
    pub fn from_offer(bytes: &[u8; 120]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_fill_the_field() {
        assert_eq!(UserDefined::pipe(PipeType::MESSAGE)[..4], [4, 0, 0, 0]);
        let silo = Guid::from_u128(5);
        let bytes = HvSockUserDefined::offer_bytes(true, silo);
        assert_eq!(bytes[4..10], [1, 1, 1, 0, 0, 0]);
        let value = HvSockUserDefined::from_offer(&bytes).unwrap();
        assert_eq!(value.silo_id, silo.as_bytes());
    }
}
