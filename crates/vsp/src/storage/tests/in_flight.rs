//! Units, channels and virtual machines that go while the host's kernel works
//! on requests.

use super::guest::{Channel, DATA_PAGE, Data, Guest, data_in, data_out, scsi_request};
use crate::storage::medium::{DataRange, FileRange, Medium, MediumError, MediumInfo};
use crate::storage::scsi::op;
use crate::storage::uring::ring::Ring;
use crate::storage::{Attachment, Io};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

const READ: [u8; 10] = [op::READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// With force unit access: a short one takes another way.
const WRITE: [u8; 10] = [op::WRITE_10, 8, 0, 0, 0, 0, 0, 0, 1, 0];
/// Long enough for what should not happen to happen.
const MOMENT: Duration = Duration::from_millis(50);

/// A medium whose data the kernel has as soon as the test gives it.
struct Slow {
    file: Arc<File>,
    /// Who has asked where data is.
    callers: Mutex<HashSet<ThreadId>>,
}

impl Slow {
    fn new(file: Arc<File>) -> Arc<Self> {
        let callers = Mutex::default();
        Arc::new(Self { file, callers })
    }
}

struct Everywhere(Arc<File>);

impl FileRange for Everywhere {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn extents(&self) -> &[(u64, u64)] {
        &[(0, 512)]
    }
}

fn not_here() -> MediumError {
    std::io::Error::other("only the kernel reaches this").into()
}

impl Medium for Slow {
    fn info(&self) -> MediumInfo {
        MediumInfo {
            size: 1 << 20,
            logical_sector: 512,
            physical_sector: 512,
            read_only: false,
            unmap: false,
            unmap_granularity: 0,
            identity: None,
        }
    }

    fn read(&self, _: u64, _: DataRange<'_>) -> Result<(), MediumError> {
        Err(not_here())
    }

    fn write(&self, _: u64, _: DataRange<'_>, _: bool) -> Result<(), MediumError> {
        Err(not_here())
    }

    fn file_range(&self, _: u64, _: u64, _: bool) -> Option<Box<dyn FileRange>> {
        self.callers.lock().insert(std::thread::current().id());
        Some(Box::new(Everywhere(self.file.clone())))
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(not_here())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(not_here())
    }
}

struct Setting {
    guest: Guest,
    channel: Channel,
    file: Arc<File>,
    writer: std::io::PipeWriter,
}

/// A guest with a slow unit, where the host has io_uring.
fn setting() -> Option<Setting> {
    Ring::new().ok()?;
    let (reader, writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let mut guest = Guest::new(0, Io::Uring);
    let medium = Slow::new(file.clone());
    guest.handle.attach(0, Attachment::Disk(medium)).unwrap();
    let channel = guest.ready();
    Some(Setting {
        guest,
        channel,
        file,
        writer,
    })
}

impl Setting {
    /// Sends reads, each into a page of its own.
    fn send(&mut self, count: u64) -> Vec<u64> {
        let send = |at| {
            let page = DATA_PAGE + at;
            let data = Data {
                page,
                ..data_in(512)
            };
            self.channel.submit(&scsi_request(0, &READ, data), data)
        };
        (0..count).map(send).collect()
    }

    /// Waits until the unit is busy with so many.
    fn await_busy(&self, count: usize) {
        // One for the test, one for the medium, one for each request.
        while Arc::strong_count(&self.file) < count + 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_unit_is_taken_away_after_its_requests() {
    let Some(mut setting) = setting() else { return };
    let ids = setting.send(60);
    setting.await_busy(60);
    let handle = setting.guest.handle.clone();
    let file = setting.file.clone();
    let detacher = std::thread::spawn(move || {
        handle.detach(0).unwrap();
        // The test's, and this one.
        assert_eq!(Arc::strong_count(&file), 2);
    });
    std::thread::sleep(MOMENT);
    assert!(!detacher.is_finished());
    // Nobody else gets in meanwhile, and other units are not held up.
    let late = setting.channel.command(0, &READ, data_in(512));
    assert_eq!(late.srb_status, 0x20);
    setting
        .guest
        .handle
        .attach(3, Attachment::Dvd(None))
        .unwrap();
    for at in 0..60 {
        setting.writer.write_all(&[at; 512]).unwrap();
    }
    detacher.join().unwrap();
    for id in ids {
        assert_eq!(setting.channel.result(id).data_transfer_length, 512);
    }
    let mut pages: Vec<u8> = (0..60)
        .map(|at| setting.guest.read_memory(DATA_PAGE + at, 511, 1)[0])
        .collect();
    pages.sort_unstable();
    assert_eq!(pages, (0..60).collect::<Vec<u8>>());
}

#[test]
fn a_channel_closes_after_its_requests() {
    let Some(mut setting) = setting() else { return };
    setting.send(40);
    setting.await_busy(40);
    let mut writer = setting.writer;
    let feeder = std::thread::spawn(move || {
        std::thread::sleep(MOMENT);
        for _ in 0..40 {
            writer.write_all(&[0x77; 512]).unwrap();
        }
        writer
    });
    setting.guest.client.close(setting.channel.ring).unwrap();
    let mut writer = feeder.join().unwrap();
    let seen = setting.guest.read_memory(DATA_PAGE + 39, 0, 512);
    // The guest has its memory for itself now.
    setting.guest.write_memory(DATA_PAGE, 0, &[1; 40 * 4096]);
    writer.write_all(&[0x55; 512]).unwrap();
    std::thread::sleep(MOMENT);
    assert_eq!(seen, [0x77; 512]);
    let after = setting.guest.read_memory(DATA_PAGE, 0, 40 * 4096);
    assert!(after.iter().all(|&byte| byte == 1));
    assert_eq!(Arc::strong_count(&setting.file), 2);
    // And the channel can be opened again.
    let mut channel = setting.guest.ready();
    assert_eq!(channel.command(0, &READ, data_in(512)).srb_status, 1);
}

#[test]
fn a_machine_ends_after_its_requests() {
    let Some(mut setting) = setting() else { return };
    setting.send(5);
    setting.await_busy(5);
    let mut writer = setting.writer;
    let feeder = std::thread::spawn(move || {
        std::thread::sleep(MOMENT);
        writer.write_all(&[0; 5 * 512]).unwrap();
        // What nobody reads any more must not fail.
        std::thread::sleep(MOMENT);
    });
    let Guest { bus, handle, .. } = setting.guest;
    bus.stop();
    drop(handle);
    assert_eq!(Arc::strong_count(&setting.file), 1);
    feeder.join().unwrap();
}

#[test]
fn a_guest_that_reads_no_answers_keeps_no_unit() {
    let Some(mut setting) = setting() else { return };
    // A few more than the ring to the guest has room for; the host takes none
    // beyond.
    let mut count = 0;
    for at in 0..41 {
        setting.send(8);
        count += 8;
        setting.writer.write_all(&[at; 8 * 512]).unwrap();
    }
    while setting.guest.handle.statistics().requests < count {
        std::thread::sleep(Duration::from_millis(1));
    }
    setting.guest.handle.detach(0).unwrap();
    assert_eq!(Arc::strong_count(&setting.file), 1);
    setting.guest.client.close(setting.channel.ring).unwrap();
}

#[test]
fn errors_of_the_kernel_become_sense_data() {
    if Ring::new().is_err() {
        return;
    }
    let mut guest = Guest::new(0, Io::Uring);
    let full = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    guest
        .handle
        .attach(0, Attachment::Disk(Slow::new(Arc::new(full))))
        .unwrap();
    let folder = File::open("/proc/self").unwrap();
    guest
        .handle
        .attach(1, Attachment::Disk(Slow::new(Arc::new(folder))))
        .unwrap();
    let mut channel = guest.ready();
    let sense = |result: &crate::storage::protocol::ScsiRequest| {
        let sense = result.payload;
        (result.srb_status, sense[2], sense[12], sense[13])
    };
    // DATA PROTECT, space allocation failed write protect.
    let result = channel.command(0, &WRITE, data_out(512));
    assert_eq!(sense(&result), (0x84, 7, 0x27, 7));
    let result = channel.command(1, &READ, data_in(512));
    assert_eq!(sense(&result), (0x84, 3, 0x11, 0));
    assert_eq!(guest.handle.statistics().luns[1].1.errors, 1);
}

#[test]
fn reads_of_what_is_at_hand_are_answered_by_who_signals() {
    if Ring::new().is_err() {
        return;
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0x33; 4096]).unwrap();
    let mut guest = Guest::new(0, Io::Auto);
    let medium = Slow::new(Arc::new(file));
    guest
        .handle
        .attach(0, Attachment::Disk(medium.clone()))
        .unwrap();
    let mut channel = guest.ready();
    let own = std::thread::current().id();
    // The channel's own thread is busy with the end of what came before, at
    // times.
    for _ in 0..1000 {
        guest.write_memory(DATA_PAGE, 0, &[0; 512]);
        let result = channel.command(0, &READ, data_in(512));
        assert_eq!((result.srb_status, result.data_transfer_length), (1, 512));
        assert_eq!(guest.read_memory(DATA_PAGE, 0, 512), [0x33; 512]);
        if medium.callers.lock().contains(&own) {
            return;
        }
    }
    panic!("another thread has done it each time");
}
