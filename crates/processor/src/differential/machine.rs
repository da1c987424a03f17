//! A machine with two address spaces, awkward mappings and its own exception
//! handlers, in which programs run.

use super::handlers;
use crate::state::{Segment, State, Table, cr, rflags, seg};
use crate::{Backing, CodeMap, Config, GuestSpace, HostPage, ProcessorMode, Vp};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
use std::sync::Arc;

pub(super) const PAGE: u64 = 0x1000;
/// Guest-physical pages; behind them is no memory.
pub(super) const PAGES: u64 = 112;
/// Bytes of guest-physical memory.
pub(super) const SIZE: usize = (PAGES * PAGE) as usize;

/// Programs, four pages that lie apart in the host's memory.
pub(super) const CODE: u64 = 0x40_0000;
pub(super) const CODE_PAGES: u64 = 4;
/// The same pages, for data only.
pub(super) const ALIAS: u64 = 0x48_0000;
/// One page of functions, of which there are two versions.
pub(super) const FUNCTIONS: u64 = 0x60_0000;
/// Data: see [`data_flags`].
pub(super) const DATA: u64 = 0x70_0000;
/// The same, far away.
pub(super) const HIGH_DATA: u64 = 0x6543_2101_0000;
/// The same, in the upper half, global, for the supervisor.
pub(super) const KERNEL_DATA: u64 = 0xffff_9000_0000_0000;
/// Pages of data that are alike in both address spaces, then those that are not.
pub(super) const DATA_PAGES: u64 = 10;
pub(super) const OWN_PAGES: u64 = 4;
/// The page of data that is absent until the handler maps it.
pub(super) const LAZY_PAGE: u64 = 4;
/// The stack grows down from behind four pages.
pub(super) const STACK: u64 = 0x7f_0000;
pub(super) const STACK_PAGES: u64 = 4;
/// Counters of loops: a page of data that nothing else uses.
pub(super) const COUNTERS: u64 = 0x7a_0000;
/// The kernel's pages, from guest-physical page 1 on.
pub(super) const KERNEL: u64 = 0xffff_8000_0000_0000;
/// All of guest-physical memory, page by page.
pub(super) const PHYSICAL: u64 = 0xffff_8880_0000_0000;
/// The same and 1.5 MiB without memory, as one large page.
pub(super) const LARGE: u64 = 0xffff_8900_0000_0000;

/// Guest-physical pages.
pub(super) mod page {
    pub(crate) const KERNEL: u64 = 1;
    pub(crate) const CODE: u64 = 16;
    pub(crate) const FUNCTIONS: [u64; 2] = [20, 21];
    pub(crate) const COUNTERS: u64 = 22;
    pub(crate) const DATA: u64 = 24;
    pub(crate) const OWN: [u64; 2] = [36, 44];
    pub(crate) const STACK: u64 = 52;
    pub(crate) const ROOTS: [u64; 2] = [56, 57];
    pub(crate) const TABLES: u64 = 58;
}

/// What the kernel's pages hold, as offsets from [`KERNEL`].
pub(super) mod kernel {
    pub(crate) const GDT: u64 = 0;
    pub(crate) const TSS: u64 = 0x800;
    pub(crate) const IDT: u64 = 0x1000;
    pub(crate) const HANDLERS: u64 = 0x2000;
    pub(crate) const EXCEPTION_STACK: u64 = 0x3800;
    pub(crate) const SERVICE_STACK: u64 = 0x4000;
    /// The page of these is not compared: interrupts come when they come.
    pub(crate) const INTERRUPT_STACK: u64 = 0x4800;
    pub(crate) const INTERRUPTS: u64 = 0x4c00;
    pub(crate) const VARIABLES: u64 = 0x5000;
    pub(crate) const LOG: u64 = 0x6000;
    pub(crate) const LENGTHS: u64 = 0x7000;
    pub(crate) const PAGES: u64 = 7 + super::CODE_PAGES;
}

