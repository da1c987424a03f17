//! SCSI requests of the protocol, carried out.

use super::controller::Controller;
use super::medium::DataBuffer;
use super::protocol::{ScsiRequest, scsi_status, srb_status};
use super::scsi::{Answer, CDB_SIZE, Direction, Fault, Request, SENSE_SIZE, Sense};
use vmbus::protocol::GpaRange;

/// Carries a request out; the request comes back as its result.
pub(super) fn execute(
    controller: &Controller,
    request: &ScsiRequest,
    ranges: &[GpaRange],
) -> ScsiRequest {
    let mut cdb = [0; CDB_SIZE];
    cdb.copy_from_slice(&request.payload[..CDB_SIZE]);
    let answer = with_data(controller, request, ranges, cdb);
    account(controller, request, cdb[0], answer);
    result(request, answer)
}

fn with_data(
    controller: &Controller,
    request: &ScsiRequest,
    ranges: &[GpaRange],
    cdb: [u8; CDB_SIZE],
) -> Answer {
    let direction = match request.data_in {
        0 => Direction::Out,
        1 => Direction::In,
        _ => Direction::None,
    };
    let malformed = Answer::Done(Err(Fault::Malformed));
    let buffer = match (direction, ranges) {
        (Direction::None, _) | (_, []) => None,
        _ => match controller.memory().buffer(ranges) {
            Ok(buffer) => Some(buffer),
            Err(_) => return malformed,
        },
    };
    let length = request.data_transfer_length as usize;
    let buffer = buffer.as_ref().map(|buffer| &**buffer as &dyn DataBuffer);
    let Some(command) = Request::new(cdb, request.cdb_length, direction, buffer, length) else {
        return malformed;
    };
    let here = request.path_id == 0 && request.target_id == 0;
    controller.target().execute(here, request.lun, &command)
}

fn account(controller: &Controller, request: &ScsiRequest, opcode: u8, answer: Answer) {
    let counters = controller.counters();
    counters.request();
    if let Answer::Done(outcome) = answer {
        counters.command(request.lun, opcode, outcome.ok());
        if outcome == Err(Fault::Malformed) && counters.malformed() {
            tracing::debug!("a storage request without the buffer that it needs");
        }
    }
}

fn result(request: &ScsiRequest, answer: Answer) -> ScsiRequest {
    let mut result = ScsiRequest {
        srb_status: srb_status::ERROR,
        scsi_status: scsi_status::GOOD,
        sense_length: 0,
        data_transfer_length: 0,
        ..*request
    };
    match answer {
        Answer::Done(Ok(moved)) => {
            result.srb_status = srb_status::SUCCESS;
            // It is not more than the guest has asked for.
            result.data_transfer_length = moved as u32;
        }
        Answer::Done(Err(Fault::Check(sense))) => set_sense(&mut result, sense),
        Answer::Done(Err(Fault::Conflict)) => {
            result.scsi_status = scsi_status::RESERVATION_CONFLICT;
        }
        Answer::Done(Err(Fault::Malformed)) => result.srb_status = srb_status::INVALID_REQUEST,
        Answer::NoUnit => result.srb_status = srb_status::INVALID_LUN,
    }
    result
}

fn set_sense(result: &mut ScsiRequest, sense: Sense) {
    result.srb_status = srb_status::ERROR | srb_status::AUTOSENSE_VALID;
    result.scsi_status = scsi_status::CHECK_CONDITION;
    result.sense_length = SENSE_SIZE as u8;
    result.payload.fill(0);
    result.payload[..SENSE_SIZE].copy_from_slice(&sense.to_bytes());
}
