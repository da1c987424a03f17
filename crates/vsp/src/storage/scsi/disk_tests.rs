//! A disk, command by command.

use super::super::op;
use super::super::test_medium::{Op, TestMedium, check, data_in, data_out, no_data};
use super::*;

const READY: [u8; 6] = [0; 6];

fn disk_with(medium: &Arc<TestMedium>) -> Disk {
    Disk::new(medium.clone(), Identity([0x11; 16]), 256 << 10)
}

fn disk() -> (Disk, Arc<TestMedium>) {
    let medium = TestMedium::new(64, 512);
    (disk_with(&medium), medium)
}

fn ten(opcode: u8, flags: u8, lba: u32, count: u16) -> [u8; 10] {
    let (l, c) = (lba.to_be_bytes(), count.to_be_bytes());
    [opcode, flags, l[0], l[1], l[2], l[3], 0, c[0], c[1], 0]
}

fn sixteen(opcode: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    (bytes[0], bytes[1]) = (opcode, flags);
    bytes[2..10].copy_from_slice(&lba.to_be_bytes());
    bytes[10..14].copy_from_slice(&count.to_be_bytes());
    bytes
}

#[test]
fn reads_of_every_length() {
    let (disk, medium) = disk();
    let expected = medium.data.lock()[1024..2048].to_vec();
    let twelve = [op::READ_12, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0];
    for bytes in [
        &[op::READ_6, 0, 0, 2, 2, 0][..],
        &ten(op::READ_10, 0, 2, 2),
        &twelve,
        &sixteen(op::READ_16, 0, 2, 2),
    ] {
        assert_eq!(data_in(&disk, bytes, 1024).unwrap(), expected);
        assert_eq!(data_in(&disk, bytes, 1023), Err(Fault::Malformed));
        assert_eq!(data_out(&disk, bytes, &[0; 1024]), Err(Fault::Malformed));
        assert_eq!(no_data(&disk, bytes), Err(Fault::Malformed));
    }
    assert_eq!(no_data(&disk, &ten(op::READ_10, 0, 64, 0)), Ok(0));
    let beyond = check(Sense::LBA_OUT_OF_RANGE);
    assert_eq!(data_in(&disk, &ten(op::READ_10, 0, 63, 2), 1024), beyond);
    assert_eq!(
        data_in(&disk, &sixteen(op::READ_16, 0, u64::MAX, 2), 1024),
        beyond
    );
    // READ (6) of zero blocks means 256.
    assert_eq!(data_in(&disk, &[op::READ_6, 0, 0, 0, 0, 0], 1024), beyond);
}

#[test]
fn writes_and_their_durability() {
    let (disk, medium) = disk();
    let data = [0xa5; 1024];
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_10, 0, 4, 2), &data),
        Ok(1024)
    );
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_10, 8, 4, 2), &data),
        Ok(1024)
    );
    assert_eq!(
        data_out(&disk, &sixteen(op::WRITE_VERIFY_16, 0, 4, 2), &data),
        Ok(1024)
    );
    assert_eq!(
        data_out(&disk, &[op::WRITE_6, 0, 0, 9, 1, 0], &data),
        Ok(512)
    );
    let twelve = [op::WRITE_12, 8, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0];
    assert_eq!(data_out(&disk, &twelve, &data), Ok(512));
    assert_eq!(
        no_data(&disk, &ten(op::SYNCHRONIZE_CACHE_10, 0, 0, 0)),
        Ok(0)
    );
    assert_eq!(
        no_data(&disk, &sixteen(op::SYNCHRONIZE_CACHE_16, 0, 1, 3)),
        Ok(0)
    );
    let ops = [
        Op::Write(2048, 1024, false),
        Op::Write(2048, 1024, true),
        Op::Write(2048, 1024, true),
        Op::Write(9 * 512, 512, false),
        Op::Write(9 * 512, 512, true),
        Op::Flush,
        Op::Flush,
    ];
    assert_eq!(medium.take_ops(), ops);
    assert_eq!(medium.data.lock()[2048..3072], data);
    let beyond = check(Sense::LBA_OUT_OF_RANGE);
    assert_eq!(data_out(&disk, &ten(op::WRITE_10, 0, 63, 2), &data), beyond);
}

