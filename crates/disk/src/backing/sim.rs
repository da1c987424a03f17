//! A simulated file that can lose power.
//!
//! It remembers every change since the last flush. [`SimBacking::crash`] gives the file as a
//! machine could find it after a power cut: flushed changes are there, and of the others any
//! subset, each perhaps torn between two sectors. [`SimBacking::fail_after`] makes the file die
//! at a chosen change, so that a test can visit every boundary.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};

use parking_lot::Mutex;

use super::Backing;

const PAGE: u64 = 4096;
/// What a drive writes whole or not at all.
const SECTOR: u64 = 512;

/// What becomes of the changes that were not flushed when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All survive: the process was killed, the machine goes on.
    KeepAll,
    /// None survives.
    DropAll,
    /// A subset chosen by this seed survives; some writes are torn at a 512-byte border.
    Random(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64 },
    SetLen(u64),
}

#[derive(Debug, Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    len: u64,
}

#[derive(Debug, Default)]
struct State {
    now: Image,
    stable: Image,
    unflushed: Vec<Change>,
    changes: u64,
    fail_after: Option<u64>,
}

/// A file in memory, for tests: sparse, and able to crash.
#[derive(Debug, Default)]
pub struct SimBacking {
    state: Mutex<State>,
    read_only: bool,
}

impl SimBacking {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A durable file with these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Image {
            len: bytes.len() as u64,
            ..Image::default()
        };
        image.write(0, bytes);
        Self::from_image(image, false)
    }

    /// The same bytes as a durable file that refuses writes.
    pub fn read_only_copy(&self) -> Self {
        Self::from_image(self.state.lock().now.clone(), true)
    }

    fn from_image(image: Image, read_only: bool) -> Self {
        let state = State {
            now: image.clone(),
            stable: image,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            read_only,
        }
    }

    /// How many changes (writes, flushes, length changes, holes) were accepted so far.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Makes every change after the first `changes` fail, as if the machine had stopped.
    pub fn fail_after(&self, changes: u64) {
        self.state.lock().fail_after = Some(changes);
    }

    /// The file as it is found after a power cut right now.
    pub fn crash(&self, how: Crash) -> Self {
        let state = self.state.lock();
        let image = match how {
            Crash::KeepAll => state.now.clone(),
            Crash::DropAll => state.stable.clone(),
            Crash::Random(seed) => survivors(&state, seed),
        };
        Self::from_image(image, false)
    }

    /// All bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = self.state.lock();
        let mut bytes = vec![0; state.now.len as usize];
        state.now.read(0, &mut bytes);
        bytes
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.state.lock();
        self.admit(&mut state)?;
        state.now.apply(&change);
        state.unflushed.push(change);
        Ok(())
    }

    fn admit(&self, state: &mut State) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if state.fail_after.is_some_and(|limit| state.changes >= limit) {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        state.changes += 1;
        Ok(())
    }
}

