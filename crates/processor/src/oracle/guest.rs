//! Runs code in the interpreter: a guest with the arena at the same linear
//! addresses, user code, and an interrupt table that shows every exception.

use super::arena::{self, PAGE, REGIONS, Rights, View};
use super::{CS_32, CS_64, Descriptor, Mode, Outcome, Registers, SS_USER};
use crate::state::{cr, rflags, seg};
use crate::{
    CodeMap, Config, Exit, GuestSpace, HostPage, ProcessorMode, Segment, State, Table, Vp,
};
use std::sync::Arc;

/// Guest-physical pages: first the arena's, then tables and the kernel's.
const PAGES: u64 = 64;
/// The kernel's part: linear addresses of its pages.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = KERNEL;
const IDT: u64 = KERNEL + PAGE;
const TSS: u64 = KERNEL + 2 * PAGE;
const HANDLERS: u64 = KERNEL + 3 * PAGE;
const STACK_TOP: u64 = KERNEL + 5 * PAGE;
const KERNEL_PAGES: u64 = 5;
const CS_KERNEL: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;
/// Vectors whose frame has an error code.
const WITH_ERROR: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
/// More instructions than any test runs.
const STEPS: usize = 1000;

/// The interpreter's side of the oracle.
pub(super) struct Guest {
    /// The arena's contents.
    pub(super) view: View,
    vp: Vp,
    memory: Memory,
    gs_base: u64,
}

/// Guest-physical memory.
#[derive(Clone, Copy)]
struct Memory(*mut u8);

// SAFETY: used by one thread; the memory is never freed (tests are short).
unsafe impl Send for Memory {}

impl Memory {
    fn write(self, gpa: u64, value: u64) {
        assert!(gpa + 8 <= PAGES * PAGE);
        // SAFETY: inside the allocation, which lives on.
        unsafe {
            self.0
                .add(gpa as usize)
                .cast::<u64>()
                .write_unaligned(value)
        };
    }

    fn read(self, gpa: u64) -> u64 {
        assert!(gpa + 8 <= PAGES * PAGE);
        // SAFETY: as above.
        unsafe { self.0.add(gpa as usize).cast::<u64>().read_unaligned() }
    }
}

// SAFETY: the memory is never freed, and the code map has an entry per page.
unsafe impl GuestSpace for Memory {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        (page < PAGES).then(|| HostPage {
            pointer: self.0.wrapping_add((page * PAGE) as usize),
            index: page as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}
}

/// Builds the page tables.
struct Tables {
    memory: Memory,
    next: u64,
    root: u64,
}

impl Tables {
    fn page(&mut self) -> u64 {
        let page = self.next;
        self.next += PAGE;
        page
    }

    fn map(&mut self, linear: u64, gpa: u64, flags: u64) {
        let mut table = self.root;
        for level in [39, 30, 21] {
            let at = table + (linear >> level & 0x1ff) * 8;
            if self.memory.read(at) == 0 {
                let page = self.page();
                self.memory.write(at, page | 7);
            }
            table = self.memory.read(at) & !0xfff;
        }
        self.memory
            .write(table + (linear >> 12 & 0x1ff) * 8, gpa | flags);
    }
}

/// The guest-physical address of the kernel's first page.
const KERNEL_GPA: u64 = arena::SIZE;

impl Guest {
    /// A guest that uses the given FS and GS bases.
    pub(super) fn new(fs_base: u64, gs_base: u64, mode: ProcessorMode) -> Self {
        let layout = std::alloc::Layout::from_size_align((PAGES * PAGE) as usize, PAGE as usize);
        let layout = layout.expect("a valid layout");
        // SAFETY: the layout has a size.
        let memory = Memory(unsafe { std::alloc::alloc_zeroed(layout) });
        assert!(!memory.0.is_null());
        let root = KERNEL_GPA + KERNEL_PAGES * PAGE;
        let mut tables = Tables {
            memory,
            next: root + PAGE,
            root,
        };
        map_all(&mut tables);
        kernel(memory);
        let code = Arc::new(CodeMap::new(PAGES as usize, false));
        let config = Config {
            mode,
            ..Config::default()
        };
        let mut vp = Vp::new(config, Box::new(memory), code);
        assert_eq!(vp.translates(), mode == ProcessorMode::Translate);
        // Code under test runs once: it is hot at once.
        vp.warm = 1;
        vp.update_state(|state| user_state(state, root, fs_base));
        // SAFETY: the arena is the first part of memory that lives on.
        let view = unsafe { View::new(memory.0) };
        Self {
            view,
            vp,
            memory,
            gs_base,
        }
    }

