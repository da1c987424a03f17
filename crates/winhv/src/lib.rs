#![no_std]
//! Hypercalls as ordinary typed calls, encoded as the TLFS says, over any
//! [`Transport`]: a function call into the hosted hypervisor, or the
//! hypercall instruction on bare metal.
//!
//! # Memory
//!
//! Calls that fail with `INSUFFICIENT_MEMORY`
//! ([`HvError::is_insufficient_memory`]) want pages in the partition's pool:
//! [`WinHv::deposit_memory`], then try again. Rep calls tell with
//! [`HvError::completed`] how many elements were done before; go on with the
//! next.

extern crate alloc;

mod interrupt;
mod memory;
mod partition;
mod port;
mod vp;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use tlfs::{HV_PAGE_SIZE, HvCallCode, HvHypercallControl, HvHypercallResult, HvStatus};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Carries hypercalls to the hypervisor.
pub trait Transport {
    /// Makes a hypercall. `input` and `output` are the contents of the
    /// parameter pages, at most 4096 bytes each. Returns HV_HYPERCALL_RESULT.
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64;
}

impl<T: Transport + ?Sized> Transport for &T {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        (**self).hypercall(control, input, output)
    }
}

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        (**self).hypercall(control, input, output)
    }
}

/// A hypercall that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hypercall {call:?} failed after {completed} elements: {status}")]
pub struct HvError {
    /// The call.
    pub call: HvCallCode,
    /// Its status.
    pub status: HvStatus,
    /// Elements of the caller's list that were done before.
    pub completed: usize,
}

impl HvError {
    /// Whether pages must be deposited before the call is tried again.
    pub fn is_insufficient_memory(&self) -> bool {
        self.status == HvStatus::INSUFFICIENT_MEMORY
    }
}

/// Result of a hypercall.
pub type HvResult<T = ()> = Result<T, HvError>;

/// The hypercalls of a parent partition.
#[derive(Clone, Debug)]
pub struct WinHv<T> {
    transport: T,
}

impl<T: Transport> WinHv<T> {
    /// Hypercalls over `transport`.
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// A simple call without output.
    fn call<I: IntoBytes + Immutable>(&self, code: HvCallCode, input: &I) -> HvResult {
        self.raw(HvHypercallControl::simple(code), input.as_bytes(), &mut [])
            .map(|_| ())
    }

    /// A simple call with output.
    fn call_out<I, O>(&self, code: HvCallCode, input: &I) -> HvResult<O>
    where
        I: IntoBytes + Immutable,
        O: FromZeros + FromBytes + IntoBytes,
    {
        let mut output = O::new_zeroed();
        let control = HvHypercallControl::simple(code);
        self.raw(control, input.as_bytes(), output.as_mut_bytes())?;
        Ok(output)
    }

    /// Makes a call; the reps completed.
    fn raw(&self, control: HvHypercallControl, input: &[u8], output: &mut [u8]) -> HvResult<usize> {
        let result = HvHypercallResult(self.transport.hypercall(control.0, input, output));
        let completed = result.reps_completed();
        match result.status() {
            HvStatus::SUCCESS => Ok(completed),
            status => Err(HvError {
                call: control.code(),
                status,
                completed,
            }),
        }
    }

    /// A rep call over one parameter page, continued until all `count`
    /// elements are done.
    fn rep(&self, code: HvCallCode, count: usize, input: &[u8], output: &mut [u8]) -> HvResult {
        let mut start = 0;
        while start < count {
            let control = HvHypercallControl::rep(code, count, start);
            let completed = self.raw(control, input, output)?;
            if completed <= start {
                // A hypervisor does at least one rep or tells why not.
                return Err(HvError {
                    call: code,
                    status: HvStatus::OPERATION_FAILED,
                    completed,
                });
            }
            start = completed;
        }
        Ok(())
    }

    /// A rep call over a list of any length: as many calls as it needs pages.
    /// `header` is asked for the header of each, with the index of the
    /// call's first element.
    fn rep_list<H, E>(
        &self,
        code: HvCallCode,
        header: impl Fn(usize) -> H,
        elements: impl IntoIterator<Item = E>,
    ) -> HvResult<usize>
    where
        H: IntoBytes + Immutable,
        E: IntoBytes + Immutable,
    {
        let per_page = (HV_PAGE_SIZE - size_of::<H>()) / size_of::<E>();
        let mut elements = elements.into_iter();
        let mut done = 0;
        loop {
            let mut page = Vec::with_capacity(HV_PAGE_SIZE);
            page.extend_from_slice(header(done).as_bytes());
            let mut count = 0;
            for element in elements.by_ref().take(per_page) {
                page.extend_from_slice(element.as_bytes());
                count += 1;
            }
            if count == 0 {
                return Ok(done);
            }
            let shift = |error: HvError| HvError {
                completed: done + error.completed,
                ..error
            };
            self.rep(code, count, &page, &mut []).map_err(shift)?;
            done += count;
        }
    }

    /// A rep call without input elements.
    fn rep_out(
        &self,
        code: HvCallCode,
        header: &[u8],
        count: usize,
        size: usize,
    ) -> HvResult<Vec<u8>> {
        let mut output = vec![0; count * size];
        self.rep(code, count, header, &mut output)?;
        Ok(output)
    }
}