#[test]
fn the_write_cache_can_be_turned_off() {
    let (disk, medium) = disk();
    let sense = [op::MODE_SENSE_6, 8, 8, 0, 255, 0];
    let mut parameters = data_in(&disk, &sense, 255).unwrap();
    assert_eq!((parameters[4], parameters[6] & 4), (8, 4));
    parameters[0] = 0;
    parameters[2] = 0;
    parameters[6] &= !4;
    let select = [op::MODE_SELECT_6, 0x10, 0, 0, parameters.len() as u8, 0];
    assert_eq!(data_out(&disk, &select, &parameters), Ok(parameters.len()));
    assert_eq!(medium.take_ops(), [Op::Flush]);
    data_out(&disk, &ten(op::WRITE_10, 0, 0, 1), &[0; 512]).unwrap();
    assert_eq!(medium.take_ops(), [Op::Write(0, 512, true)]);
    assert_eq!(data_in(&disk, &sense, 255).unwrap()[6] & 4, 0);
    parameters[7] = 1;
    let refused = data_out(&disk, &select, &parameters);
    assert_eq!(refused, check(Sense::INVALID_FIELD_IN_PARAMETERS));
    for cut in 1..parameters.len() as u8 {
        let select = [op::MODE_SELECT_6, 0x10, 0, 0, cut, 0];
        assert_eq!(
            data_out(&disk, &select, &parameters).is_err(),
            cut != 4,
            "the header alone is complete"
        );
    }
}

#[test]
fn read_only_disks_refuse_writes() {
    let medium = TestMedium::read_only(64, 512);
    let disk = disk_with(&medium);
    let protected = check(Sense::WRITE_PROTECTED);
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_10, 0, 0, 1), &[0; 512]),
        protected
    );
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_SAME_10, 0, 0, 1), &[0; 512]),
        protected
    );
    assert_eq!(
        data_out(&disk, &ten(op::UNMAP, 0, 0, 24), &[0; 24]),
        protected
    );
    assert_eq!(medium.take_ops(), []);
    let header = data_in(&disk, &[op::MODE_SENSE_6, 0, 0x3f, 0, 4, 0], 64).unwrap();
    assert_eq!(header[2] & 0x80, 0x80);
    assert_eq!(
        data_in(&disk, &ten(op::READ_10, 8, 0, 1), 512)
            .unwrap()
            .len(),
        512
    );
}

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let size = ranges.len() as u16 * 16;
    let mut list = [(size + 6).to_be_bytes(), size.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[test]
fn unmap_checks_all_ranges_first() {
    let (disk, medium) = disk();
    let unmap = |list: &[u8]| data_out(&disk, &ten(op::UNMAP, 0, 0, list.len() as u16), list);
    let list = unmap_list(&[(0, 8), (5, 0), (62, 2)]);
    assert_eq!(unmap(&list), Ok(list.len()));
    assert_eq!(
        medium.take_ops(),
        [Op::Unmap(0, 4096), Op::Unmap(62 * 512, 1024)]
    );
    let list = unmap_list(&[(0, 8), (63, 2)]);
    assert_eq!(unmap(&list), check(Sense::LBA_OUT_OF_RANGE));
    assert_eq!(unmap(&[0; 7]), check(Sense::PARAMETER_LIST_LENGTH));
    assert_eq!(
        unmap(&unmap_list(&[(0, 1); 257])),
        check(Sense::INVALID_FIELD_IN_PARAMETERS)
    );
    let mut lying = unmap_list(&[(0, 1)]);
    lying[2..4].fill(0xff);
    assert_eq!(unmap(&lying), Ok(24));
    assert_eq!(medium.take_ops(), [Op::Unmap(0, 512)]);
    let anchored = data_out(&disk, &ten(op::UNMAP, 1, 0, 24), &lying);
    assert_eq!(anchored, check(Sense::INVALID_FIELD_IN_CDB));
}

#[test]
fn write_same_zeros_and_patterns() {
    let (disk, medium) = disk();
    assert_eq!(
        data_out(&disk, &sixteen(op::WRITE_SAME_16, 8, 1, 3), &[0; 512]),
        Ok(512)
    );
    assert_eq!(no_data(&disk, &sixteen(op::WRITE_SAME_16, 1, 8, 1)), Ok(0));
    assert_eq!(
        medium.take_ops(),
        [Op::Zero(512, 1536), Op::Zero(4096, 512)]
    );
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_SAME_10, 0, 2, 5), &[7; 512]),
        Ok(512)
    );
    assert_eq!(medium.take_ops(), [Op::Write(1024, 2560, false)]);
    assert_eq!(medium.data.lock()[1024..3584], [7; 2560]);
    let invalid = check(Sense::INVALID_FIELD_IN_CDB);
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_SAME_10, 0, 2, 0), &[7; 512]),
        invalid
    );
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_SAME_10, 0x10, 2, 1), &[7; 512]),
        invalid
    );
    assert_eq!(
        data_out(&disk, &ten(op::WRITE_SAME_10, 0, 2, 1), &[7; 511]),
        Err(Fault::Malformed)
    );
    let big = disk_with(&TestMedium::new(70_000, 512));
    let many = sixteen(op::WRITE_SAME_16, 1, 0, 65_537);
    assert_eq!(no_data(&big, &many), invalid);
}

