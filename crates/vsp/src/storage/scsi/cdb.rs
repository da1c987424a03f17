//! Commands, decoded from their descriptor blocks (SPC-4, SBC-3, MMC-6).

use super::sense::Sense;

/// Bytes of the longest command descriptor block.
pub const CDB_SIZE: usize = 16;

/// Operation codes.
#[allow(missing_docs, reason = "the names are those of the SCSI standards")]
pub mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
    pub const MECHANISM_STATUS: u8 = 0xbd;
}

/// READ CAPACITY (16) among the service actions.
const READ_CAPACITY_16: u8 = 0x10;

/// Blocks that a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// The first one.
    pub(super) lba: u64,
    /// How many.
    pub(super) count: u32,
}

/// A command. Allocation and parameter lengths are in bytes.
#[allow(missing_docs, reason = "the fields are those of the SCSI standards")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        length: u32,
    },
    Inquiry {
        page: Option<u8>,
        length: u32,
    },
    ReportLuns {
        select: u8,
        length: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        length: u32,
    },
    Read {
        blocks: Blocks,
        fua: bool,
    },
    Write {
        blocks: Blocks,
        fua: bool,
    },
    /// `compare`: the data of the blocks is sent along.
    Verify {
        blocks: Blocks,
        compare: bool,
    },
    SynchronizeCache {
        blocks: Blocks,
    },
    /// `no_data`: zeros, without a block that says so.
    WriteSame {
        blocks: Blocks,
        unmap: bool,
        no_data: bool,
    },
    Unmap {
        length: u32,
    },
    ModeSense {
        long: bool,
        no_descriptor: bool,
        control: u8,
        page: u8,
        subpage: u8,
        length: u32,
    },
    ModeSelect {
        long: bool,
        save: bool,
        length: u32,
    },
    StartStop {
        start: bool,
        load_eject: bool,
        power_condition: u8,
    },
    PreventAllow {
        prevent: u8,
    },
    PersistentReserveIn {
        action: u8,
        length: u32,
    },
    PersistentReserveOut {
        action: u8,
        scope: u8,
        kind: u8,
        length: u32,
    },
    ReadToc {
        msf: bool,
        format: u8,
        track: u8,
        length: u32,
    },
    GetConfiguration {
        request: u8,
        start: u16,
        length: u32,
    },
    GetEventStatus {
        polled: bool,
        classes: u8,
        length: u32,
    },
    ReadDiscInformation {
        kind: u8,
        length: u32,
    },
    ReadTrackInformation {
        /// What `number` is: 0 a sector, 1 a track, 2 a session.
        by: u8,
        number: u32,
        length: u32,
    },
    MechanismStatus {
        length: u32,
    },
}

/// A command descriptor block, filled up with zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cdb {
    bytes: [u8; CDB_SIZE],
}

impl Cdb {
    /// The first `length` of the bytes.
    ///
    /// # Errors
    ///
    /// [`Sense::INVALID_FIELD_IN_CDB`] where that is shorter than a block of
    /// its group.
    pub(super) fn new(bytes: &[u8; CDB_SIZE], length: u8) -> Result<Self, Sense> {
        let needed = match bytes[0] >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => 1,
        };
        let length = usize::from(length);
        if length < needed || length > CDB_SIZE {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        let mut own = [0; CDB_SIZE];
        own[..length].copy_from_slice(&bytes[..length]);
        Ok(Self { bytes: own })
    }

    fn bit(&self, byte: usize, bit: u8) -> bool {
        self.bytes[byte] >> bit & 1 != 0
    }

    fn be16(&self, at: usize) -> u32 {
        u32::from(self.bytes[at]) << 8 | u32::from(self.bytes[at + 1])
    }

    fn be32(&self, at: usize) -> u32 {
        self.be16(at) << 16 | self.be16(at + 2)
    }

    fn be64(&self, at: usize) -> u64 {
        u64::from(self.be32(at)) << 32 | u64::from(self.be32(at + 4))
    }

    fn byte32(&self, at: usize) -> u32 {
        self.bytes[at].into()
    }

    /// The blocks, which lie in the same place for a whole group of commands.
    fn blocks(&self) -> Blocks {
        match self.bytes[0] >> 5 {
            0 => Blocks {
                lba: (self.be32(0) & 0x1f_ffff).into(),
                // Zero means 256 here, and only here.
                count: if self.bytes[4] == 0 {
                    256
                } else {
                    self.byte32(4)
                },
            },
            4 => Blocks {
                lba: self.be64(2),
                count: self.be32(10),
            },
            5 => Blocks {
                lba: self.be32(2).into(),
                count: self.be32(6),
            },
            _ => Blocks {
                lba: self.be32(2).into(),
                count: self.be16(7),
            },
        }
    }

