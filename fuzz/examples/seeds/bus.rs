//! Messages of a guest to the bus, and rings that it writes.

use crate::Corpus;
use std::io::Result;
use vmbus::protocol::{
    CloseChannel, ControlMessage, FeatureFlags, GpadlHeader, GpadlTeardown, InitiateContact,
    ModifyChannel, OpenChannel, OpenReservedChannel, RelIdReleased, RequestOffers, TargetInfo,
    TlConnectRequest, Unload, VMBUS_SINT, Version,
};
use zerocopy::IntoBytes;

/// A step of the target: a message.
fn message(message: &ControlMessage) -> Vec<u8> {
    let bytes = message.as_bytes();
    [&[4, bytes.len() as u8], bytes].concat()
}

/// All that a guest does with a channel, from its offer to its end.
fn conversation(version: u8) -> Vec<Vec<u8>> {
    let pages: Vec<u8> = [0x4000_u32.to_le_bytes(), [0; 4]]
        .concat()
        .into_iter()
        .chain((1..5_u64).flat_map(u64::to_le_bytes))
        .collect();
    let header = GpadlHeader {
        channel_id: 1,
        gpadl_id: 7,
        len: pages.len() as u16,
        count: 1,
    };
    let open = OpenChannel {
        channel_id: 1,
        open_id: 1,
        ring_buffer_gpadl_id: 7,
        target_vp: 0,
        downstream_ring_buffer_page_offset: 2,
        user_data: [0; 120],
    };
    let reserved = OpenReservedChannel {
        channel_id: 1,
        ring_buffer_gpadl_id: 7,
        downstream_ring_buffer_page_offset: 2,
        ..OpenReservedChannel::default()
    };
    let modify = ModifyChannel {
        channel_id: 1,
        target_vp: 1,
    };
    let teardown = GpadlTeardown {
        channel_id: 1,
        gpadl_id: 7,
    };
    vec![
        vec![0, 0],
        vec![2, version],
        message(&ControlMessage::new(&RequestOffers {})),
        message(&ControlMessage::with_data(&header, &pages)),
        message(&ControlMessage::new(&open)),
        vec![3, 0],
        message(&ControlMessage::new(&modify)),
        vec![0, 1],
        message(&ControlMessage::new(&TlConnectRequest::default())),
        message(&ControlMessage::new(&CloseChannel { channel_id: 1 })),
        vec![3, 0],
        message(&ControlMessage::new(&reserved)),
        vec![3, 0],
        message(&ControlMessage::new(&teardown)),
        vec![1, 1],
        vec![3, 0],
        message(&ControlMessage::new(&RelIdReleased { channel_id: 1 })),
        message(&ControlMessage::new(&Unload {})),
    ]
}

pub(crate) fn control_seeds(corpus: &mut Corpus) -> Result<()> {
    for version in 0..Version::SUPPORTED.len() as u8 {
        let steps = conversation(version);
        corpus.add(&steps.concat())?;
        // Without each of the steps, and with each twice.
        for left_out in 0..steps.len() {
            let mut changed = steps.clone();
            let step = changed.remove(left_out);
            corpus.add(&changed.concat())?;
            changed.splice(left_out..left_out, [step.clone(), step]);
            corpus.add(&changed.concat())?;
        }
    }
    let info = TargetInfo {
        sint: VMBUS_SINT,
        feature_flags: FeatureFlags::all().bits(),
        ..TargetInfo::default()
    };
    let contact = InitiateContact {
        version_requested: Version::COPPER.0,
        interrupt_page_or_target_info: info.to_field(),
        ..InitiateContact::default()
    };
    corpus.add(&message(&ControlMessage::new(&contact)))
}

/// The ring's first page is its control page; data begins behind it.
pub(crate) fn ring_seeds(corpus: &mut Corpus) -> Result<()> {
    for (kind, data_offset8, length8, flags) in [
        (6_u16, 2_u16, 4_u16, 1_u16),
        (9, 5, 7, 1),
        (7, 4, 6, 0),
        (0xb, 2, 3, 0),
        (6, 2, 0xffff, 0),
        (6, 9, 4, 0),
    ] {
        let fields = [kind, data_offset8, length8, flags];
        let descriptor = fields.as_bytes();
        let mut steps = Vec::new();
        // A step is 19 bytes: where, and what.
        let mut write = |place: u8, at: u16, bytes: &[u8]| {
            let mut step = vec![place];
            step.extend(at.to_le_bytes());
            step.extend_from_slice(bytes);
            step.resize(19, 0);
            steps.extend(step);
        };
        write(1, 0, &[descriptor, &[1; 8]].concat());
        write(2, 4096 + 16, &[0, 0, 0, 0, 1, 0, 0, 0]);
        write(2, 4096 + 24, &[8, 0, 0, 0, 0, 0, 0, 0, 5]);
        write(0, 0, &(u32::from(length8.min(8)) * 8 + 8).to_le_bytes());
        corpus.add(&[&steps[..], &[0, 2]].concat())?;
        corpus.add(&[&steps[..], &[0, 2, 0, 8], &steps[..]].concat())?;
    }
    Ok(())
}
