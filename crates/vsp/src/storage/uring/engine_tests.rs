//! Transfers through a queue that does what the test says, and through the
//! kernel's.

use super::super::cursor::Direction;
use super::super::ring::Ring;
use super::*;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use vid::HostPiece;

/// Counts the subjects that are there, and owns their memory and file.
struct Buffer {
    file: Arc<File>,
    data: Vec<u8>,
    alive: Arc<AtomicUsize>,
}

impl Buffer {
    fn new(file: &Arc<File>, data: &[u8], alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self {
            file: file.clone(),
            data: data.to_vec(),
            alive: alive.clone(),
        }
    }

    fn cursor(&mut self, direction: Direction, offset: u64) -> Cursor {
        let piece = HostPiece {
            address: self.data.as_mut_ptr(),
            length: self.data.len(),
        };
        Cursor::new(direction, &[(offset, self.data.len() as u64)], &[piece]).unwrap()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Subject for Buffer {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn start<Q: Queue>(
    engine: &mut Engine<Q, Buffer>,
    mut buffer: Buffer,
    direction: Direction,
    offset: u64,
) -> bool {
    let cursor = buffer.cursor(direction, offset);
    // SAFETY: the memory is the buffer's, which nobody else uses.
    unsafe { engine.start(cursor, buffer) }.is_ok()
}

/// What the engine has asked for: token, offset, length.
type Asked = (u64, u64, usize);

/// Answers with what the test has put in, and remembers what it was asked.
#[derive(Default)]
struct Scripted {
    asked: VecDeque<Asked>,
    submitted: VecDeque<Asked>,
    results: VecDeque<(u64, i32)>,
    /// Requests that can be added before the next submission.
    room: usize,
    waits: usize,
}

impl Queue for Scripted {
    unsafe fn push(
        &mut self,
        token: u64,
        _: Direction,
        _: RawFd,
        offset: u64,
        vectors: &[libc::iovec],
    ) -> bool {
        if self.asked.len() == self.room {
            return false;
        }
        let length = vectors.iter().map(|vector| vector.iov_len).sum();
        self.asked.push_back((token, offset, length));
        true
    }

    fn submit(&mut self) -> io::Result<()> {
        self.submitted.append(&mut self.asked);
        Ok(())
    }

    fn staged(&self) -> usize {
        self.asked.len()
    }

    fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        self.waits += 1;
        let (token, ..) = self.submitted.pop_front().ok_or(io::ErrorKind::Other)?;
        self.results.push_back((token, -libc::ECANCELED));
        Ok(())
    }

    fn next(&mut self) -> Option<(u64, i32)> {
        self.results.pop_front()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("no test waits for this")
    }
}

fn scripted(room: usize, capacity: usize) -> Engine<Scripted, Buffer> {
    let queue = Scripted {
        room,
        ..Scripted::default()
    };
    Engine::new(queue, capacity)
}

fn any_file() -> Arc<File> {
    Arc::new(tempfile::tempfile().unwrap())
}

#[test]
fn what_was_done_in_part_goes_on_where_it_stopped() {
    let (file, alive) = (any_file(), Arc::default());
    let mut engine = scripted(8, 8);
    for at in 0..2 {
        let buffer = Buffer::new(&file, &[at; 1000], &alive);
        assert!(start(
            &mut engine,
            buffer,
            Direction::FromFile,
            5000 * u64::from(at)
        ));
    }
    engine.submit().unwrap();
    assert_eq!(engine.queue.submitted, [(0, 0, 1000), (1, 5000, 1000)]);
    engine.queue.submitted.clear();
    engine.queue.results = [(1, 300), (0, 1000), (1, -libc::EINTR)].into();
    let (done, result) = engine.take().unwrap();
    assert_eq!((done.data[0], result.is_ok()), (0, true));
    assert!(engine.take().is_none());
    assert!(engine.has_unsubmitted());
    engine.submit().unwrap();
    assert_eq!(engine.queue.submitted, [(1, 5300, 700), (1, 5300, 700)]);
    engine.queue.results = [(1, 700)].into();
    assert!(engine.take().unwrap().1.is_ok());
    assert!(engine.is_empty());
    drop(done);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn errors_and_ends_of_files_are_told() {
    let (file, alive) = (any_file(), Arc::default());
    let mut engine = scripted(8, 8);
    for _ in 0..3 {
        let buffer = Buffer::new(&file, &[0; 512], &alive);
        assert!(start(&mut engine, buffer, Direction::FromFile, 0));
    }
    engine.submit().unwrap();
    // Tokens that are nobody's are passed over.
    engine.queue.results = [(77, 512), (1, -libc::EIO), (2, 0), (u64::MAX, 1)].into();
    let error = engine.take().unwrap().1.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let error = engine.take().unwrap().1.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(engine.take().is_none());
    assert_eq!(engine.len(), 1);
    engine.queue.results = [(0, 512)].into();
    assert!(engine.take().is_some());
}

#[test]
fn there_is_room_for_so_many_and_the_queue_may_have_less() {
    let (file, alive) = (any_file(), Arc::default());
    let mut engine = scripted(2, 3);
    for at in 0..4 {
        let buffer = Buffer::new(&file, &[0; 512], &alive);
        assert_eq!(start(&mut engine, buffer, Direction::ToFile, 0), at < 3);
    }
    assert!(!engine.has_room());
    engine.submit().unwrap();
    assert_eq!(engine.queue.submitted.len(), 2);
    assert!(engine.has_unsubmitted());
    engine.submit().unwrap();
    assert_eq!(engine.queue.submitted.len(), 3);
    engine.queue.results = [(0, 512), (1, 512), (2, 512)].into();
    while engine.take().is_some() {}
    assert_eq!((engine.len(), alive.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn nothing_is_freed_while_the_kernel_works_on_it() {
    let (file, alive): (_, Arc<AtomicUsize>) = (any_file(), Arc::default());
    let mut engine = scripted(8, 8);
    for _ in 0..5 {
        let buffer = Buffer::new(&file, &[0; 512], &alive);
        assert!(start(&mut engine, buffer, Direction::ToFile, 0));
    }
    engine.submit().unwrap();
    drop(engine);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    // Where no wait is possible, it is never freed.
    let mut engine = scripted(8, 8);
    for _ in 0..5 {
        let buffer = Buffer::new(&file, &[0; 512], &alive);
        assert!(start(&mut engine, buffer, Direction::ToFile, 0));
    }
    engine.submit().unwrap();
    engine.queue.submitted.truncate(2);
    drop(engine);
    assert_eq!(alive.load(Ordering::SeqCst), 3);
}

fn kernel() -> Option<Engine<Ring, Buffer>> {
    let ring = Ring::new().ok()?;
    Some(Engine::new(ring, 1024))
}

fn finish(engine: &mut Engine<Ring, Buffer>) -> Vec<(Buffer, io::Result<()>)> {
    let mut done = Vec::new();
    while !engine.is_empty() {
        engine.wait().unwrap();
        done.extend(std::iter::from_fn(|| engine.take()));
    }
    done
}

#[test]
fn the_kernel_moves_many_at_once() {
    let Some(mut engine) = kernel() else { return };
    let (file, alive) = (any_file(), Arc::default());
    // More than the queue takes in one call.
    for at in 0..1000_u32 {
        let data = [at.to_le_bytes(); 128].concat();
        let buffer = Buffer::new(&file, &data, &alive);
        assert!(start(
            &mut engine,
            buffer,
            Direction::ToFile,
            u64::from(at) * 512
        ));
    }
    assert!(finish(&mut engine).iter().all(|(_, result)| result.is_ok()));
    for at in 0..1000_u64 {
        let buffer = Buffer::new(&file, &[0; 512], &alive);
        assert!(start(&mut engine, buffer, Direction::FromFile, at * 512));
    }
    let done = finish(&mut engine);
    assert!(done.iter().all(|(_, result)| result.is_ok()));
    let mut seen: Vec<u32> = done
        .iter()
        .map(|(buffer, _)| u32::from_le_bytes(buffer.data[508..].try_into().unwrap()))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..1000).collect::<Vec<u32>>());
}

#[test]
fn the_kernel_tells_of_ends_and_errors() {
    let Some(mut engine) = kernel() else { return };
    let alive = Arc::default();
    let file = any_file();
    file.set_len(1000).unwrap();
    assert!(start(
        &mut engine,
        Buffer::new(&file, &[1; 600], &alive),
        Direction::FromFile,
        500
    ));
    let (buffer, result) = finish(&mut engine).remove(0);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!((buffer.data[499], buffer.data[500]), (0, 1));
    let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
    for direction in [Direction::ToFile, Direction::FromFile] {
        assert!(start(
            &mut engine,
            Buffer::new(&full, &[1; 512], &alive),
            direction,
            0
        ));
    }
    let mut codes: Vec<Option<i32>> = finish(&mut engine)
        .into_iter()
        .map(|(_, result)| result.unwrap_err().raw_os_error())
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(libc::EBADF), Some(libc::ENOSPC)]);
}

#[test]
fn an_engine_waits_for_the_kernel_before_it_is_gone() {
    let Some(mut engine) = kernel() else { return };
    let alive: Arc<AtomicUsize> = Arc::default();
    let (reader, writer) = io::pipe().unwrap();
    let file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let buffer = Buffer::new(&file, &[0; 3], &alive);
    assert!(start(&mut engine, buffer, Direction::FromFile, 0));
    engine.submit().unwrap();
    assert!(engine.take().is_none());
    let own = alive.clone();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let before = own.load(Ordering::SeqCst);
        io::Write::write_all(&mut &writer, b"abc").unwrap();
        before
    });
    drop(engine);
    assert_eq!(other.join().unwrap(), 1);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}