fn survivors(state: &State, seed: u64) -> Image {
    let mut random = Random(seed);
    let mut image = state.stable.clone();
    for change in &state.unflushed {
        match (random.next() % 3, change) {
            (0, _) => {}
            (1, Change::Write { offset, data }) => {
                let border = SECTOR - offset % SECTOR;
                let sectors = data.len() as u64 / SECTOR + 1;
                let cut = (border + random.next() % sectors * SECTOR).min(data.len() as u64);
                let kept = if random.next().is_multiple_of(2) {
                    Change::Write {
                        offset: *offset,
                        data: data[..cut as usize].to_vec(),
                    }
                } else {
                    Change::Write {
                        offset: offset + cut,
                        data: data[cut as usize..].to_vec(),
                    }
                };
                image.apply(&kept);
            }
            _ => image.apply(change),
        }
    }
    image
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => {
                self.len = self.len.max(offset + data.len() as u64);
                self.write(*offset, data);
            }
            Change::Zero { offset, len } => {
                self.zero(*offset, (*len).min(self.len - (*offset).min(self.len)))
            }
            Change::SetLen(len) => {
                if *len < self.len {
                    self.zero(*len, self.len - len);
                }
                self.len = *len;
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, range) in pieces(offset, data.len() as u64) {
            let page = self
                .pages
                .entry(at / PAGE)
                .or_insert_with(|| Box::new([0; PAGE as usize]));
            let start = (at % PAGE) as usize;
            page[start..start + range.len()].copy_from_slice(&data[range]);
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        for (at, range) in pieces(offset, out.len() as u64) {
            let start = (at % PAGE) as usize;
            match self.pages.get(&(at / PAGE)) {
                Some(page) => {
                    let end = start + range.len();
                    out[range].copy_from_slice(&page[start..end]);
                }
                None => out[range].fill(0),
            }
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let first_whole = offset.div_ceil(PAGE);
        let end_whole = (offset + len) / PAGE;
        if first_whole < end_whole {
            let gone: Vec<u64> = self
                .pages
                .range(first_whole..end_whole)
                .map(|p| *p.0)
                .collect();
            for page in gone {
                self.pages.remove(&page);
            }
        }
        for (index, page) in self
            .pages
            .range_mut(offset / PAGE..(offset + len).div_ceil(PAGE))
        {
            let start = offset.max(index * PAGE) - index * PAGE;
            let end = (offset + len).min((index + 1) * PAGE) - index * PAGE;
            page[start as usize..end as usize].fill(0);
        }
    }
}

/// Cuts a range at page borders: (file offset, range in the buffer).
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done;
        let n = (PAGE - at % PAGE).min(len - done);
        let range = done as usize..(done + n) as usize;
        done += n;
        Some((at, range))
    })
}

impl Backing for SimBacking {
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let state = self.state.lock();
        let mut at = offset;
        for buf in bufs {
            let end = at
                .checked_add(buf.len() as u64)
                .ok_or(io::ErrorKind::InvalidInput)?;
            if end > state.now.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            state.now.read(at, buf);
            at = end;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        self.change(Change::Write { offset, data })
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        self.admit(&mut state)?;
        let state = &mut *state;
        for change in state.unflushed.drain(..) {
            state.stable.apply(&change);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().now.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Zero { offset, len })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Zero { offset, len })
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(file: &SimBacking, at: u64) -> u8 {
        let mut out = [0];
        file.read_at(at, &mut [IoSliceMut::new(&mut out)])
            .expect("read");
        out[0]
    }

    #[test]
    fn flushed_changes_survive_and_others_may_not() {
        let file = SimBacking::from_bytes(&[0; 10_000]);
        file.write_at(5000, &[IoSlice::new(&[1; 100])])
            .expect("write");
        file.flush().expect("flush");
        file.write_at(5050, &[IoSlice::new(&[2; 100])])
            .expect("write");
        file.punch_hole(5000, 10).expect("punch");
        assert_eq!([byte(&file, 5000), byte(&file, 5060)], [0, 2]);
        let dropped = file.crash(Crash::DropAll);
        assert_eq!(
            [
                byte(&dropped, 5000),
                byte(&dropped, 5060),
                byte(&dropped, 5120)
            ],
            [1, 1, 0]
        );
        assert_eq!(file.crash(Crash::KeepAll).to_bytes(), file.to_bytes());
    }

    #[test]
    fn it_stops_where_told() {
        let file = SimBacking::new();
        file.fail_after(1);
        file.set_len(4096).expect("first change");
        assert!(file.write_at(0, &[IoSlice::new(&[1])]).is_err());
        assert_eq!((file.changes(), file.len().expect("length")), (1, 4096));
    }

    #[test]
    fn torn_writes_break_between_sectors_only() {
        for seed in 0..200 {
            let file = SimBacking::from_bytes(&[0; 4096]);
            file.write_at(0, &[IoSlice::new(&[1; 4096])])
                .expect("write");
            let bytes = file.crash(Crash::Random(seed)).to_bytes();
            assert!(bytes.chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
        }
    }
}