    /// The code in the arena was changed from outside.
    pub(super) fn code_changed(&mut self) {
        for page in 0..(arena::CODE_SIZE / PAGE) as u32 {
            self.vp.mmu.code.written(page);
        }
    }

    /// Makes the next accesses walk the page tables.
    pub(super) fn forget_translations(&mut self) {
        self.vp.flush_tlb();
    }

    /// Runs from `entry.rip` to the next trap or fault: instruction by
    /// instruction, or block by block.
    pub(super) fn run(&mut self, entry: &Registers, mode: Mode, stepwise: bool) -> Outcome {
        let state = &mut self.vp.state;
        state.gpr[..16].copy_from_slice(&entry.gpr);
        state.rip = entry.rip;
        state.set_rflags(entry.rflags | rflags::IF);
        let [code, stack, data] = mode.segments();
        let attributes = match mode {
            Mode::Long => 0xa0fb,
            Mode::Compatibility => 0xc0fb,
            Mode::Sixteen => 0x00fb,
        };
        // As code: big and granular or neither; data and writable.
        let data_attributes = if mode == Mode::Sixteen {
            0x00f3
        } else {
            0xc0f3
        };
        state.seg[seg::CS] = loaded(code, attributes);
        state.seg[seg::SS] = loaded(stack, data_attributes);
        state.seg[seg::DS] = loaded(data, data_attributes);
        state.seg[seg::ES] = loaded(data, data_attributes);
        state.seg[seg::GS] = unloaded(self.gs_base);
        state.cpl = 3;
        self.vp.mode_changed();
        let exit = self.go(stepwise);
        self.outcome(exit)
    }

    fn go(&mut self, stepwise: bool) -> Option<Exit> {
        if !stepwise {
            return Some(self.vp.run());
        }
        for _ in 0..STEPS {
            let exit = self.vp.step();
            if exit.is_some() || self.vp.state.cpl == 0 {
                return exit;
            }
        }
        None
    }

    fn outcome(&mut self, exit: Option<Exit>) -> Outcome {
        let state = &self.vp.state;
        let inside = state.rip.wrapping_sub(HANDLERS);
        let mut outcome = Outcome::default();
        if state.cpl != 0 || inside >= PAGE || !matches!(exit, None | Some(Exit::Halt)) {
            // Nothing that the host can give.
            outcome.stuck =
                Some(format!("{exit:?}, cpl {}, rip {:#x}", state.cpl, state.rip).leak());
            outcome.registers = registers(state);
            self.restart();
            return outcome;
        }
        outcome.vector = (inside / 8) as u8;
        outcome.selectors = [seg::DS, seg::ES, seg::GS].map(|number| state.seg[number].selector);
        outcome.registers = registers(state);
        outcome.address = state.cr2;
        let has_error = outcome.vector < 32 && WITH_ERROR >> outcome.vector & 1 != 0;
        let frame = KERNEL_GPA + (STACK_TOP - KERNEL) - 40;
        if has_error {
            outcome.error = self.memory.read(frame - 8) as u32;
        }
        outcome.registers.rip = self.memory.read(frame);
        outcome.cs = self.memory.read(frame + 8) as u16;
        outcome.registers.rflags = self.memory.read(frame + 16);
        outcome.registers.gpr[crate::reg::RSP] = self.memory.read(frame + 24);
        outcome
    }