#[test]
fn verify_compares() {
    let (disk, medium) = disk();
    let data = medium.data.lock()[512..1536].to_vec();
    assert_eq!(
        data_out(&disk, &ten(op::VERIFY_10, 2, 1, 2), &data),
        Ok(1024)
    );
    let different = data_out(&disk, &sixteen(op::VERIFY_16, 2, 2, 2), &data);
    assert_eq!(different, check(Sense::MISCOMPARE));
    assert_eq!(no_data(&disk, &ten(op::VERIFY_10, 0, 0, 64)), Ok(0));
    assert_eq!(
        no_data(&disk, &ten(op::VERIFY_10, 0, 1, 64)),
        check(Sense::LBA_OUT_OF_RANGE)
    );
}

#[test]
fn capacities() {
    let (disk, _) = disk();
    let capacity = data_in(&disk, &ten(op::READ_CAPACITY_10, 0, 0, 0), 8).unwrap();
    assert_eq!(capacity, [0, 0, 0, 63, 0, 0, 2, 0]);
    let mut command = sixteen(op::SERVICE_ACTION_IN_16, 0x10, 0, 32);
    let capacity = data_in(&disk, &command, 32).unwrap();
    assert_eq!(
        capacity[..16],
        [0, 0, 0, 0, 0, 0, 0, 63, 0, 0, 2, 0, 0, 3, 0xc0, 0]
    );
    command[13] = 12;
    assert_eq!(data_in(&disk, &command, 32).unwrap().len(), 12);
    command[1] = 0x12;
    assert_eq!(
        data_in(&disk, &command, 32),
        check(Sense::INVALID_FIELD_IN_CDB)
    );
    let large = TestMedium::new(1, 4096);
    large.info.lock().size = 1 << 45;
    let large = disk_with(&large);
    let capacity = data_in(&large, &ten(op::READ_CAPACITY_10, 0, 0, 0), 8).unwrap();
    assert_eq!(capacity, [0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0]);
}

#[test]
fn sectors_of_4096_bytes() {
    let medium = TestMedium::new(4, 4096);
    let disk = disk_with(&medium);
    let data = data_in(&disk, &ten(op::READ_10, 0, 3, 1), 4096).unwrap();
    assert_eq!(data, medium.data.lock()[3 * 4096..]);
    assert_eq!(medium.take_ops(), [Op::Read(3 * 4096, 4096)]);
    assert_eq!(
        data_in(&disk, &ten(op::READ_10, 0, 4, 1), 4096),
        check(Sense::LBA_OUT_OF_RANGE)
    );
}

