//! Requests to storage, and answers to the integration components.

use crate::Corpus;
use partita_fuzz::component::step as answer;
use partita_fuzz::scsi;
use partita_fuzz::storage::step;
use std::io::Result;

/// Commands, with the room for their data, and whether it goes to the device.
const COMMANDS: [(&[u8], u16, bool); 62] = [
    (&[0x00], 0, false),
    (&[0x03, 0, 0, 0, 18], 18, false),
    (&[0x03, 1, 0, 0, 18], 18, false),
    (&[0x08, 0, 0, 1, 2], 8192, false),
    (&[0x0a, 0, 0, 1, 1], 4096, true),
    (&[0x12, 0, 0, 0, 96], 96, false),
    (&[0x12, 1, 0x00, 0, 255], 255, false),
    (&[0x12, 1, 0x80, 0, 255], 255, false),
    (&[0x12, 1, 0x83, 0, 255], 255, false),
    (&[0x12, 1, 0xb0, 0, 255], 255, false),
    (&[0x12, 1, 0xb1, 0, 255], 255, false),
    (&[0x12, 1, 0xb2, 0, 255], 255, false),
    (&[0x15, 0x10, 0, 0, 24], 24, true),
    (&[0x1a, 0, 0x3f, 0, 255], 255, false),
    (&[0x1a, 0, 0x08, 0, 255], 255, false),
    (&[0x1b, 0, 0, 0, 0], 0, false),
    (&[0x1b, 0, 0, 0, 2], 0, false),
    (&[0x1b, 0, 0, 0, 3], 0, false),
    (&[0x1e, 0, 0, 0, 1], 0, false),
    (&[0x1e, 0, 0, 0, 0], 0, false),
    (&[0x25], 8, false),
    (&[0x28, 0, 0, 0, 0, 4, 0, 0, 2], 8192, false),
    (
        &[0x28, 8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff],
        8192,
        false,
    ),
    (&[0x2a, 8, 0, 0, 0, 4, 0, 0, 1], 4096, true),
    (&[0x2e, 2, 0, 0, 0, 4, 0, 0, 1], 4096, true),
    (&[0x2f, 2, 0, 0, 0, 4, 0, 0, 1], 4096, true),
    (&[0x35], 0, false),
    (&[0x41, 0, 0, 0, 0, 4, 0, 0, 16], 4096, true),
    (&[0x41, 8, 0, 0, 0, 4, 0, 0, 16], 4096, true),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], 24, true),
    (&[0x43, 2, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x43, 0, 1, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x4a, 1, 0, 0, 0x10, 0, 0, 1, 0], 256, false),
    (&[0x51, 0, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 28], 28, true),
    (&[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x5e, 0, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x5e, 1, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x5e, 2, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24], 24, true),
    (&[0x5f, 6, 0, 0, 0, 0, 0, 0, 24], 24, true),
    (&[0x5f, 1, 5, 0, 0, 0, 0, 0, 24], 24, true),
    (&[0x5f, 4, 5, 0, 0, 0, 0, 0, 24], 24, true),
    (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, false),
    (
        &[
            0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        64,
        false,
    ),
    (&[0x8a, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, true),
    (&[0x8e, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, true),
    (&[0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1], 0, false),
    (&[0x91], 0, false),
    (&[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 16], 0, false),
    (&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 16], 4096, true),
    (
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32],
        32,
        false,
    ),
    (
        &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32],
        32,
        false,
    ),
    (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 256, false),
    (&[0xa8, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, false),
    (&[0xaa, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, true),
    (&[0xae, 0, 0, 0, 0, 4, 0, 0, 0, 1], 4096, true),
    (&[0xaf, 0, 0, 0, 0, 4, 0, 0, 0, 1], 0, false),
    (&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8], 8, false),
    (&[0xc0], 0, false),
    (&[0xff], 0, false),
];

/// Parameters that make sense for what takes some.
fn parameters(command: &[u8], length: u16) -> Vec<u8> {
    let mut data = match command[0] {
        0x15 => vec![0, 0, 0, 0, 0x08, 18, 0],
        0x55 => vec![0, 0, 0, 0, 0, 0, 0, 0, 0x08, 18, 4],
        0x42 => vec![0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 8],
        0x5f => vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        _ => Vec::new(),
    };
    data.resize(length.into(), 0);
    data
}

fn padded(command: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..command.len()].copy_from_slice(command);
    cdb
}

fn command(command: &[u8], room: u16, out: bool) -> Vec<u8> {
    let kind = if out { 0 } else { 1 };
    let mut step = vec![kind];
    step.extend(padded(command));
    step.extend(room.to_le_bytes());
    if out {
        step.extend(parameters(command, room));
    }
    step
}

pub(crate) fn scsi_seeds(corpus: &mut Corpus) -> Result<()> {
    for unit in 0..16 {
        for (bytes, room, out) in COMMANDS {
            let step = command(bytes, room, out);
            let twice = [&[unit][..], &step, &[scsi::step::RESET], &step];
            corpus.add(&twice.concat())?;
        }
        let changes = [
            command(&[0x1e, 0, 0, 0, 1], 0, false),
            vec![scsi::step::CHANGE, scsi::step::CHANGE | 8],
            command(&[0x4a, 1, 0, 0, 0x10, 0, 0, 1, 0], 256, false),
            vec![scsi::step::INSERT],
            command(&[0x28, 0, 0, 0, 0, 4, 0, 0, 2], 8192, false),
        ];
        corpus.add(&[&[unit][..], &changes.concat()].concat())?;
    }
    Ok(())
}