/// Variables of the handlers, as offsets from [`kernel::VARIABLES`].
pub(super) mod variable {
    /// Exceptions before the program ends.
    pub(crate) const BUDGET: u64 = 0;
    pub(crate) const LOGGED: u64 = 8;
    pub(crate) const SYSCALLS: u64 = 16;
    /// CR3, and what changes it to the other one.
    pub(crate) const CR3: u64 = 24;
    pub(crate) const CR3_CHANGE: u64 = 32;
    pub(crate) const SCRATCH: u64 = 40;
}

pub(super) const CS_KERNEL: u16 = 0x10;
pub(super) const SS_KERNEL: u16 = 0x18;
pub(super) const CS_USER: u16 = 0x33;
pub(super) const SS_USER: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x40;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const ACCESSED: u64 = 1 << 5;
/// Accessed and dirty.
const SEEN: u64 = ACCESSED | 1 << 6;
const LARGE_PAGE: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// What a program's machine is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// CPL 3, and pages for it.
    pub user: bool,
    pub smap: bool,
    pub pcid: bool,
    /// CR3 loads keep translations (bit 63).
    pub keep: bool,
    pub alignment: bool,
    /// CR0.TS.
    pub no_vectors: bool,
    pub mxcsr: u32,
    /// Control word of the x87.
    pub x87: u16,
    pub rflags: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Contents of guest-physical memory.
pub(super) struct Image(pub(super) Vec<u8>);

impl Image {
    pub(super) fn write(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at as usize..at as usize + 8]);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes to the kernel's pages.
    pub(super) fn kernel(&mut self, offset: u64, bytes: &[u8]) {
        self.put(page::KERNEL * PAGE + offset, bytes);
    }

    /// Memory with tables and handlers, and 0 elsewhere.
    pub(super) fn new(setup: &Setup) -> Self {
        let mut image = Self(vec![0; SIZE]);
        let mut next = page::TABLES;
        for (space, root) in page::ROOTS.into_iter().enumerate() {
            let mut tables = Tables {
                image: &mut image,
                root: root * PAGE,
                next,
            };
            tables.all(setup, space);
            next = tables.next;
        }
        assert!(next <= PAGES, "{next} pages");
        image.descriptors();
        handlers::place(&mut image);
        let roots = page::ROOTS.map(|root| root * PAGE);
        let mut cr3 = roots;
        if setup.pcid {
            let keep = u64::from(setup.keep) << 63;
            cr3 = [roots[0] | 1 | keep, roots[1] | 2 | keep];
        }
        let at = |offset| page::KERNEL * PAGE + kernel::VARIABLES + offset;
        image.write(at(variable::BUDGET), 120);
        image.write(at(variable::CR3), cr3[0]);
        image.write(at(variable::CR3_CHANGE), cr3[0] ^ cr3[1]);
        image
    }

    fn descriptors(&mut self) {
        let gdt = page::KERNEL * PAGE + kernel::GDT;
        let tss = KERNEL + kernel::TSS;
        self.write(gdt + u64::from(CS_KERNEL), 0x00af_9b00_0000_ffff);
        self.write(gdt + u64::from(SS_KERNEL), 0x00cf_9300_0000_ffff);
        self.write(gdt + 0x20, 0x00cf_fb00_0000_ffff);
        self.write(gdt + u64::from(SS_USER & !7), 0x00cf_f300_0000_ffff);
        self.write(gdt + u64::from(CS_USER & !7), 0x00af_fb00_0000_ffff);
        let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
        self.write(gdt + u64::from(TSS_SELECTOR), low);
        self.write(gdt + u64::from(TSS_SELECTOR) + 8, tss >> 32);
        let at = page::KERNEL * PAGE + kernel::TSS;
        let stacks = [
            kernel::EXCEPTION_STACK,
            kernel::INTERRUPT_STACK,
            kernel::SERVICE_STACK,
        ];
        self.write(at + 4, KERNEL + kernel::SERVICE_STACK);
        for (i, stack) in stacks.into_iter().enumerate() {
            self.write(at + 0x24 + 8 * i as u64, KERNEL + stack);
        }
        self.write(at + 0x60, 0xffff << 48);
    }
}

