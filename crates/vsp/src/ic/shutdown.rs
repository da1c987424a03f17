//! Guest shutdown: the guest is asked to end, and does it in its own way.

use super::device::IcDevice;
use super::exchange::Exchange;
use super::session::{Profile, Service};
use super::wire::{IcVersion, TYPE_SHUTDOWN, Versions};
use super::{IcError, text};
use std::sync::Arc;
use std::time::Duration;
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

static PROFILE: Profile = Profile {
    name: "shutdown",
    // 0e0b6031-5213-4934-818b-38d90ced39db
    interface_id: Guid::from_u128(0x0e0b6031_5213_4934_818b_38d90ced39db),
    // b6650ff7-33bc-4840-8048-e0676786f393
    instance_id: Guid::from_u128(0xb6650ff7_33bc_4840_8048_e0676786f393),
    message_type: TYPE_SHUTDOWN,
    versions: &[
        IcVersion::new(1, 0),
        IcVersion::new(3, 0),
        IcVersion::new(3, 1),
        IcVersion::new(3, 2),
    ],
};

/// SHTDN_REASON_FLAG_PLANNED of the Windows SDK.
const REASON_PLANNED: u32 = 0x8000_0000;
/// Even if that loses unsaved work.
const FLAG_FORCE: u32 = 1;
/// Start again. From 3.1.
const FLAG_RESTART: u32 = 2;
/// To disk. From 3.2.
const FLAG_HIBERNATE: u32 = 4;

/// The request. Linux insists on its full length.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ShutdownMessage {
    reason: U32,
    /// Seconds that the guest may let its applications have.
    timeout: U32,
    flags: U32,
    /// For people.
    text: [U16; 1024],
}

/// How the guest shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownKind {
    /// It switches itself off.
    PowerOff,
    /// It starts again.
    Reboot,
    /// It saves itself to its disk and switches itself off.
    Hibernate,
}

/// A handle by which the guest is asked to shut down.
#[derive(Clone)]
pub struct Shutdown {
    exchange: Arc<Exchange>,
}

impl Shutdown {
    /// A device for the bus, and its handle.
    pub fn new() -> (Box<dyn Vsp>, Self) {
        let handle = Self {
            exchange: Arc::default(),
        };
        (
            Box::new(IcDevice::new(ShutdownService, handle.exchange.clone())),
            handle,
        )
    }

    /// Asks the guest to end, and waits until it has agreed. It does so before
    /// it begins: that it is done shows in the virtual machine's end or reset.
    /// `force` means: even if unsaved work is lost.
    ///
    /// # Errors
    ///
    /// [`IcError`]; [`super::IcStatus::MACHINE_LOCKED`] from guests that a
    /// forced shutdown would end, [`IcError::Unsupported`] where the guest's
    /// version has no such kind.
    pub fn request(
        &self,
        kind: ShutdownKind,
        force: bool,
        timeout: Duration,
    ) -> Result<(), IcError> {
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let encode = move |versions| encode(versions, kind, force, seconds);
        self.exchange.call(0, timeout, encode)?.body().map(|_| ())
    }

    /// Whether the guest has opened the channel.
    pub fn is_connected(&self) -> bool {
        self.exchange.is_open()
    }
}

fn encode(
    versions: Versions,
    kind: ShutdownKind,
    force: bool,
    seconds: u32,
) -> Result<Vec<u8>, IcError> {
    let message = versions.message;
    let (flags, known, words) = match kind {
        ShutdownKind::PowerOff => (0, true, "The host asks for a shutdown."),
        ShutdownKind::Reboot => (
            FLAG_RESTART,
            message.at_least(3, 1),
            "The host asks for a restart.",
        ),
        ShutdownKind::Hibernate => (
            FLAG_HIBERNATE,
            message.at_least(3, 2),
            "The host asks for hibernation.",
        ),
    };
    if !known {
        return Err(IcError::Unsupported(
            "the guest is too old for this kind of shutdown",
        ));
    }
    let mut request = ShutdownMessage::new_zeroed();
    request.reason = REASON_PLANNED.into();
    request.timeout = seconds.into();
    request.flags = (flags | if force { FLAG_FORCE } else { 0 }).into();
    text::put(&mut request.text, words)?;
    Ok(request.as_bytes().to_vec())
}

struct ShutdownService;

impl Service for ShutdownService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(minor: u16, kind: ShutdownKind, force: bool) -> Result<Vec<u8>, IcError> {
        let version = IcVersion::new(3, minor);
        encode(
            Versions {
                framework: version,
                message: version,
            },
            kind,
            force,
            30,
        )
    }

    #[test]
    fn requests_have_the_full_length_and_their_flags() {
        let bytes = encoded(2, ShutdownKind::PowerOff, false).unwrap();
        assert_eq!(bytes.len(), 2060);
        assert_eq!(bytes[..12], [0, 0, 0, 0x80, 30, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[12..16], [b'T', 0, b'h', 0]);
        assert_eq!(encoded(2, ShutdownKind::PowerOff, true).unwrap()[8], 1);
        assert_eq!(encoded(1, ShutdownKind::Reboot, false).unwrap()[8], 2);
        assert_eq!(encoded(2, ShutdownKind::Hibernate, true).unwrap()[8], 5);
    }

    #[test]
    fn old_guests_are_not_asked_for_what_they_do_not_know() {
        let refused = |result| matches!(result, Err(IcError::Unsupported(_)));
        assert!(refused(encoded(0, ShutdownKind::Reboot, true)));
        assert!(refused(encoded(1, ShutdownKind::Hibernate, false)));
        assert!(encoded(0, ShutdownKind::PowerOff, true).is_ok());
    }
}