fn request(lun: u8, bytes: &[u8], room: u16, out: bool, flaws: u8) -> Vec<u8> {
    let direction = match (room, out) {
        (0, _) => 2,
        (_, true) => 0,
        _ => 1,
    };
    let mut request = vec![step::REQUEST, lun, direction, 1, 0x34, 0x02];
    request.extend(room.to_le_bytes());
    request.push(flaws);
    request.extend(padded(bytes));
    request
}

pub(crate) fn storage_seeds(corpus: &mut Corpus) -> Result<()> {
    conversations().iter().try_for_each(|seed| corpus.add(seed))
}

/// The same on disks in files, and requests across the borders of blocks.
pub(crate) fn storage_file_seeds(corpus: &mut Corpus) -> Result<()> {
    let mut seeds = Vec::new();
    for lba in [127_u16, 128, 2047, 4096, 8190] {
        let [high, low] = lba.to_be_bytes();
        let read = request(0, &[0x28, 0, 0, 0, high, low, 0, 0, 4], 2048, false, 4);
        for flags in [0, 8] {
            let command = [0x2a, flags, 0, 0, high, low, 0, 0, 4];
            let write = request(0, &command, 2048, true, 0);
            let there = [&READY[..], &write, &read, &write].concat();
            seeds.push([&there[..], &[step::HOST, 2], &read, &write].concat());
            seeds.push([&there[..], &[step::REOPEN], &READY, &read].concat());
        }
        let many = [&read[..]; 24].concat();
        let both = [step::HOST, 0, step::HOST, 1];
        seeds.push([&READY[..], &both[..2], &many, &both[2..], &many].concat());
    }
    for kind in 0..6 {
        for seed in &seeds {
            corpus.add(&[&[kind][..], seed].concat())?;
        }
    }
    // Files in memory: flushes of others take time.
    for seed in conversations() {
        corpus.add(&[&[1][..], &seed].concat())?;
    }
    Ok(())
}

/// The channel is negotiated.
const READY: [u8; 3] = [step::NEGOTIATE, 4, 4];

fn conversations() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for lun in 0..2 {
        for (bytes, room, out) in COMMANDS {
            for flaws in [0, 4] {
                let request = request(lun, bytes, room, out, flaws);
                seeds.push([&READY[..], &request, &request].concat());
            }
        }
    }
    for version in 0..8 {
        for steps in 0..5 {
            seeds.push(vec![step::NEGOTIATE, steps, version, step::NEGOTIATE, 4, 2]);
        }
    }
    let read = request(2, &[0x28, 0, 0, 0, 0, 4, 0, 0, 1], 512, false, 0);
    for choice in 0..6 {
        let both = [step::HOST, choice, step::HOST, 5 - choice];
        seeds.push([&READY[..], &both, &read, &both, &read].concat());
    }
    for flaws in [1, 2, 3, 7] {
        let bad = request(0, &[0x28, 0, 0, 0, 0, 4, 0, 0, 2], 1024, false, flaws);
        seeds.push([&READY[..], &bad, &read].concat());
    }
    for operation in 0..16 {
        for kind in 0..4 {
            let mut packet = vec![step::PACKET, kind, 1, 64, operation, 0, 0, 0];
            packet.resize(4 + 64, 0);
            packet.extend([4, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
            seeds.push([&READY[..], &packet, &[step::REOPEN], &packet].concat());
        }
    }
    // Subchannels: the version must know them.
    let mut subchannels = vec![step::PACKET, 0, 1, 64, 13, 0, 0, 0];
    subchannels.extend([0; 8]);
    subchannels.push(1);
    subchannels.resize(4 + 64, 0);
    subchannels.push(0);
    let again = [step::REOPEN, step::NEGOTIATE, 4, 4];
    seeds.push([&READY[..], &subchannels, &again, &subchannels].concat());
    for (page, offset) in [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (8, 0),
        (8, 1),
        (1, 0),
        (1, 1),
    ] {
        for value in [4, 8, 0x7000, u32::MAX] {
            let mut scribble = vec![step::SCRIBBLE, page, offset, 0];
            scribble.extend(value.to_le_bytes());
            seeds.push([&READY[..], &read, &scribble, &[step::REOPEN]].concat());
        }
    }
    seeds
}

/// Calls of each kind, answered in each way.
pub(crate) fn component_seeds(corpus: &mut Corpus) -> Result<()> {
    for choice in [0, 1, 2, 3, 4, 5, 6, 7, 0x16, 0x86, 0x81, 0x83] {
        let calls = [2, choice, choice];
        corpus.add(&calls)?;
        for version in 0..6 {
            corpus.add(&[&calls[..], &[answer::ECHO, version]].concat())?;
        }
        let agree = [answer::ECHO, 4];
        for (status, length) in [
            (0, 0),
            (0, 16),
            (0x8000_4005, 0),
            (0x8007_0103, 0),
            (0, 4000),
        ] {
            let mut body = vec![answer::BODY];
            body.extend(u32::to_le_bytes(status));
            body.extend(u16::to_le_bytes(length));
            body.resize(body.len() + usize::from(length), 1);
            corpus.add(&[&calls[..], &agree, &body].concat())?;
        }
        let patched = [answer::ECHO | 1 << 3, 0, 24, 0, 0xff];
        corpus.add(&[&calls[..], &agree, &patched].concat())?;
        let others: [&[u8]; 6] = [
            &[answer::REOPEN, answer::ECHO, 1],
            &[answer::REPEAT | 5 << 3],
            &[answer::STALE | 1 << 3],
            &[answer::MESSAGE, 4, 0, 1, 2, 3, 4],
            &[answer::PACKET, 0, 12, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4],
            &[answer::SCRIBBLE, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ];
        for other in others {
            corpus.add(&[&calls[..], other].concat())?;
            corpus.add(&[&calls[..], &agree, other].concat())?;
        }
    }
    Ok(())
}
