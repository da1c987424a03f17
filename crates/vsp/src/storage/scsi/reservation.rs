//! Persistent reservations (SPC-4 5.13), as the only initiator of a unit can
//! use them: it may register, reserve, and release, and nobody else is there
//! to conflict with.

use super::sense::Sense;
use super::{Fault, Outcome, Request};

/// Bytes of the parameters of PERSISTENT RESERVE OUT.
const PARAMETERS_SIZE: u32 = 24;
/// Types: write exclusive and exclusive access, each for the holder, for
/// registrants only, and for all registrants.
const KINDS: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// The registration of the initiator, and its reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    generation: u32,
    key: Option<u64>,
    kind: Option<u8>,
}

impl Reservations {
    /// PERSISTENT RESERVE IN.
    pub(super) fn report(&self, request: &Request<'_>, action: u8, length: u32) -> Outcome {
        let mut data = self.generation.to_be_bytes().to_vec();
        match action {
            // READ KEYS
            0 => {
                data.extend(self.key.map_or(0_u32, |_| 8).to_be_bytes());
                data.extend(self.key.iter().flat_map(|key| key.to_be_bytes()));
            }
            // READ RESERVATION
            1 => {
                data.extend(self.kind.map_or(0_u32, |_| 16).to_be_bytes());
                if let Some(kind) = self.kind {
                    data.extend(self.reservation_key(kind).to_be_bytes());
                    data.extend([0, 0, 0, 0, 0, kind, 0, 0]);
                }
            }
            // REPORT CAPABILITIES: the list of types is valid.
            2 => data = vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0],
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
        request.reply(&data, length)
    }

    /// The key that a reservation is reported with: none where it is held by
    /// all registrants.
    fn reservation_key(&self, kind: u8) -> u64 {
        if kind >= 7 { 0 } else { self.key.unwrap_or(0) }
    }

    /// PERSISTENT RESERVE OUT.
    pub(super) fn change(
        &mut self,
        request: &Request<'_>,
        action: u8,
        (scope, kind): (u8, u8),
        length: u32,
    ) -> Outcome {
        if length != PARAMETERS_SIZE {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        let data = request.parameters(length)?;
        let (key, new_key) = (be64(&data, 0), be64(&data, 8));
        // SPEC_I_PT and APTPL: there are no ports and no memory for power
        // loss.
        if data.get(20).is_none_or(|flags| flags & 0x9 != 0) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
        }
        if !matches!(action, 0 | 6) && self.key != Some(key) {
            return Err(Fault::Conflict);
        }
        match action {
            // REGISTER
            0 if self.key.unwrap_or(0) != key => return Err(Fault::Conflict),
            // REGISTER, and REGISTER AND IGNORE EXISTING KEY
            0 | 6 => self.register(new_key),
            // RESERVE
            1 => self.reserve(scope, kind)?,
            // RELEASE
            2 => self.release(scope, kind)?,
            // CLEAR
            3 => self.register(0),
            // PREEMPT, with or without ABORT
            4 | 5 => self.preempt(scope, kind, new_key)?,
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
        Ok(data.len())
    }

    fn register(&mut self, key: u64) {
        self.key = (key != 0).then_some(key);
        if self.key.is_none() {
            self.kind = None;
        }
        self.generation = self.generation.wrapping_add(1);
    }

    fn reserve(&mut self, scope: u8, kind: u8) -> Result<(), Fault> {
        if scope != 0 || !KINDS.contains(&kind) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        match self.kind {
            Some(held) if held != kind => Err(Fault::Conflict),
            _ => {
                self.kind = Some(kind);
                Ok(())
            }
        }
    }

    fn release(&mut self, scope: u8, kind: u8) -> Result<(), Fault> {
        match self.kind {
            Some(held) if scope != 0 || held != kind => Err(Sense::INVALID_RELEASE.into()),
            _ => {
                self.kind = None;
                Ok(())
            }
        }
    }

    fn preempt(&mut self, scope: u8, kind: u8, victim: u64) -> Result<(), Fault> {
        // The only key to be found is the initiator's own.
        if self.key != Some(victim) {
            return Err(Fault::Conflict);
        }
        if scope != 0 || !KINDS.contains(&kind) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        if self.kind.is_some() {
            self.kind = Some(kind);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }
}

fn be64(data: &[u8], at: usize) -> u64 {
    let bytes = data
        .get(at..at + 8)
        .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    bytes.map_or(0, u64::from_be_bytes)
}
