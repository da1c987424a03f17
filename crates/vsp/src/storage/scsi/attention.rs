//! UNIT ATTENTION conditions (SAM-5 5.14): what happened to a logical unit,
//! told once, by failing the next command.

use super::Fault;
use super::cdb::Command;
use super::sense::Sense;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Different conditions that a device can establish.
const MAX_PENDING: usize = 8;

/// Conditions that the guest has not been told of.
#[derive(Default)]
pub(super) struct Attentions {
    any: AtomicBool,
    pending: Mutex<VecDeque<Sense>>,
}

impl Attentions {
    /// Establishes a condition. A reset takes the place of all before it.
    pub(super) fn raise(&self, sense: Sense) {
        let mut pending = self.pending.lock();
        if sense == Sense::RESET {
            pending.clear();
        }
        if !pending.contains(&sense) && pending.len() < MAX_PENDING {
            pending.push_back(sense);
        }
        self.any.store(true, Ordering::Release);
    }

    /// The next command will fail.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes the oldest condition.
    pub(super) fn take(&self) -> Option<Sense> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut pending = self.pending.lock();
        let sense = pending.pop_front();
        self.any.store(!pending.is_empty(), Ordering::Release);
        sense
    }

    /// Fails a command with the oldest condition, if it is one that tells of
    /// conditions.
    pub(super) fn check(&self, command: &Command) -> Result<(), Fault> {
        let silent = matches!(
            command,
            Command::Inquiry { .. }
                | Command::ReportLuns { .. }
                | Command::RequestSense { .. }
                | Command::GetConfiguration { .. }
                | Command::GetEventStatus { .. }
        );
        if silent {
            return Ok(());
        }
        self.take().map_or(Ok(()), |sense| Err(sense.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_once_and_not_to_inquiries() {
        let attentions = Attentions::default();
        attentions.raise(Sense::CAPACITY_CHANGED);
        attentions.raise(Sense::CAPACITY_CHANGED);
        attentions.raise(Sense::MODE_CHANGED);
        let inquiry = Command::Inquiry {
            page: None,
            length: 36,
        };
        assert_eq!(attentions.check(&inquiry), Ok(()));
        let ready = Command::TestUnitReady;
        assert_eq!(
            attentions.check(&ready),
            Err(Sense::CAPACITY_CHANGED.into())
        );
        attentions.raise(Sense::RESET);
        assert_eq!(attentions.check(&ready), Err(Sense::RESET.into()));
        assert_eq!(attentions.check(&ready), Ok(()));
    }
}
