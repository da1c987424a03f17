//! The integration components of a VM that runs.

use std::sync::{Arc, Weak};

use vid::Partition;
use vmbus::bus::Bus;
use vmbus::server::OfferError;
use vsp::ic::{FileCopy, Heartbeat, Kvp, Shutdown, TimeSync, Vss};

/// Handles to what the guest offers by its integration components. They are
/// made anew at each boot.
#[derive(Clone)]
pub(crate) struct Components {
    pub(crate) heartbeat: Heartbeat,
    pub(crate) shutdown: Shutdown,
    pub(crate) time: TimeSync,
    pub(crate) kvp: Kvp,
    pub(crate) vss: Vss,
    pub(crate) file_copy: FileCopy,
}

impl Components {
    /// Offers all components to a guest that is about to start.
    ///
    /// # Errors
    ///
    /// [`OfferError`]: the bus has no room.
    pub(crate) fn offer(bus: &Bus, partition: &Arc<Partition>) -> Result<Self, OfferError> {
        let partition: Weak<Partition> = Arc::downgrade(partition);
        let clock = move || partition.upgrade().map_or(0, |p| p.reference_time());
        let (shutdown_vsp, shutdown) = Shutdown::new();
        let (time_vsp, time) = TimeSync::new(Box::new(clock));
        let (heartbeat_vsp, heartbeat) = Heartbeat::new();
        let (kvp_vsp, kvp) = Kvp::new();
        let (vss_vsp, vss) = Vss::new();
        let (file_copy_vsp, file_copy) = FileCopy::new();
        for vsp in [
            shutdown_vsp,
            time_vsp,
            heartbeat_vsp,
            kvp_vsp,
            vss_vsp,
            file_copy_vsp,
        ] {
            bus.offer(vsp)?;
        }
        Ok(Self {
            heartbeat,
            shutdown,
            time,
            kvp,
            vss,
            file_copy,
        })
    }
}
