//! Sense data: why a command failed (SPC-4 4.5).

/// Bytes of fixed-format sense data.
pub const SENSE_SIZE: usize = 18;

/// A sense key with its additional code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

macro_rules! senses {
    ($( $(#[$meta:meta])* $name:ident = $key:literal, $asc:literal, $ascq:literal; )*) => {
        impl Sense {
            $( $(#[$meta])* pub const $name: Self = Self { key: $key, asc: $asc, ascq: $ascq }; )*
        }
    };
}

senses! {
    /// Nothing to say.
    NO_SENSE = 0x0, 0x00, 0x00;
    /// No medium, the tray is closed.
    NO_MEDIUM = 0x2, 0x3a, 0x01;
    /// No medium, the tray is open.
    NO_MEDIUM_TRAY_OPEN = 0x2, 0x3a, 0x02;
    /// The medium could not be written.
    WRITE_ERROR = 0x3, 0x0c, 0x00;
    /// The medium could not be read.
    READ_ERROR = 0x3, 0x11, 0x00;
    /// The target failed.
    INTERNAL_FAILURE = 0x4, 0x44, 0x00;
    /// Parameter data is not as long as it says.
    PARAMETER_LIST_LENGTH = 0x5, 0x1a, 0x00;
    /// No such command.
    INVALID_OPCODE = 0x5, 0x20, 0x00;
    /// Blocks beyond the end.
    LBA_OUT_OF_RANGE = 0x5, 0x21, 0x00;
    /// A field of the command makes no sense.
    INVALID_FIELD_IN_CDB = 0x5, 0x24, 0x00;
    /// No such logical unit.
    LUN_NOT_SUPPORTED = 0x5, 0x25, 0x00;
    /// A field of the parameter data makes no sense.
    INVALID_FIELD_IN_PARAMETERS = 0x5, 0x26, 0x00;
    /// A reservation that is to be released is another one.
    INVALID_RELEASE = 0x5, 0x26, 0x04;
    /// Saved values are not kept.
    SAVING_NOT_SUPPORTED = 0x5, 0x39, 0x00;
    /// The guest itself has locked the tray.
    REMOVAL_PREVENTED = 0x5, 0x53, 0x02;
    /// No room for another registration.
    NO_REGISTRATION_RESOURCES = 0x5, 0x55, 0x04;
    /// Another medium is in the drive.
    MEDIUM_CHANGED = 0x6, 0x28, 0x00;
    /// The logical unit was reset.
    RESET = 0x6, 0x29, 0x00;
    /// The mode parameters changed.
    MODE_CHANGED = 0x6, 0x2a, 0x01;
    /// The capacity changed.
    CAPACITY_CHANGED = 0x6, 0x2a, 0x09;
    /// The medium is write-protected.
    WRITE_PROTECTED = 0x7, 0x27, 0x00;
    /// There is no room for the data below the medium.
    SPACE_ALLOCATION_FAILED = 0x7, 0x27, 0x07;
    /// The data differs.
    MISCOMPARE = 0xe, 0x1d, 0x00;
}

impl Sense {
    /// Current sense data in the fixed format.
    pub fn to_bytes(self) -> [u8; SENSE_SIZE] {
        let mut bytes = [0; SENSE_SIZE];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = SENSE_SIZE as u8 - 8;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        bytes
    }

    /// Current sense data in the descriptor format, without a descriptor.
    pub fn to_descriptor_bytes(self) -> [u8; 8] {
        [0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let bytes = Sense::CAPACITY_CHANGED.to_bytes();
        assert_eq!(
            (bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]),
            (0x70, 6, 10, 0x2a, 9)
        );
        assert_eq!(
            Sense::MISCOMPARE.to_descriptor_bytes()[..4],
            [0x72, 0xe, 0x1d, 0]
        );
    }
}
