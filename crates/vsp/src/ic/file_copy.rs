//! Guest file copy ("guest services"): the host writes a file into the guest.
//!
//! Linux 6.1 has a driver and a daemon; later versions have a daemon alone
//! that works on the channel's rings. Both get the same messages. The latter
//! gives no transaction id of the packet back, and refuses to cancel.

use super::IcError;
use super::device::IcDevice;
use super::exchange::Exchange;
use super::session::{Profile, Service};
use super::text;
use super::wire::{IcVersion, TYPE_GUEST_INTERFACE};
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

static PROFILE: Profile = Profile {
    name: "fcopy",
    // 34d14be3-dee4-41c8-9ae7-6b174977c192
    interface_id: Guid::from_u128(0x34d14be3_dee4_41c8_9ae7_6b174977c192),
    // eb765408-105f-49b6-b4aa-c123b64d17d4: the daemon of newer Linux looks
    // for its channel by this number.
    instance_id: Guid::from_u128(0xeb765408_105f_49b6_b4aa_c123b64d17d4),
    message_type: TYPE_GUEST_INTERFACE,
    versions: &[IcVersion::new(1, 1)],
};

const OP_START: u32 = 0;
const OP_WRITE: u32 = 1;
const OP_COMPLETE: u32 = 2;
const OP_CANCEL: u32 = 3;

/// Bytes of a file in one message.
pub(super) const FRAGMENT: usize = 6 * 1024;
/// A cancellation that nobody waits for.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// Leads every message.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileCopyHeader {
    operation: U32,
    service_ids: [u8; 32],
}

