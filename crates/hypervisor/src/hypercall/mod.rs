//! Hypercalls: the table of those that exist, and what is common to them.
//! The root's calls and the guests' go through the same table.

mod flush;
mod intercept;
mod interrupt;
mod memory;
mod message;
mod partition;
mod port;
mod registers;
mod system;
mod table;
mod vp;
mod vp_set;

use alloc::sync::Arc;

use tlfs::{
    HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, HvHypercallControl, HvPartitionId,
    HvPartitionPrivilegeMask, HvStatus, HvVpIndex,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::partition::Partition;
use crate::vp::Vp;
use crate::{Hypervisor, Platform, Processor};
pub(crate) use table::find_call;

/// Reps done before a guest gets a chance to take interrupts (TLFS 3.2,
/// "Hypercall Continuation").
pub(crate) const REPS_PER_ENTRY: usize = 64;

/// The result of a handler.
pub(crate) type HvResult<T = ()> = Result<T, HvStatus>;

/// A processor that the calling thread lends for the time of a call.
pub(crate) struct LentProcessor<'a> {
    pub(crate) partition: HvPartitionId,
    pub(crate) vp: HvVpIndex,
    pub(crate) cpu: &'a mut dyn Processor,
}

/// Who calls, and with what.
pub(crate) struct Context<'a> {
    pub(crate) hypervisor: &'a Hypervisor,
    pub(crate) caller: Arc<Partition>,
    /// The calling virtual processor; none for the hosted root.
    pub(crate) vp: Option<Arc<Vp>>,
    pub(crate) cpu: Option<LentProcessor<'a>>,
}

impl Context<'_> {
    fn platform(&self) -> &dyn Platform {
        self.hypervisor.platform()
    }

    /// The partition `id` if it is the caller itself.
    fn is_self(&self, id: HvPartitionId) -> bool {
        id == HV_PARTITION_ID_SELF || id == self.caller.id
    }

    /// A child of the caller.
    fn child(&self, id: HvPartitionId) -> HvResult<Arc<Partition>> {
        let partition = self
            .hypervisor
            .partition(id)
            .ok_or(HvStatus::INVALID_PARTITION_ID)?;
        if partition.parent != Some(self.caller.id) {
            return Err(HvStatus::ACCESS_DENIED);
        }
        Ok(partition)
    }

    /// A child of the caller, or the caller.
    fn child_or_self(&self, id: HvPartitionId) -> HvResult<Arc<Partition>> {
        if self.is_self(id) {
            Ok(self.caller.clone())
        } else {
            self.child(id)
        }
    }

    /// A virtual processor of `partition`.
    fn vp(&self, partition: &Partition, index: HvVpIndex) -> HvResult<Arc<Vp>> {
        if index == HV_VP_INDEX_SELF {
            let own = self.vp.as_ref().filter(|_| partition.id == self.caller.id);
            return own.cloned().ok_or(HvStatus::INVALID_VP_INDEX);
        }
        partition.vp(index).ok_or(HvStatus::INVALID_VP_INDEX)
    }

    /// The processor of `vp`, if the caller lent it.
    fn processor(&mut self, vp: &Vp) -> HvResult<&mut dyn Processor> {
        match &mut self.cpu {
            Some(lent) if lent.partition == vp.partition_id && lent.vp == vp.index => {
                Ok(&mut *lent.cpu)
            }
            _ => Err(HvStatus::INVALID_VP_STATE),
        }
    }
}