#[test]
fn a_change_of_size_is_told_once() {
    let (disk, medium) = disk();
    disk.resized();
    assert_eq!(no_data(&disk, &READY), Ok(0));
    medium.resize(128 * 512);
    disk.resized();
    // INQUIRY does not tell, REQUEST SENSE would.
    assert_eq!(
        data_in(&disk, &[op::INQUIRY, 0, 0, 0, 36, 0], 36)
            .unwrap()
            .len(),
        36
    );
    assert_eq!(no_data(&disk, &READY), check(Sense::CAPACITY_CHANGED));
    assert_eq!(no_data(&disk, &READY), Ok(0));
    let capacity = data_in(&disk, &ten(op::READ_CAPACITY_10, 0, 0, 0), 8).unwrap();
    assert_eq!(capacity[3], 127);
    disk.reset();
    let sense = data_in(&disk, &[op::REQUEST_SENSE, 0, 0, 0, 18, 0], 18).unwrap();
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x29, 0));
    let sense = data_in(&disk, &[op::REQUEST_SENSE, 1, 0, 0, 18, 0], 18).unwrap();
    assert_eq!(sense, [0x72, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn host_errors_become_sense_data() {
    let (disk, medium) = disk();
    medium.broken.store(true, Ordering::Relaxed);
    assert_eq!(
        data_in(&disk, &ten(op::READ_10, 0, 0, 1), 512),
        check(Sense::READ_ERROR)
    );
    let write = data_out(&disk, &ten(op::WRITE_10, 0, 0, 1), &[0; 512]);
    assert_eq!(write, check(Sense::WRITE_ERROR));
    let flush = no_data(&disk, &ten(op::SYNCHRONIZE_CACHE_10, 0, 0, 0));
    assert_eq!(flush, check(Sense::WRITE_ERROR));
}

#[test]
fn stopping_flushes() {
    let (disk, medium) = disk();
    assert_eq!(no_data(&disk, &[op::START_STOP_UNIT, 0, 0, 0, 0, 0]), Ok(0));
    assert_eq!(no_data(&disk, &[op::START_STOP_UNIT, 0, 0, 0, 1, 0]), Ok(0));
    assert_eq!(medium.take_ops(), [Op::Flush]);
    let eject = no_data(&disk, &[op::START_STOP_UNIT, 0, 0, 0, 2, 0]);
    assert_eq!(eject, check(Sense::INVALID_FIELD_IN_CDB));
    assert_eq!(
        no_data(&disk, &[0xc0, 0, 0, 0, 0, 0]),
        check(Sense::INVALID_OPCODE)
    );
    assert_eq!(
        no_data(&disk, &ten(op::READ_TOC, 0, 0, 0)),
        check(Sense::INVALID_OPCODE)
    );
}

fn reserve(disk: &Disk, action: u8, kind: u8, key: u64, new_key: u64) -> Outcome {
    let mut data = [key.to_be_bytes(), new_key.to_be_bytes()].concat();
    data.resize(24, 0);
    data_out(
        disk,
        &[
            op::PERSISTENT_RESERVE_OUT,
            action,
            kind,
            0,
            0,
            0,
            0,
            0,
            24,
            0,
        ],
        &data,
    )
}

#[test]
fn reservations_need_a_registration() {
    let (disk, _) = disk();
    let ask = |action| {
        data_in(
            &disk,
            &[op::PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, 0, 64, 0],
            64,
        )
        .unwrap()
    };
    assert_eq!(ask(0), [0; 8]);
    assert_eq!(reserve(&disk, 1, 5, 7, 0), Err(Fault::Conflict));
    assert_eq!(reserve(&disk, 0, 0, 0, 7), Ok(24));
    assert_eq!(reserve(&disk, 0, 0, 8, 9), Err(Fault::Conflict));
    assert_eq!(ask(0), [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(reserve(&disk, 1, 5, 7, 0), Ok(24));
    assert_eq!(reserve(&disk, 1, 3, 7, 0), Err(Fault::Conflict));
    let held = ask(1);
    assert_eq!((held.len(), held[15], held[21]), (24, 7, 5));
    assert_eq!(reserve(&disk, 2, 3, 7, 0), check(Sense::INVALID_RELEASE));
    assert_eq!(reserve(&disk, 2, 5, 7, 0), Ok(24));
    assert_eq!(ask(1)[7], 0);
    assert_eq!(reserve(&disk, 3, 0, 7, 0), Ok(24));
    assert_eq!(ask(0)[..8], [0, 0, 0, 2, 0, 0, 0, 0]);
}

#[test]
fn no_command_panics() {
    let (disk, _) = disk();
    let mut random = 1_u64;
    for _ in 0..100_000 {
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (random >> 56) as u8 & (random >> 48) as u8;
        }
        // Any answer will do.
        let _ = data_in(&disk, &bytes, 600);
        let _ = data_out(&disk, &bytes, &bytes);
    }
}
