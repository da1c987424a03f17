//! The calls of a root, as `winhv` encodes them.

use partita_fuzz::hypercall::{CALLS, choice, op};
use std::cell::RefCell;
use tlfs::{HvHypercallControl, HvHypercallResult, HvStatus};
use winhv::{Transport, WinHv};

/// A transport that writes calls down and lets all succeed.
#[derive(Default)]
pub(crate) struct Recorder {
    operations: RefCell<Vec<u8>>,
    /// [`choice`] of the calls.
    choice: u8,
}

impl Transport for Recorder {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        // Much is available, of anything that is asked for.
        output.fill(0xff);
        let control = HvHypercallControl(control);
        let code = control.code().0;
        let index = CALLS.iter().position(|call| *call == code).unwrap_or(0);
        let fast = if control.fast() { choice::FAST } else { 0 };
        let length = input.len().div_ceil(4).min(255);
        let mut operations = self.operations.borrow_mut();
        operations.extend_from_slice(&[op::ROOT_CALL, self.choice | fast, index as u8]);
        operations.extend_from_slice(&(control.rep_count() as u16).to_le_bytes());
        operations.extend_from_slice(&[control.rep_start() as u8, 0, length as u8]);
        let from = operations.len();
        operations.extend_from_slice(&input[..input.len().min(4 * length)]);
        operations.resize(from + 4 * length, 0);
        HvHypercallResult::new(HvStatus::SUCCESS, control.rep_count()).0
    }
}

/// The operations that the calls of `work` are.
pub(crate) fn record(choice: u8, work: impl FnOnce(&WinHv<Recorder>)) -> Vec<u8> {
    let winhv = WinHv::new(Recorder {
        choice,
        ..Recorder::default()
    });
    work(&winhv);
    winhv.transport().operations.take()
}
