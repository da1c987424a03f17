//! What SynIC test images ask of the host, carried out as hypercalls.

use tlfs::{HvInterruptControl, HvInterruptType, HvPortInfo};
use vdev::{HvTestControl, HvTestRequest};
use vid::Partition;

/// Event ports are numbered apart from message ports.
const EVENT_PORT: u32 = 0x100;
/// SINTs of a virtual processor.
const SINTS: u8 = 16;

/// Carries out one request. Requests that make no sense (a connection that
/// exists, a SINT that does not) are logged and change nothing.
pub(crate) fn carry_out(partition: &Partition, request: HvTestRequest) {
    if request.sint >= SINTS {
        tracing::debug!(?request, "no such SINT");
        return;
    }
    let id = u32::from(request.connection);
    let (sint, vp) = (u32::from(request.sint), u32::from(request.vp_index));
    let result = match request.control {
        // Routes need no set-up: a SINT can be asserted whenever it is unmasked.
        HvTestControl::CreateSintRoute | HvTestControl::DestroySintRoute => Ok(()),
        HvTestControl::SignalSint => signal(partition, vp, request.sint),
        HvTestControl::CreateMessageConnection => {
            partition.open_loop_port(id, id, HvPortInfo::message(sint, vp))
        }
        HvTestControl::DestroyMessageConnection => partition.close_loop_port(id, id),
        HvTestControl::CreateEventConnection => {
            let info = HvPortInfo::event(sint, vp, u16::from(request.connection), 1);
            partition.open_loop_port(EVENT_PORT | id, id, info)
        }
        HvTestControl::DestroyEventConnection => partition.close_loop_port(EVENT_PORT | id, id),
    };
    if let Err(error) = result {
        tracing::debug!(%error, ?request, "test request refused");
    }
}

/// Asserts a SINT without a message: its vector, on its processor.
fn signal(partition: &Partition, vp: u32, sint: u8) -> Result<(), vid::HvError> {
    let Some(vector) = partition.sint_vector(vp, sint) else {
        return Ok(());
    };
    let control = HvInterruptControl::new(HvInterruptType::FIXED, false, false);
    partition.assert_interrupt(control, u64::from(vp), vector)
}