    /// After an exit that no test expects: drops what waits.
    fn restart(&mut self) {
        let state = self.vp.state.clone();
        self.vp.reset(true);
        self.vp.update_state(|now| *now = state);
    }
}

fn registers(state: &State) -> Registers {
    let mut registers = Registers {
        rip: state.rip,
        rflags: state.rflags(),
        ..Registers::default()
    };
    registers.gpr.copy_from_slice(&state.gpr[..16]);
    registers
}

fn map_all(tables: &mut Tables) {
    const NX: u64 = 1 << 63;
    let mut gpa = 0;
    for region in REGIONS {
        let flags = match region.rights {
            Rights::Code => 5,
            Rights::Read => 5 | NX,
            Rights::Write => 7 | NX,
        };
        for page in 0..region.size / PAGE {
            tables.map(region.linear + page * PAGE, gpa, flags);
            gpa += PAGE;
        }
    }
    for page in 0..KERNEL_PAGES {
        tables.map(KERNEL + page * PAGE, KERNEL_GPA + page * PAGE, 3);
    }
    assert!(tables.next <= PAGES * PAGE);
}

/// GDT, TSS and IDT, with the selectors that Linux uses.
fn kernel(memory: Memory) {
    let at = |linear: u64| KERNEL_GPA + (linear - KERNEL);
    let gdt = at(GDT);
    memory.write(gdt + u64::from(CS_KERNEL), 0x00af_9b00_0000_ffff);
    memory.write(gdt + 0x18, 0x00cf_9300_0000_ffff);
    memory.write(gdt + u64::from(CS_32 & !7), 0x00cf_fb00_0000_ffff);
    memory.write(gdt + u64::from(SS_USER & !7), 0x00cf_f300_0000_ffff);
    memory.write(gdt + u64::from(CS_64 & !7), 0x00af_fb00_0000_ffff);
    let low = 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56;
    memory.write(gdt + u64::from(TSS_SELECTOR), low);
    memory.write(gdt + u64::from(TSS_SELECTOR) + 8, TSS >> 32);
    memory.write(at(TSS) + 4, STACK_TOP);
    // No I/O permission map.
    memory.write(at(TSS) + 0x60, 0xffff << 48);
    for vector in 0..256 {
        let handler = HANDLERS + vector * 8;
        // The kernel of the host lets user code raise these two.
        let rights: u64 = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        let low = handler & 0xffff
            | u64::from(CS_KERNEL) << 16
            | rights << 40
            | (handler >> 16 & 0xffff) << 48;
        memory.write(at(IDT) + vector * 16, low);
        memory.write(at(IDT) + vector * 16 + 8, handler >> 32);
    }
    const HLT: u64 = 0xf4f4_f4f4_f4f4_f4f4;
    for i in 0..PAGE / 8 {
        memory.write(at(HANDLERS) + i * 8, HLT);
    }
}

fn loaded(segment: Descriptor, attributes: u32) -> Segment {
    let Descriptor {
        selector,
        base,
        limit,
    } = segment;
    Segment {
        base,
        limit,
        attributes,
        selector,
    }
}

/// FS or GS with a null selector and a base.
fn unloaded(base: u64) -> Segment {
    Segment {
        base,
        limit: 0,
        attributes: Segment::UNUSABLE,
        selector: 0,
    }
}

/// User code in long mode, as Linux sets it up.
fn user_state(state: &mut State, root: u64, fs_base: u64) {
    // As large as Linux makes its table.
    const GDT_LIMIT: u16 = 0x7f;
    const IDT_LIMIT: u16 = 0xfff;
    state.cr0 =
        cr::CR0_PE | cr::CR0_MP | cr::CR0_ET | cr::CR0_NE | cr::CR0_WP | cr::CR0_AM | cr::CR0_PG;
    state.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_FSGSBASE;
    state.efer = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
    state.cr3 = root;
    state.gdtr = Table {
        base: GDT,
        limit: GDT_LIMIT,
    };
    state.idtr = Table {
        base: IDT,
        limit: IDT_LIMIT,
    };
    state.seg[seg::FS] = unloaded(fs_base);
    state.seg[seg::TR] = Segment {
        base: TSS,
        limit: 0x67,
        attributes: 0x8b,
        selector: TSS_SELECTOR,
    };
    state.seg[seg::LDTR] = Segment {
        attributes: 1 << 16,
        ..Segment::default()
    };
}