/// Flags and guest-physical page of one page of data.
fn data_flags(number: u64, space: usize, user: u64) -> Option<(u64, u64)> {
    let rights = match number {
        // 0 and 1 are neighbours in the host's memory, too; 2 is elsewhere.
        3 => user | NX,
        LAZY_PAGE => W | user | NX,
        6 => W | user ^ U | NX,
        8 => W | user,
        9 => return None,
        _ => W | user | NX,
    };
    let present = if number == LAZY_PAGE { 0 } else { P };
    let page = match number {
        8 => page::FUNCTIONS[1],
        0..DATA_PAGES => page::DATA + number,
        _ => page::OWN[space] + number - DATA_PAGES,
    };
    Some((rights | present, page))
}

/// Builds page tables.
struct Tables<'a> {
    image: &'a mut Image,
    root: u64,
    next: u64,
}

impl Tables<'_> {
    fn all(&mut self, setup: &Setup, space: usize) {
        let user = if setup.user { U } else { 0 };
        for i in 0..CODE_PAGES {
            self.map(CODE + i * PAGE, page::CODE + i, P | W | user);
            self.map(ALIAS + i * PAGE, page::CODE + i, P | W | user | NX);
        }
        self.map(FUNCTIONS, page::FUNCTIONS[space], P | W | user);
        self.map(COUNTERS, page::COUNTERS, P | W | user | NX);
        for i in 0..DATA_PAGES + OWN_PAGES {
            let Some((flags, page)) = data_flags(i, space, user) else {
                continue;
            };
            self.map(DATA + i * PAGE, page, flags);
            self.map(HIGH_DATA + i * PAGE, page, flags);
            // Global ones are walked in one space or in both, as caches have it.
            let global = if i < DATA_PAGES { G | SEEN } else { 0 };
            self.map(KERNEL_DATA + i * PAGE, page, flags & !U | global);
        }
        for i in 0..STACK_PAGES {
            self.map(STACK + i * PAGE, page::STACK + i, P | W | user | NX);
        }
        for i in 0..kernel::PAGES {
            // Interrupts come when they come: as if some had been already.
            self.map(KERNEL + i * PAGE, page::KERNEL + i, P | W | G | SEEN);
        }
        for i in 0..PAGES {
            self.map(PHYSICAL + i * PAGE, i, P | W | G | NX | SEEN);
        }
        let entry = self.entry(LARGE, 21);
        self.image.write(entry, P | W | G | NX | LARGE_PAGE | SEEN);
    }

    /// Guest-physical address of the entry of a level's table.
    fn entry(&mut self, linear: u64, level: u32) -> u64 {
        let mut table = self.root;
        for above in [39, 30, 21] {
            let at = table + (linear >> above & 0x1ff) * 8;
            if above == level {
                return at;
            }
            if self.image.read(at) == 0 {
                self.image
                    .write(at, (self.next * PAGE) | P | W | U | ACCESSED);
                self.next += 1;
            }
            table = self.image.read(at) & 0xf_ffff_ffff_f000;
        }
        table + (linear >> 12 & 0x1ff) * 8
    }

    fn map(&mut self, linear: u64, page: u64, flags: u64) {
        let entry = self.entry(linear, 12);
        self.image.write(entry, (page * PAGE) | flags);
    }
}

/// Linear address, in [`PHYSICAL`], of a page's entry in the tables.
pub(super) fn table_entry(image: &Image, space: usize, linear: u64) -> u64 {
    let mut table = page::ROOTS[space] * PAGE;
    for level in [39, 30, 21] {
        table = image.read(table + (linear >> level & 0x1ff) * 8) & 0xf_ffff_ffff_f000;
    }
    PHYSICAL + table + (linear >> 12 & 0x1ff) * 8
}

/// Guest-physical memory: most pages lie apart, with a strange one in between.
#[derive(Clone)]
struct Memory {
    base: *mut u8,
    file: Arc<OwnedFd>,
}

// SAFETY: used by one thread; the machine frees it behind its processor.
unsafe impl Send for Memory {}

impl Memory {
    /// Where a guest-physical page lies, in pages. Page 1 of data follows
    /// page 0.
    fn slot(page: u64) -> u64 {
        if page == page::DATA + 1 {
            2 * page - 1
        } else {
            2 * page
        }
    }