impl FileCopyHeader {
    fn new(operation: u32) -> Self {
        Self {
            operation: operation.into(),
            service_ids: [0; 32],
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StartMessage {
    header: FileCopyHeader,
    file_name: [U16; 260],
    path_name: [U16; 260],
    flags: U32,
    size: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WriteMessage {
    header: FileCopyHeader,
    padding: U32,
    offset: U64,
    size: U32,
    data: [u8; FRAGMENT],
}

/// How a file is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyFlags {
    /// A file of that name may be replaced.
    pub overwrite: bool,
    /// Directories on the way to it are made.
    pub create_path: bool,
}

impl CopyFlags {
    fn bits(self) -> u32 {
        u32::from(self.overwrite) | u32::from(self.create_path) << 1
    }
}

/// A file was not copied. What the guest has of it is removed, where its
/// daemon can do that.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The guest cannot or does not want to.
    #[error(transparent)]
    Guest(#[from] IcError),
    /// The host cannot read the file.
    #[error("cannot read the file to be copied: {0}")]
    Source(#[from] std::io::Error),
    /// The caller has stopped it.
    #[error("the copy was stopped")]
    Stopped,
}

/// A handle by which files are copied into the guest.
#[derive(Clone)]
pub struct FileCopy {
    exchange: Arc<Exchange>,
    /// Held by whoever copies.
    turn: Arc<Mutex<()>>,
}

impl FileCopy {
    /// A device for the bus, and its handle.
    pub fn new() -> (Box<dyn Vsp>, Self) {
        let handle = Self {
            exchange: Arc::default(),
            turn: Arc::default(),
        };
        (
            Box::new(IcDevice::new(FileCopyService, handle.exchange.clone())),
            handle,
        )
    }

    /// Copies `size` bytes of `source` to `guest_path`, an absolute path with
    /// directory and name, of at most 259 UTF-16 units each. Each message may
    /// take `timeout`. `progress` is told after each how many bytes are
    /// there, and can stop the copy.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; with [`super::IcStatus::ALREADY_EXISTS`] for a file that
    /// may not be replaced, [`super::IcStatus::DISK_FULL`],
    /// [`IcError::Busy`] while another copy is under way.
    pub fn copy(
        &self,
        source: &mut dyn Read,
        size: u64,
        guest_path: &str,
        flags: CopyFlags,
        timeout: Duration,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), CopyError> {
        let _turn = self.turn.try_lock().map_err(|_| IcError::Busy)?;
        let start = start_message(guest_path, flags, size)?;
        let mut transfer = Transfer {
            exchange: &self.exchange,
            timeout,
            armed: false,
        };
        match transfer.send(start) {
            Ok(()) => transfer.armed = true,
            Err(error) => {
                // The guest may have begun without saying so.
                transfer.armed = matches!(error, IcError::Timeout | IcError::Protocol(_));
                return Err(error.into());
            }
        }
        let mut done = 0;
        while done < size {
            let mut data = vec![0; FRAGMENT.min(usize::try_from(size - done).unwrap_or(FRAGMENT))];
            source.read_exact(&mut data)?;
            let length = data.len() as u64;
            transfer.send(write_message(done, &data))?;
            done += length;
            if progress(done).is_break() {
                return Err(CopyError::Stopped);
            }
        }
        transfer.send(FileCopyHeader::new(OP_COMPLETE).as_bytes().to_vec())?;
        transfer.armed = false;
        Ok(())
    }

    /// Whether the guest has opened the channel.
    pub fn is_connected(&self) -> bool {
        self.exchange.is_open()
    }
}

/// A copy under way. It is cancelled when this is dropped before its end.
struct Transfer<'a> {
    exchange: &'a Exchange,
    timeout: Duration,
    armed: bool,
}

impl Transfer<'_> {
    fn send(&self, message: Vec<u8>) -> Result<(), IcError> {
        self.exchange
            .call(0, self.timeout, |_| Ok(message))?
            .body()
            .map(|_| ())
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if self.armed {
            let message = FileCopyHeader::new(OP_CANCEL).as_bytes().to_vec();
            // Without a channel there is nothing to cancel.
            let _ = self.exchange.post(0, CANCEL_TIMEOUT, |_| Ok(message));
        }
    }
}

fn start_message(guest_path: &str, flags: CopyFlags, size: u64) -> Result<Vec<u8>, IcError> {
    let cut = guest_path.rfind(['/', '\\']);
    let cut = cut.ok_or(IcError::Argument("the guest path has no directory"))? + 1;
    // The directory keeps its last slash: Linux makes only what a slash ends.
    let (path, name) = guest_path.split_at(cut);
    if matches!(name, "" | "." | "..") {
        return Err(IcError::Argument("the guest path has no file name"));
    }
    let mut message = StartMessage::new_zeroed();
    message.header = FileCopyHeader::new(OP_START);
    text::put(&mut message.file_name, name)?;
    text::put(&mut message.path_name, path)?;
    message.flags = flags.bits().into();
    message.size = size.into();
    Ok(message.as_bytes().to_vec())
}

/// A write of at most [`FRAGMENT`] bytes.
fn write_message(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut message = WriteMessage::new_zeroed();
    message.header = FileCopyHeader::new(OP_WRITE);
    message.offset = offset.into();
    message.size = (data.len() as u32).into();
    message.data[..data.len()].copy_from_slice(data);
    message.as_bytes().to_vec()
}

struct FileCopyService;

impl Service for FileCopyService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        assert_eq!(size_of::<StartMessage>(), 1088);
        assert_eq!(size_of::<WriteMessage>(), 52 + FRAGMENT);
        let bytes = write_message(0x0102, b"xyz");
        assert_eq!(
            bytes[36..56],
            [
                0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 120, 121, 122, 0
            ]
        );
    }

    #[test]
    fn paths() {
        let flags = CopyFlags {
            overwrite: true,
            create_path: true,
        };
        let bytes = start_message("/tmp/a", flags, 9).unwrap();
        assert_eq!(bytes[36..40], [b'a', 0, 0, 0]);
        assert_eq!(
            bytes[556..568],
            [b'/', 0, b't', 0, b'm', 0, b'p', 0, b'/', 0, 0, 0]
        );
        assert_eq!(bytes[1076..], [3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        for path in ["", "a", "/tmp/", "/tmp/..", "/a\0b"] {
            assert!(
                matches!(start_message(path, flags, 0), Err(IcError::Argument(_))),
                "{path}"
            );
        }
        let name = "n".repeat(259);
        assert!(start_message(&format!("/{name}"), flags, 0).is_ok());
        assert!(start_message(&format!("/{name}n"), flags, 0).is_err());
    }
}
