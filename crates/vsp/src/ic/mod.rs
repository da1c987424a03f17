//! Integration components: small services by which host and guest work
//! together.
//!
//! * [`Heartbeat`]: is the guest alive?
//! * [`Shutdown`]: ask the guest to shut down or restart.
//! * [`TimeSync`]: the guest's clock, and the source of its `/dev/ptp`.
//! * [`Kvp`]: key-value pairs and network addresses.
//! * [`Vss`]: freeze and thaw file systems.
//! * [`FileCopy`]: copy a file into the guest.
//!
//! Each has a constructor that returns a device for
//! [`vmbus::bus::Bus::offer`], and a handle. Handles can be cloned and used
//! from any thread; their calls block until the guest answers or the time is
//! over.
//!
//! The guest is taken for hostile. It can leave requests unanswered, which
//! ends them after their time. Answers are checked like any input. A guest
//! that sends what nobody asked for is, after a while, not listened to any
//! more until it opens the channel again.

mod device;
mod exchange;
mod file_copy;
mod heartbeat;
mod kvp;
mod session;
mod shutdown;
#[cfg(test)]
mod tests;
mod text;
mod time_sync;
mod vss;
pub mod wire;

pub use file_copy::{CopyError, CopyFlags, FileCopy};
pub use heartbeat::{ApplicationState, Heartbeat, HeartbeatState, HeartbeatStatus};
pub use kvp::{AddressOrigin, IpAddress, IpInfo, Kvp, KvpPool, KvpValue};
pub use shutdown::{Shutdown, ShutdownKind};
pub use time_sync::{GuestClock, TimeSync};
pub use vss::{BackupFeatures, Frozen, Vss};
pub use wire::{IcStatus, IcVersion};

/// A request to a guest's component failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IcError {
    /// The guest has no driver for the component, or it is not loaded yet.
    #[error("the guest does not use this component")]
    NotConnected,
    /// The guest's driver is there, but its daemon perhaps not: it has agreed
    /// on no version in the time that the request had.
    #[error("the guest's part of this component is not ready")]
    NotReady,
    /// The guest cannot do that.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No answer came in time. Whether the guest did or will do what it was
    /// asked for is not known.
    #[error("the guest does not answer")]
    Timeout,
    /// Too many requests wait already.
    #[error("too many requests at a time")]
    Busy,
    /// The guest has closed the channel before it answered.
    #[error("the guest has closed the channel")]
    Closed,
    /// The guest has refused.
    #[error("the guest refuses: {0}")]
    Guest(IcStatus),
    /// The guest's answer makes no sense.
    #[error("a malformed answer: {0}")]
    Protocol(&'static str),
    /// What was asked for cannot be put into a message.
    #[error("{0}")]
    Argument(&'static str),
}

/// An answer of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    status: IcStatus,
    /// What follows the header: any bytes.
    body: Vec<u8>,
}

impl Reply {
    /// The body of an answer that says success.
    fn body(self) -> Result<Vec<u8>, IcError> {
        match self.status {
            IcStatus::OK => Ok(self.body),
            status => Err(IcError::Guest(status)),
        }
    }

    /// The message that an answer begins with that says success.
    fn read<T: zerocopy::FromBytes>(self) -> Result<T, IcError> {
        let body = self.body()?;
        let message = T::read_from_prefix(&body).map(|(message, _)| message);
        message.map_err(|_| IcError::Protocol("a short answer"))
    }
}
