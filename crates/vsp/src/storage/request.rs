//! SCSI requests of the protocol, carried out.

use super::controller::Controller;
use super::direct;
use super::medium::{DataBuffer, DataRange, FileRange};
use super::protocol::{ScsiRequest, scsi_status, srb_status};
use super::scsi::{
    Answer, CDB_SIZE, Direction, Fault, InUse, Plan, Request, SENSE_SIZE, Sense, Transferred,
};
use super::uring::cursor::{self, Cursor, Step};
use super::uring::engine::Subject;
use std::io;
use std::os::fd::BorrowedFd;
use vmbus::protocol::GpaRange;

/// A request with its buffer.
pub(super) struct Prepared {
    request: ScsiRequest,
    direction: Direction,
    /// `None` where the request names memory that is none.
    buffer: Option<Option<Box<dyn DataBuffer>>>,
}

impl Prepared {
    /// Looks the buffer up.
    pub(super) fn new(controller: &Controller, request: ScsiRequest, ranges: &[GpaRange]) -> Self {
        let direction = match request.data_in {
            0 => Direction::Out,
            1 => Direction::In,
            _ => Direction::None,
        };
        let buffer = match (direction, ranges) {
            (Direction::None, _) | (_, []) => Some(None),
            _ => controller.memory().buffer(ranges).ok().map(Some),
        };
        Self {
            request,
            direction,
            buffer,
        }
    }

    /// The request, as the guest sent it.
    pub(super) fn request(&self) -> &ScsiRequest {
        &self.request
    }

    /// Its data, if any, goes to the device.
    pub(super) fn is_for_device(&self) -> bool {
        self.direction == Direction::Out
    }

    fn opcode(&self) -> u8 {
        self.request.payload[0]
    }

    fn is_here(&self) -> bool {
        self.request.path_id == 0 && self.request.target_id == 0
    }

    fn command(&self) -> Option<Request<'_>> {
        let mut cdb = [0; CDB_SIZE];
        cdb.copy_from_slice(&self.request.payload[..CDB_SIZE]);
        let buffer = self.buffer.as_ref()?.as_deref();
        let buffer = buffer.map(|buffer| buffer as &dyn DataBuffer);
        let length = self.request.data_transfer_length as usize;
        Request::new(cdb, self.request.cdb_length, self.direction, buffer, length)
    }

    /// Carries the request out; it comes back as its result.
    pub(super) fn execute(&self, controller: &Controller) -> ScsiRequest {
        let answer = match self.command() {
            Some(command) => {
                let target = controller.target();
                target.execute(self.is_here(), self.request.lun, &command)
            }
            None => Answer::Done(Err(Fault::Malformed)),
        };
        self.settle(controller, answer)
    }

    /// Makes a transfer of the request, if it is a plain one between a file
    /// and memory in which system calls can work.
    pub(super) fn into_transfer(self, controller: &Controller) -> Result<Transfer, Self> {
        match self.plan(controller) {
            Some((cursor, plan, unit)) => Ok(Transfer::new(self, cursor, plan, unit)),
            None => Err(self),
        }
    }

    /// Carries the request out if it is a read whose data the host has at
    /// hand, all of it. `None` where that would take longer, or is not so.
    pub(super) fn read_at_once(self, controller: &Controller) -> Option<ScsiRequest> {
        if self.direction != Direction::In {
            return None;
        }
        let mut transfer = self.into_transfer(controller).ok()?;
        let mut cursor = transfer.take_cursor()?;
        let file = transfer.range.file()?;
        loop {
            let next = cursor.next()?;
            // SAFETY: the cursor's memory is the buffer's that the transfer
            // has, and a guest's memory may be written at any time.
            let read = unsafe { direct::read_cached(file, next.offset, next.vectors) };
            let moved = i32::try_from(read.ok()?).ok()?;
            match cursor.advance(moved) {
                Step::More => {}
                Step::Done => return Some(transfer.conclude(controller, Ok(()))),
                // Whoever tries it again finds out why.
                Step::Failed(_) => return None,
            }
        }
    }

    fn plan(&self, controller: &Controller) -> Option<(Cursor, Plan, InUse)> {
        let command = self.command()?;
        let target = controller.target();
        let (plan, unit) = target.plan(self.is_here(), self.request.lun, &command)?;
        let direction = match plan.direction {
            Direction::In => cursor::Direction::FromFile,
            Direction::Out => cursor::Direction::ToFile,
            Direction::None => return None,
        };
        let data = DataRange::new(self.buffer.as_ref()?.as_deref()?, plan.length)?;
        let cursor = Cursor::new(direction, plan.range.extents(), &data.host_pieces()?)?;
        Some((cursor, plan, unit))
    }

    /// Counts an answer, and makes the result of it.
    fn settle(&self, controller: &Controller, answer: Answer) -> ScsiRequest {
        let counters = controller.counters();
        counters.request();
        if let Answer::Done(outcome) = answer {
            counters.command(self.request.lun, self.opcode(), outcome.ok());
            if outcome == Err(Fault::Malformed) && counters.malformed() {
                tracing::debug!("a storage request without the buffer that it needs");
            }
        }
        result(&self.request, answer)
    }
}

/// A request that the host's kernel carries out: all that it must not lose
/// before it is done.
pub(super) struct Transfer {
    /// With the memory.
    prepared: Prepared,
    /// With the file, and the blocks' places in it.
    range: Box<dyn FileRange>,
    length: usize,
    direction: Direction,
    through: bool,
    /// Taken out of the engine's hands by [`Transfer::take_cursor`].
    cursor: Option<Cursor>,
    // Last: who waits for the unit has the file alone then.
    unit: InUse,
}

impl Transfer {
    fn new(prepared: Prepared, cursor: Cursor, plan: Plan, unit: InUse) -> Self {
        Self {
            prepared,
            range: plan.range,
            length: plan.length,
            direction: plan.direction,
            through: plan.through,
            cursor: Some(cursor),
            unit,
        }
    }

    /// What is to be moved; once.
    pub(super) fn take_cursor(&mut self) -> Option<Cursor> {
        self.cursor.take()
    }

    /// What concludes it takes time: a flush.
    pub(super) fn is_slow_to_conclude(&self, moved: &io::Result<()>) -> bool {
        self.through && moved.is_ok()
    }

    /// The request's result, from what became of the transfer.
    pub(super) fn conclude(self, controller: &Controller, result: io::Result<()>) -> ScsiRequest {
        if self.direction == Direction::In
            && let Some(Some(buffer)) = &self.prepared.buffer
        {
            buffer.written();
        }
        let outcome = self.unit.conclude(Transferred {
            length: self.length,
            direction: self.direction,
            through: self.through,
            result,
        });
        self.prepared.settle(controller, Answer::Done(outcome))
    }

    /// The request again, to be carried out in another way.
    pub(super) fn into_prepared(self) -> Prepared {
        self.prepared
    }
}

impl Subject for Transfer {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.range.file()
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