    /// What is to be done.
    ///
    /// # Errors
    ///
    /// [`Sense::INVALID_OPCODE`] or [`Sense::INVALID_FIELD_IN_CDB`].
    pub(super) fn decode(&self) -> Result<Command, Sense> {
        self.decode_block()
            .or_else(|| self.decode_primary())
            .or_else(|| self.decode_multimedia())
            .unwrap_or(Err(Sense::INVALID_OPCODE))
    }

    /// Commands of disks.
    fn decode_block(&self) -> Option<Result<Command, Sense>> {
        let blocks = self.blocks();
        Some(match self.bytes[0] {
            op::READ_6 => Ok(Command::Read { blocks, fua: false }),
            op::WRITE_6 => Ok(Command::Write { blocks, fua: false }),
            op::READ_10 | op::READ_12 | op::READ_16 => self.unprotected(Command::Read {
                blocks,
                fua: self.bit(1, 3),
            }),
            op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => self.unprotected(Command::Write {
                blocks,
                fua: self.bit(1, 3),
            }),
            op::WRITE_VERIFY_10 | op::WRITE_VERIFY_12 | op::WRITE_VERIFY_16 => {
                self.unprotected(Command::Write { blocks, fua: true })
            }
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => self.verify(blocks),
            op::READ_CAPACITY_10 => Ok(Command::ReadCapacity10),
            op::SERVICE_ACTION_IN_16 if self.bytes[1] & 0x1f == READ_CAPACITY_16 => {
                Ok(Command::ReadCapacity16 {
                    length: self.be32(10),
                })
            }
            op::SERVICE_ACTION_IN_16 => Err(Sense::INVALID_FIELD_IN_CDB),
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                Ok(Command::SynchronizeCache { blocks })
            }
            op::UNMAP if self.bit(1, 0) => Err(Sense::INVALID_FIELD_IN_CDB),
            op::UNMAP => Ok(Command::Unmap {
                length: self.be16(7),
            }),
            op::WRITE_SAME_10 => self.write_same(blocks, false),
            op::WRITE_SAME_16 => self.write_same(blocks, self.bit(1, 0)),
            _ => return None,
        })
    }

    /// Protection information is not kept, so none can be asked for.
    fn unprotected(&self, command: Command) -> Result<Command, Sense> {
        if self.bytes[1] >> 5 == 0 {
            Ok(command)
        } else {
            Err(Sense::INVALID_FIELD_IN_CDB)
        }
    }

    fn verify(&self, blocks: Blocks) -> Result<Command, Sense> {
        match self.bytes[1] >> 1 & 3 {
            compare @ 0..=1 => self.unprotected(Command::Verify {
                blocks,
                compare: compare == 1,
            }),
            _ => Err(Sense::INVALID_FIELD_IN_CDB),
        }
    }

    fn write_same(&self, blocks: Blocks, no_data: bool) -> Result<Command, Sense> {
        // ANCHOR, PBDATA and LBDATA are not supported.
        if self.bytes[1] & 0x16 != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        self.unprotected(Command::WriteSame {
            blocks,
            unmap: self.bit(1, 3),
            no_data,
        })
    }

    /// Commands of every device.
    fn decode_primary(&self) -> Option<Result<Command, Sense>> {
        let b = &self.bytes;
        Some(match b[0] {
            op::TEST_UNIT_READY => Ok(Command::TestUnitReady),
            op::REQUEST_SENSE => Ok(Command::RequestSense {
                descriptor: self.bit(1, 0),
                length: self.byte32(4),
            }),
            op::INQUIRY => self.inquiry(),
            op::REPORT_LUNS => Ok(Command::ReportLuns {
                select: b[2],
                length: self.be32(6),
            }),
            op::MODE_SENSE_6 => Ok(self.mode_sense(false, self.byte32(4))),
            op::MODE_SENSE_10 => Ok(self.mode_sense(true, self.be16(7))),
            op::MODE_SELECT_6 => self.mode_select(false, self.byte32(4)),
            op::MODE_SELECT_10 => self.mode_select(true, self.be16(7)),
            op::START_STOP_UNIT => Ok(Command::StartStop {
                start: self.bit(4, 0),
                load_eject: self.bit(4, 1),
                power_condition: b[4] >> 4,
            }),
            op::PREVENT_ALLOW => Ok(Command::PreventAllow { prevent: b[4] & 3 }),
            op::PERSISTENT_RESERVE_IN => Ok(Command::PersistentReserveIn {
                action: b[1] & 0x1f,
                length: self.be16(7),
            }),
            op::PERSISTENT_RESERVE_OUT => Ok(Command::PersistentReserveOut {
                action: b[1] & 0x1f,
                scope: b[2] >> 4,
                kind: b[2] & 0xf,
                length: self.be32(5),
            }),
            _ => return None,
        })
    }

    fn inquiry(&self) -> Result<Command, Sense> {
        let length = self.be16(3);
        match (self.bit(1, 0), self.bytes[2]) {
            (true, page) => Ok(Command::Inquiry {
                page: Some(page),
                length,
            }),
            (false, 0) => Ok(Command::Inquiry { page: None, length }),
            (false, _) => Err(Sense::INVALID_FIELD_IN_CDB),
        }
    }

    fn mode_sense(&self, long: bool, length: u32) -> Command {
        Command::ModeSense {
            long,
            no_descriptor: self.bit(1, 3),
            control: self.bytes[2] >> 6,
            page: self.bytes[2] & 0x3f,
            subpage: self.bytes[3],
            length,
        }
    }

    fn mode_select(&self, long: bool, length: u32) -> Result<Command, Sense> {
        // Only the standard's page format is known.
        if length > 0 && !self.bit(1, 4) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(Command::ModeSelect {
            long,
            save: self.bit(1, 0),
            length,
        })
    }

    /// Commands of optical drives.
    fn decode_multimedia(&self) -> Option<Result<Command, Sense>> {
        let b = &self.bytes;
        let length = self.be16(7);
        Some(Ok(match b[0] {
            op::READ_TOC => Command::ReadToc {
                msf: self.bit(1, 1),
                // Old drives had the format in the control byte.
                format: if b[2] & 0xf == 0 {
                    b[9] >> 6
                } else {
                    b[2] & 0xf
                },
                track: b[6],
                length,
            },
            op::GET_CONFIGURATION => Command::GetConfiguration {
                request: b[1] & 3,
                start: self.be16(2) as u16,
                length,
            },
            op::GET_EVENT_STATUS => Command::GetEventStatus {
                polled: self.bit(1, 0),
                classes: b[4],
                length,
            },
            op::READ_DISC_INFORMATION => Command::ReadDiscInformation {
                kind: b[1] & 7,
                length,
            },
            op::READ_TRACK_INFORMATION => Command::ReadTrackInformation {
                by: b[1] & 3,
                number: self.be32(2),
                length,
            },
            op::MECHANISM_STATUS => Command::MechanismStatus {
                length: self.be16(8),
            },
            _ => return None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Command, Sense> {
        let mut all = [0; CDB_SIZE];
        all[..bytes.len()].copy_from_slice(bytes);
        Cdb::new(&all, bytes.len() as u8)?.decode()
    }

    #[test]
    fn blocks_of_every_length() {
        let read = |lba, count, fua| {
            Ok(Command::Read {
                blocks: Blocks { lba, count },
                fua,
            })
        };
        assert_eq!(decode(&[8, 0xe1, 2, 3, 0, 0]), read(0x1_0203, 256, false));
        assert_eq!(
            decode(&[0x28, 8, 1, 2, 3, 4, 0, 5, 6, 0]),
            read(0x0102_0304, 0x506, true)
        );
        let twelve = [0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
        assert_eq!(decode(&twelve), read(0x0102_0304, 0x0506_0708, false));
        let sixteen = [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0];
        assert_eq!(
            decode(&sixteen),
            read(0x0102_0304_0506_0708, 0x090a_0b0c, false)
        );
    }

    #[test]
    fn wrong_blocks_are_refused() {
        let invalid = Err(Sense::INVALID_FIELD_IN_CDB);
        assert_eq!(decode(&[0x28; 9]), invalid);
        assert_eq!(decode(&[0x88; 12]), invalid);
        assert_eq!(decode(&[]), invalid);
        assert_eq!(
            Cdb::new(&[0; 16], 17).map(|_| ()),
            Err(Sense::INVALID_FIELD_IN_CDB)
        );
        assert_eq!(decode(&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0]), invalid);
        assert_eq!(decode(&[0x12, 0, 0x80, 0, 36, 0]), invalid);
        assert_eq!(decode(&[0xff, 0, 0, 0, 0, 0]), Err(Sense::INVALID_OPCODE));
    }

    #[test]
    fn every_block_decodes_to_something() {
        for opcode in 0..=255 {
            for fill in [0, 0x55, 0xaa, 0xff] {
                let mut bytes = [fill; CDB_SIZE];
                bytes[0] = opcode;
                // Reaching the end is what counts: no value may panic.
                let _ = Cdb::new(&bytes, 16).and_then(|cdb| cdb.decode());
            }
        }
    }
}