type SimpleHandler = fn(&mut Context<'_>, &[u8], &mut [u8]) -> HvResult;
type RepHandler = fn(&mut Context<'_>, &mut Reps<'_>) -> HvResult;

/// How a call is worked off.
pub(crate) enum Kind {
    Simple(SimpleHandler),
    Rep {
        /// Bytes of an input element; 0 for none.
        input: usize,
        /// Bytes of an output element; 0 for none.
        output: usize,
        handler: RepHandler,
    },
}

/// A hypercall that exists.
pub(crate) struct Call {
    code: tlfs::HvCallCode,
    privilege: HvPartitionPrivilegeMask,
    /// Bytes of the fixed input header.
    input: usize,
    /// Whether a variable header may follow.
    variable: bool,
    /// Bytes of output of a simple call.
    output: usize,
    kind: Kind,
}

/// How far a call came.
pub(crate) struct Progress {
    /// Reps completed, counted from the list's start.
    pub(crate) reps: usize,
    pub(crate) status: HvResult,
}

impl Call {
    fn header_size(&self, control: HvHypercallControl) -> usize {
        self.input + control.variable_header_qwords() * 8
    }

    /// Bytes of input: headers and all elements.
    pub(crate) fn input_size(&self, control: HvHypercallControl) -> usize {
        let elements = match self.kind {
            Kind::Simple(_) => 0,
            Kind::Rep { input, .. } => input * control.rep_count(),
        };
        self.header_size(control) + elements
    }

    /// Bytes of output.
    pub(crate) fn output_size(&self, control: HvHypercallControl) -> usize {
        match self.kind {
            Kind::Simple(_) => self.output,
            Kind::Rep { output, .. } => output * control.rep_count(),
        }
    }

    /// Checks the form of a control word (TLFS 3.7).
    fn check(&self, control: HvHypercallControl) -> HvResult {
        let reps_valid = match self.kind {
            Kind::Simple(_) => control.rep_count() == 0 && control.rep_start() == 0,
            Kind::Rep { .. } => control.rep_start() < control.rep_count(),
        };
        let header_valid = self.variable || control.variable_header_qwords() == 0;
        if reps_valid && header_valid && control.0 & HvHypercallControl::RESERVED == 0 {
            Ok(())
        } else {
            Err(HvStatus::INVALID_HYPERCALL_INPUT)
        }
    }

    /// Makes the call, up to rep `end`. `input` and `output` have the sizes
    /// that [`Call::input_size`] and [`Call::output_size`] tell.
    pub(crate) fn run(
        &self,
        context: &mut Context<'_>,
        control: HvHypercallControl,
        end: usize,
        input: &[u8],
        output: &mut [u8],
    ) -> Progress {
        let start = control.rep_start();
        if !context.caller.may(self.privilege) {
            return Progress {
                reps: start,
                status: Err(HvStatus::ACCESS_DENIED),
            };
        }
        match self.kind {
            Kind::Simple(handler) => Progress {
                reps: 0,
                status: handler(context, input, output),
            },
            Kind::Rep {
                input: in_size,
                output: out_size,
                handler,
            } => {
                let (header, input) = input.split_at(self.header_size(control).min(input.len()));
                let mut reps = Reps {
                    header,
                    input,
                    output,
                    in_size,
                    out_size,
                    next: start,
                    end,
                };
                let status = handler(context, &mut reps);
                Progress {
                    reps: reps.next,
                    status,
                }
            }
        }
    }
}

/// The elements of a rep call.
pub(crate) struct Reps<'a> {
    header: &'a [u8],
    input: &'a [u8],
    output: &'a mut [u8],
    in_size: usize,
    out_size: usize,
    next: usize,
    end: usize,
}

impl Reps<'_> {
    /// The header as `T`.
    fn header<T: FromBytes>(&self) -> HvResult<T> {
        parse(self.header)
    }

    /// Whether elements are left for this entry.
    fn more(&self) -> bool {
        self.next < self.end
    }

    /// How many elements are left for this entry.
    fn left(&self) -> usize {
        self.end - self.next
    }

    /// Input element `offset` behind the next one.
    fn input<T: FromBytes>(&self, offset: usize) -> HvResult<T> {
        let start = (self.next + offset) * self.in_size;
        parse(self.input.get(start..).unwrap_or_default())
    }

    /// Writes the next output element.
    fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> HvResult {
        let start = self.next * self.out_size;
        put(self.output.get_mut(start..).unwrap_or_default(), value)
    }

    /// `count` elements are done.
    fn advance(&mut self, count: usize) {
        self.next += count;
    }
}

/// Reads a layout from the front of untrusted bytes.
fn parse<T: FromBytes>(bytes: &[u8]) -> HvResult<T> {
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)
}

/// Writes a layout to the front of an output block.
fn put<T: IntoBytes + Immutable>(output: &mut [u8], value: &T) -> HvResult {
    value
        .write_to_prefix(output)
        .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)
}

/// Fails unless a condition on a parameter holds.
fn require(condition: bool) -> HvResult {
    if condition {
        Ok(())
    } else {
        Err(HvStatus::INVALID_PARAMETER)
    }
}
