//! GPADLs in the hands of devices.

use super::{BusHandle, ChannelError, Shared};
use crate::protocol::GpaRange;
use crate::ring::GuestPages;
use crate::server::{Input, OfferId};
use std::sync::{Arc, Weak};

/// A mapped GPADL: one range of the guest's memory or more. Dropping it lets
/// the guest have its pages back.
pub struct Gpadl {
    ranges: Arc<[GpaRange]>,
    pages: Vec<Arc<dyn GuestPages>>,
    _user: User,
}

impl Gpadl {
    /// The ranges as the guest listed them.
    pub fn ranges(&self) -> &[GpaRange] {
        &self.ranges
    }

    /// The pages of a range, from the first page's first byte on: the range
    /// itself begins at its `byte_offset`.
    pub fn pages(&self, range: usize) -> Option<&Arc<dyn GuestPages>> {
        self.pages.get(range)
    }
}

/// Counts for a mapping as long as it lives.
struct User {
    shared: Weak<Shared>,
    offer: OfferId,
    gpadl_id: u32,
}

impl Drop for User {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let key = (self.offer, self.gpadl_id);
        let mut state = shared.state();
        let Some(mapping) = state.mappings.get_mut(&key) else {
            return;
        };
        mapping.users -= 1;
        let tearing_down = mapping.tearing_down;
        if mapping.users == 0 {
            state.mappings.remove(&key);
            if tearing_down {
                let (offer, gpadl_id) = key;
                shared.input_locked(&mut state, Input::GpadlReleased { offer, gpadl_id });
            }
        }
    }
}

impl BusHandle {
    /// Maps a GPADL of a channel.
    pub(super) fn gpadl(&self, offer: OfferId, gpadl_id: u32) -> Result<Gpadl, ChannelError> {
        let shared = self.shared.upgrade().ok_or(ChannelError::Closed)?;
        let ranges = {
            let mut state = shared.state();
            let ranges = state.server.gpadl(offer, gpadl_id);
            let ranges = ranges.ok_or(ChannelError::Gpadl(gpadl_id))?;
            state.mappings.entry((offer, gpadl_id)).or_default().users += 1;
            ranges
        };
        // Counted first, so that the guest gets nothing back in between.
        let user = User {
            shared: self.shared.clone(),
            offer,
            gpadl_id,
        };
        let pages = ranges
            .iter()
            .map(|range| shared.host.map_pages(&range.pfns));
        let pages = pages.collect::<Result<_, _>>();
        let pages = pages.map_err(|_| ChannelError::Gpadl(gpadl_id))?;
        Ok(Gpadl {
            ranges,
            pages,
            _user: user,
        })
    }
}
