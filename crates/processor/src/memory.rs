//! Loads and stores at linear addresses.
//!
//! The quick path is a TLB hit within one page. Everything else (a miss, a
//! page crossing, memory-mapped I/O, alignment checks, watchpoints) goes
//! through the slow path, a byte range cut into pieces that each lie in one
//! page.

use crate::Vp;
use crate::fault::{Exit, Fault, Step, Stop, vector};
use crate::host;
use crate::mmu::{self, Access, PAGE_MASK, Rights, Target};
use crate::state::{cr, rflags};

/// An integer that an instruction loads or stores in one go.
pub(crate) trait Word: Copy {
    /// Bytes.
    const SIZE: u64;
    /// Zero-extends.
    fn widen(self) -> u64;
    /// Truncates.
    fn narrow(value: u64) -> Self;
    /// Loads from host memory that other threads may write.
    fn load(at: *const u8) -> Self;
    /// Stores to host memory that other threads may read.
    fn store(self, at: *mut u8);
}

macro_rules! word {
    ($type:ty, $size:literal, $load:path, $store:path) => {
        impl Word for $type {
            const SIZE: u64 = $size;
            #[inline(always)]
            fn widen(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn narrow(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn load(at: *const u8) -> Self {
                $load(at)
            }
            #[inline(always)]
            fn store(self, at: *mut u8) {
                $store(at, self)
            }
        }
    };
}
word!(u8, 1, host::load8, host::store8);
word!(u16, 2, host::load16, host::store16);
word!(u32, 4, host::load32, host::store32);
word!(u64, 8, host::load64, host::store64);

impl Vp {
    /// Loads at a linear address with the rights of the running code.
    #[inline(always)]
    pub(crate) fn load<T: Word>(&mut self, linear: u64) -> Result<T, Stop> {
        match self.mmu.lookup_read(linear, T::SIZE) {
            Some(at) => Ok(T::load(at)),
            None => self.load_slow(linear, T::SIZE).map(T::narrow),
        }
    }

    /// Stores at a linear address with the rights of the running code.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&mut self, linear: u64, value: T) -> Step {
        match self.mmu.lookup_write(linear, T::SIZE) {
            Some((at, page)) => {
                value.store(at);
                self.wrote(page);
                Ok(())
            }
            None => self.store_slow(linear, T::SIZE, value.widen()),
        }
    }

    /// Host memory for a read-modify-write within one page, or `None` where
    /// load and store must be done apart (page crossing, no memory). Faults
    /// as the store would.
    #[inline(always)]
    pub(crate) fn modify(
        &mut self,
        linear: u64,
        size: u64,
    ) -> Result<Option<(*mut u8, u32)>, Stop> {
        match self.mmu.lookup_write(linear, size) {
            Some(found) => Ok(Some(found)),
            None => self.modify_slow(linear, size),
        }
    }

    /// After a store to host memory: notices code that was overwritten.
    #[inline(always)]
    pub(crate) fn wrote(&mut self, page: u32) {
        if self.mmu.code.stored(page) {
            self.code_written = true;
        }
    }

    #[cold]
    fn modify_slow(&mut self, linear: u64, size: u64) -> Result<Option<(*mut u8, u32)>, Stop> {
        self.check_range(linear, size, Access::Write)?;
        if (linear & PAGE_MASK) + size > 0x1000 {
            self.probe(linear, size, Access::Write)?;
            return Ok(None);
        }
        let rights = mmu::data_rights(&self.state);
        match self.target(linear, Access::Write, rights)? {
            Target::Ram(at, page) => Ok(Some((at, page))),
            Target::Mmio(_) => Ok(None),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, linear: u64, size: u64) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.check_range(linear, size, Access::Read)?;
        let rights = mmu::data_rights(&self.state);
        self.read_pieces(linear, &mut bytes[..size.min(8) as usize], rights)?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, linear: u64, size: u64, value: u64) -> Step {
        self.check_range(linear, size, Access::Write)?;
        let rights = mmu::data_rights(&self.state);
        self.write_pieces(linear, &value.to_le_bytes()[..size.min(8) as usize], rights)
    }

    /// Loads up to a page with the rights of the running code.
    pub(crate) fn load_bytes(&mut self, linear: u64, bytes: &mut [u8]) -> Step {
        if let Some(at) = self.mmu.lookup_read(linear, (bytes.len() as u64).min(4096)) {
            host::copy_from(at, bytes);
            return Ok(());
        }
        self.check_range(linear, bytes.len() as u64, Access::Read)?;
        let rights = mmu::data_rights(&self.state);
        self.read_pieces(linear, bytes, rights)
    }

    /// Stores up to a page with the rights of the running code: all or
    /// none, unless a piece is memory-mapped I/O.
    pub(crate) fn store_bytes(&mut self, linear: u64, bytes: &[u8]) -> Step {
        if let Some((at, page)) = self
            .mmu
            .lookup_write(linear, (bytes.len() as u64).min(4096))
        {
            host::copy_to(at, bytes);
            self.wrote(page);
            return Ok(());
        }
        self.check_range(linear, bytes.len() as u64, Access::Write)?;
        let rights = mmu::data_rights(&self.state);
        self.write_pieces(linear, bytes, rights)
    }

    /// Loads with supervisor rights whatever the CPL: descriptor tables, TSS.
    pub(crate) fn load_system<T: Word>(&mut self, linear: u64) -> Result<T, Stop> {
        let mut bytes = [0; 8];
        self.check_canonical_data(linear, T::SIZE)?;
        let rights = mmu::system_rights(&self.state);
        self.read_pieces(linear, &mut bytes[..T::SIZE as usize], rights)?;
        Ok(T::narrow(u64::from_le_bytes(bytes)))
    }

    /// Stores with supervisor rights whatever the CPL.
    pub(crate) fn store_system<T: Word>(&mut self, linear: u64, value: T) -> Step {
        self.check_canonical_data(linear, T::SIZE)?;
        let rights = mmu::system_rights(&self.state);
        self.write_pieces(
            linear,
            &value.widen().to_le_bytes()[..T::SIZE as usize],
            rights,
        )
    }

    /// Makes all checks of a store by the running code, but not the store.
    pub(crate) fn check_store(&mut self, linear: u64, size: u64) -> Step {
        self.check_range(linear, size, Access::Write)?;
        self.probe(linear, size, Access::Write)
    }

    /// Checks that an access would not fault, without making it.
    pub(crate) fn probe(&mut self, linear: u64, size: u64, access: Access) -> Step {
        let rights = mmu::data_rights(&self.state);
        self.probe_with(linear, size, access, rights)
    }

    /// The same with given rights.
    pub(crate) fn probe_with(
        &mut self,
        linear: u64,
        size: u64,
        access: Access,
        rights: Rights,
    ) -> Step {
        let mut at = linear;
        let mut left = size;
        while left > 0 {
            let here = (0x1000 - (at & PAGE_MASK)).min(left);
            self.target(at, access, rights)?;
            at = self.wrap_linear(at.wrapping_add(here));
            left -= here;
        }
        Ok(())
    }

    fn target(&mut self, linear: u64, access: Access, rights: Rights) -> Result<Target, Stop> {
        match self.mmu.resolve(&self.state, linear, access, rights) {
            Ok(target) => Ok(target),
            Err(fault) => Err(self.raise(fault)),
        }
    }

    fn read_pieces(&mut self, linear: u64, bytes: &mut [u8], rights: Rights) -> Step {
        let mut at = linear;
        let mut done = 0;
        while done < bytes.len() {
            let here = ((0x1000 - (at & PAGE_MASK)) as usize).min(bytes.len() - done);
            let piece = done..done + here;
            match self.target(at, Access::Read, rights)? {
                Target::Ram(from, _) => host::copy_from(from, &mut bytes[piece]),
                Target::Mmio(gpa) => self.mmio_read(gpa, &mut bytes[piece])?,
            }
            at = self.wrap_linear(at.wrapping_add(here as u64));
            done += here;
        }
        Ok(())
    }

    fn write_pieces(&mut self, linear: u64, bytes: &[u8], rights: Rights) -> Step {
        if (linear & PAGE_MASK) as usize + bytes.len() > 0x1000 {
            // Both pages first: a fault in the second leaves the first as it was.
            self.probe_with(linear, bytes.len() as u64, Access::Write, rights)?;
        }
        let mut at = linear;
        let mut done = 0;
        while done < bytes.len() {
            let here = ((0x1000 - (at & PAGE_MASK)) as usize).min(bytes.len() - done);
            let piece = &bytes[done..done + here];
            match self.target(at, Access::Write, rights)? {
                Target::Ram(to, page) => {
                    host::copy_to(to, piece);
                    self.wrote(page);
                }
                Target::Mmio(gpa) => self.mmio_write(gpa, piece)?,
            }
            at = self.wrap_linear(at.wrapping_add(here as u64));
            done += here;
        }
        Ok(())
    }

    fn mmio_read(&mut self, gpa: u64, bytes: &mut [u8]) -> Step {
        let mut done = 0;
        while done < bytes.len() {
            let size = mmio_piece(gpa + done as u64, bytes.len() - done);
            let value = self.answer(Exit::MmioRead {
                gpa: gpa + done as u64,
                size: size as u8,
            })?;
            bytes[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
            done += size;
        }
        Ok(())
    }

    fn mmio_write(&mut self, gpa: u64, bytes: &[u8]) -> Step {
        let mut done = 0;
        while done < bytes.len() {
            let size = mmio_piece(gpa + done as u64, bytes.len() - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[done..done + size]);
            let value = u64::from_le_bytes(value);
            self.answer(Exit::MmioWrite {
                gpa: gpa + done as u64,
                size: size as u8,
                value,
            })?;
            done += size;
        }
        Ok(())
    }

    /// Linear addresses are 32 bits wide outside long mode.
    #[inline]
    pub(crate) fn wrap_linear(&self, linear: u64) -> u64 {
        if self.state.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    /// The checks of a slow access: canonical address, alignment, watchpoints.
    fn check_range(&mut self, linear: u64, size: u64, access: Access) -> Step {
        self.check_canonical_data(linear, size)?;
        if self.mmu.data_set == mmu::SLOW_SET {
            self.check_alignment(linear, size)?;
            self.watch(linear, size, access);
        }
        Ok(())
    }

    fn check_canonical_data(&mut self, linear: u64, size: u64) -> Step {
        if self.state.long_mode() {
            let last = linear.wrapping_add(size.saturating_sub(1));
            if !mmu::canonical(linear) || !mmu::canonical(last) {
                return Err(self.raise(Fault::non_canonical()));
            }
        }
        Ok(())
    }

    fn check_alignment(&mut self, linear: u64, size: u64) -> Step {
        let on = self.state.cr0 & cr::CR0_AM != 0
            && self.state.system_flags & rflags::AC != 0
            && self.state.cpl == 3;
        let mask = match size {
            2 | 4 | 8 | 16 => size - 1,
            // A far pointer.
            6 => 3,
            10 => 7,
            28 | 108 => 3,
            _ => 0,
        };
        if on && linear & mask != 0 {
            return Err(self.raise(Fault::new(vector::AC, 0)));
        }
        Ok(())
    }

    /// Chooses the TLB set for data; call after anything it depends on.
    pub(crate) fn data_rights_changed(&mut self) {
        let aligned = self.state.cr0 & cr::CR0_AM != 0
            && self.state.system_flags & rflags::AC != 0
            && self.state.cpl == 3;
        self.mmu.data_set = if aligned || self.data_watchpoints() {
            mmu::SLOW_SET
        } else {
            mmu::data_rights(&self.state) as usize
        };
    }
}

/// The next piece of an I/O access: a power of two up to 8, naturally aligned.
fn mmio_piece(gpa: u64, left: usize) -> usize {
    let mut size = 8;
    while size > left || gpa & (size as u64 - 1) != 0 {
        size /= 2;
        if size <= 1 {
            return 1;
        }
    }
    size
}