    fn at(&self, page: u64) -> *mut u8 {
        self.base.wrapping_add((Self::slot(page) * PAGE) as usize)
    }

    /// Anew, all zero.
    fn map() -> Self {
        let file = memfd_create("machine", MemfdFlags::CLOEXEC).expect("a memory file");
        ftruncate(&file, 2 * SIZE as u64).expect("room for memory");
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(null_mut(), 2 * SIZE, rights, MapFlags::SHARED, &file, 0) };
        Self {
            base: base.expect("a mapping").cast(),
            file: Arc::new(file),
        }
    }
}

// SAFETY: the memory outlives the processor, and the code map has an entry
// for each page.
unsafe impl GuestSpace for Memory {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        (page < PAGES).then(|| HostPage {
            pointer: self.at(page),
            index: Self::slot(page) as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}

    fn backing(&self) -> Option<Backing> {
        Some(Backing {
            file: self.file.try_clone().ok()?,
            base: self.base,
            size: 2 * SIZE as u64,
        })
    }
}

/// A processor and its memory.
pub(super) struct Machine {
    pub(super) vp: Vp,
    code: Arc<CodeMap>,
    memory: Memory,
    fill: u8,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; the processor does not touch memory when
        // it is dropped.
        let _ = unsafe { munmap(self.memory.base.cast(), 2 * SIZE) };
    }
}

impl Machine {
    pub(super) fn new(mode: ProcessorMode) -> Self {
        let memory = Memory::map();
        let code = Arc::new(CodeMap::new(2 * PAGES as usize, false));
        let config = Config {
            mode,
            ..Config::default()
        };
        let vp = Vp::new(config, Box::new(memory.clone()), code.clone());
        // What lies between pages is different in every machine, so that
        // reading it shows.
        let fill = if mode == ProcessorMode::Interpret {
            0x5a
        } else {
            0xa5
        };
        let mut machine = Self {
            vp,
            code,
            memory,
            fill,
        };
        machine.each_gap(|gap, fill| gap.fill(fill));
        machine
    }

    fn each_gap(&mut self, mut visit: impl FnMut(&mut [u8], u8)) {
        for slot in 0..2 * PAGES {
            if (0..PAGES).any(|page| Memory::slot(page) == slot) {
                continue;
            }
            let start = self.memory.base.wrapping_add((slot * PAGE) as usize);
            // SAFETY: inside the allocation, and the processor does not run.
            visit(
                unsafe { std::slice::from_raw_parts_mut(start, PAGE as usize) },
                self.fill,
            );
        }
    }

    /// A store that left its page.
    pub(super) fn strayed(&mut self) -> bool {
        let mut strayed = false;
        self.each_gap(|gap, fill| {
            if gap.iter().any(|&byte| byte != fill) {
                strayed = true;
                gap.fill(fill);
            }
        });
        strayed
    }

    /// A page's bytes. The processor does not run.
    pub(super) fn page(&mut self, page: u64) -> &mut [u8] {
        assert!(page < PAGES);
        // SAFETY: inside the allocation; `&mut self` keeps the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at(page), PAGE as usize) }
    }

    /// Writes as a device does.
    pub(super) fn poke(&mut self, gpa: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = gpa + i as u64;
            self.page(at / PAGE)[(at % PAGE) as usize] = byte;
            self.code.written(Memory::slot(at / PAGE) as u32);
        }
    }

    /// Sets memory and state for a program.
    pub(super) fn load(&mut self, image: &Image, setup: &Setup, start: &Start) {
        for page in 0..PAGES {
            let from = (page * PAGE) as usize;
            let bytes = &image.0[from..from + PAGE as usize];
            if self.page(page) != bytes {
                self.page(page).copy_from_slice(bytes);
                self.code.written(Memory::slot(page) as u32);
            }
        }
        self.vp.flush_tlb();
        self.restart(setup, start);
    }

    /// Sets the state for a program, in the address space that is current.
    pub(super) fn restart(&mut self, setup: &Setup, start: &Start) {
        let at = kernel::VARIABLES + variable::CR3;
        let offset = (at % PAGE) as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.page(page::KERNEL + at / PAGE)[offset..offset + 8]);
        let cr3 = u64::from_le_bytes(bytes);
        let vp = &mut self.vp;
        if vp.shutdown {
            vp.reset(true);
        }
        // Caches of translations stay as they are: the program ended with
        // the same control registers, or `load` has emptied them.
        vp.state = State::power_on();
        state_for(&mut vp.state, setup, cr3 & !(1 << 63));
        start.apply(&mut vp.state);
        vp.attention = 0;
        vp.mode_changed();
    }
}

