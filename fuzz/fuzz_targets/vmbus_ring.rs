//! Rings whose pages a guest writes as it likes, also between two looks at
//! them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vmbus::protocol::{PacketType, RING_CONTROL_SIZE};
use vmbus::ring::{
    Batch, GuestPages, HeapPages, Incoming, Outgoing, PacketOut, RingMemory, pipe_data,
};

const PAGES: usize = 3;

/// The guest writes: into the control page or the data.
fn scribble(pages: &HeapPages, bytes: &[u8]) {
    let [kind, low, high, data @ ..] = bytes else {
        return;
    };
    let at = usize::from(u16::from_le_bytes([*low, *high]));
    let offset = match kind % 3 {
        0 => at % 20 * 4 % 80,
        1 => RING_CONTROL_SIZE + at % (PAGES - 1) * RING_CONTROL_SIZE,
        _ => at,
    };
    // Beyond the pages nothing happens.
    let _ = pages.write(offset, data);
}

/// Looks at everything in a batch, as devices do.
fn inspect(batch: &Batch) -> usize {
    let mut bytes = 0;
    for packet in batch.packets() {
        bytes += packet.data.len();
        match packet.packet_type {
            PacketType::GPA_DIRECT => {
                for range in packet.gpa_direct().unwrap_or_default() {
                    let length: usize = range.segments().map(|(_, length)| length).sum();
                    assert_eq!(length, range.byte_count as usize);
                }
            }
            PacketType::TRANSFER_PAGES => {
                let _ = packet.transfer_pages();
            }
            _ => {
                let _ = pipe_data(packet.data);
            }
        }
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let pages = Arc::new(HeapPages::new(PAGES));
    let mut steps = data.chunks(19);
    scribble(&pages, steps.next().unwrap_or_default());
    let end = pages.len();
    let Ok(memory) = RingMemory::new(pages.clone(), 0, end) else {
        return;
    };
    let (Ok(mut incoming), Ok(mut outgoing)) =
        (Incoming::new(memory.clone()), Outgoing::new(memory))
    else {
        return;
    };
    let mut batch = Batch::new();
    for step in steps {
        scribble(&pages, step);
        match step.len() % 4 {
            0 => {
                let parts = [step];
                let _ = outgoing.write(&PacketOut::in_band(1, &parts));
                let _ = outgoing.wait_for_room(step.len());
            }
            1 => {
                let _ = incoming.mask();
                let _ = incoming.unmask();
            }
            _ => {
                if incoming.read(&mut batch).is_ok() {
                    assert!(inspect(&batch) <= end);
                }
            }
        }
    }
});