/// Registers at the start of a program or of one of its rounds.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub gpr: [u64; 16],
    pub xmm: [u128; 16],
    pub st: [u128; 8],
    pub rip: u64,
}

impl Start {
    /// Writes the registers.
    pub(super) fn apply(&self, state: &mut State) {
        state.gpr[..16].copy_from_slice(&self.gpr);
        for (number, value) in self.xmm.into_iter().enumerate() {
            state.fpu.set_xmm(number, value);
        }
        for (number, value) in self.st.into_iter().enumerate() {
            let at = crate::Fpu::ST + 16 * number;
            state.fpu.fxsave[at..at + 10].copy_from_slice(&value.to_le_bytes()[..10]);
        }
        state.rip = self.rip;
    }
}

fn state_for(state: &mut State, setup: &Setup, cr3: u64) {
    state.cr0 =
        cr::CR0_PE | cr::CR0_MP | cr::CR0_ET | cr::CR0_NE | cr::CR0_WP | cr::CR0_AM | cr::CR0_PG;
    if setup.no_vectors {
        state.cr0 |= cr::CR0_TS;
    }
    state.cr4 = cr::CR4_PAE
        | cr::CR4_PGE
        | cr::CR4_OSFXSR
        | cr::CR4_OSXMMEXCPT
        | cr::CR4_FSGSBASE
        | cr::CR4_OSXSAVE;
    if setup.smap {
        state.cr4 |= cr::CR4_SMAP;
    }
    if setup.pcid {
        state.cr4 |= cr::CR4_PCIDE;
    }
    state.efer = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
    state.cr3 = cr3;
    state.xcr0 = 3;
    state.gdtr = Table {
        base: KERNEL + kernel::GDT,
        limit: 0x7f,
    };
    state.idtr = Table {
        base: KERNEL + kernel::IDT,
        limit: 0xfff,
    };
    state.msr.star = u64::from(CS_KERNEL) << 32 | 0x23 << 48;
    state.msr.lstar = KERNEL + kernel::HANDLERS + handlers::SYSCALL;
    state.msr.sfmask = rflags::IF | rflags::AC | rflags::DF;
    state.msr.kernel_gs_base = KERNEL + kernel::VARIABLES;
    let (cpl, cs, code, ss, data) = if setup.user {
        (3, CS_USER, 0xa0fb, SS_USER, 0xc0f3)
    } else {
        (0, CS_KERNEL, 0xa09b, SS_KERNEL, 0xc093)
    };
    state.cpl = cpl;
    let segment = |selector, attributes, base| Segment {
        base,
        limit: u32::MAX,
        attributes,
        selector,
    };
    for number in [seg::ES, seg::SS, seg::DS] {
        state.seg[number] = segment(ss, data, 0);
    }
    state.seg[seg::CS] = segment(cs, code, 0);
    state.seg[seg::FS] = segment(0, Segment::UNUSABLE, setup.fs);
    state.seg[seg::GS] = segment(0, Segment::UNUSABLE, setup.gs);
    state.seg[seg::TR] = Segment {
        base: KERNEL + kernel::TSS,
        limit: 0x67,
        attributes: 0x8b,
        selector: TSS_SELECTOR,
    };
    state.seg[seg::LDTR] = segment(0, Segment::UNUSABLE, 0);
    state.fpu.set_mxcsr(setup.mxcsr);
    state.fpu.fxsave[..2].copy_from_slice(&setup.x87.to_le_bytes());
    let alignment = if setup.alignment { rflags::AC } else { 0 };
    state.set_rflags(setup.rflags & rflags::ARITH | rflags::IF | alignment);
}
