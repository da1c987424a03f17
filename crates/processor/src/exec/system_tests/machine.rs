//! A processor with a little memory, descriptor tables and page tables.

use crate::fault::Exit;
use crate::space::{CodeMap, GuestSpace, HostPage};
use crate::state::{Segment, State, Table, cr, rflags, seg};
use crate::vp::{Config, Vp};
use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;

pub(super) const GDT: u64 = 0x1000;
pub(super) const IDT: u64 = 0x2000;
pub(super) const TSS: u64 = 0x3000;
pub(super) const CODE: u64 = 0x8000;
pub(super) const USER: u64 = 0x9000;
pub(super) const HANDLER: u64 = 0xa000;
pub(super) const STACK: u64 = 0x7000;
pub(super) const USER_STACK: u64 = 0x6000;
const TABLES: u64 = 0x10000;
const PAGES: usize = 64;

pub(super) const CODE32: u16 = 0x08;
pub(super) const DATA32: u16 = 0x10;
pub(super) const USER_CODE32: u16 = 0x1b;
pub(super) const USER_DATA32: u16 = 0x23;
pub(super) const TASK: u16 = 0x28;
pub(super) const CODE64: u16 = 0x38;
pub(super) const USER_CODE64: u16 = 0x43;

#[derive(Clone)]
#[repr(align(4096))]
#[expect(dead_code, reason = "read and written through pointers")]
struct Page([u8; 4096]);

struct Space(*mut Page);

// SAFETY: the machine keeps the memory for as long as its processor, which
// stays on the test's thread.
unsafe impl Send for Space {}

// SAFETY: page numbers below `PAGES` lie in the machine's memory.
unsafe impl GuestSpace for Space {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let index = usize::try_from(page).ok().filter(|&index| index < PAGES)?;
        let pointer = self.0.wrapping_add(index).cast();
        Some(HostPage {
            pointer,
            index: index as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}
}

/// A processor and its memory.
pub(super) struct Machine {
    pub(super) vp: Vp,
    memory: *mut Page,
    code: Arc<CodeMap>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pages = std::ptr::slice_from_raw_parts_mut(self.memory, PAGES);
        // SAFETY: made by `Box::into_raw` with this length; the processor
        // does not touch memory when it is dropped.
        drop(unsafe { Box::from_raw(pages) });
    }
}

impl Machine {
    /// In the state after power-on, CS:IP at 0:CODE.
    pub(super) fn real() -> Self {
        let memory = Box::into_raw(vec![Page([0; 4096]); PAGES].into_boxed_slice()).cast::<Page>();
        let code = Arc::new(CodeMap::new(PAGES, false));
        let vp = Vp::new(Config::default(), Box::new(Space(memory)), code.clone());
        let mut machine = Self { vp, memory, code };
        machine.state(|state| {
            state.seg[seg::CS].base = 0;
            state.seg[seg::CS].selector = 0;
            state.rip = CODE;
            state.gpr[4] = STACK;
        });
        machine
    }

    /// 32-bit protected mode without paging, tables in place.
    pub(super) fn protected() -> Self {
        let mut machine = Self::real();
        machine.tables();
        machine.state(|state| {
            state.cr0 = cr::CR0_PE | cr::CR0_ET;
            flat(state, CODE32, DATA32, 0xc09b);
            state.seg[seg::TR] = Segment {
                base: TSS,
                limit: 0x67,
                attributes: 0x8b,
                selector: TASK,
            };
            state.seg[seg::LDTR].attributes |= Segment::UNUSABLE;
        });
        // ESP0 and SS0.
        machine.write32(TSS + 4, STACK as u32);
        machine.write16(TSS + 8, DATA32);
        machine
    }

    /// 64-bit code at level 0, the first 2 MiB mapped for everyone.
    pub(super) fn long() -> Self {
        let mut machine = Self::protected();
        machine.write64(TABLES, TABLES + 0x1007);
        machine.write64(TABLES + 0x1000, TABLES + 0x2007);
        machine.write64(TABLES + 0x2000, TABLES + 0x3007);
        for page in 0..PAGES as u64 {
            machine.write64(TABLES + 0x3000 + page * 8, page << 12 | 7);
        }
        machine.state(|state| {
            state.cr3 = TABLES;
            state.cr4 = cr::CR4_PAE;
            state.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_SCE | cr::EFER_NXE;
            state.cr0 |= cr::CR0_PG | cr::CR0_WP;
            flat(state, CODE64, DATA32, 0xa09b);
        });
        machine.write64(TSS + 4, STACK);
        machine
    }

    fn tables(&mut self) {
        let gdt = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x0000_8b00_3000_0067,
            0,
            0x00af_9b00_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (i, entry) in gdt.into_iter().enumerate() {
            self.write64(GDT + 8 * i as u64, entry);
        }
        self.state(|state| {
            state.gdtr = Table {
                base: GDT,
                limit: 0xfff,
            };
            state.idtr = Table {
                base: IDT,
                limit: 0xfff,
            };
        });
    }

    pub(super) fn state(&mut self, change: impl FnOnce(&mut State)) {
        self.vp.update_state(change);
    }

    /// A gate for `vector`: 32-bit or, in long mode, 64-bit.
    pub(super) fn gate(
        &mut self,
        vector: u64,
        selector: u16,
        offset: u64,
        attributes: u8,
        ist: u8,
    ) {
        let low = offset & 0xffff
            | u64::from(selector) << 16
            | u64::from(ist) << 32
            | u64::from(attributes) << 40
            | (offset & 0xffff_0000) << 32;
        if self.vp.state().long_mode() {
            self.write64(IDT + vector * 16, low);
            self.write64(IDT + vector * 16 + 8, offset >> 32);
        } else {
            self.write64(IDT + vector * 8, low);
        }
    }

    /// Assembles code to an address.
    pub(super) fn asm(
        &mut self,
        bits: u32,
        at: u64,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64");
        program(&mut assembler).expect("encodable");
        let bytes = assembler.assemble(at).expect("encodable");
        self.write(at, &bytes);
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= PAGES * 4096);
        for (i, &byte) in bytes.iter().enumerate() {
            let to = self.memory.cast::<u8>().wrapping_add(at as usize + i);
            crate::host::store8(to, byte);
            self.code.written((at as usize + i) as u32 / 4096);
        }
    }

    pub(super) fn write16(&mut self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn write32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn write64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn read(&self, at: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        assert!(at as usize + size <= PAGES * 4096);
        let from = self.memory.cast::<u8>().wrapping_add(at as usize);
        crate::host::copy_from(from, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    /// The `index`th item of a frame of `size`-byte items on the stack.
    pub(super) fn stacked(&self, index: u64, size: u64) -> u64 {
        self.read(self.vp.state().gpr[4] + index * size, size as usize)
    }

    /// Runs to the first exit. A program that hangs ends as `Kicked`.
    pub(super) fn run(&mut self) -> Exit {
        let requests = self.vp.requests();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(10));
            requests.kick();
        });
        self.vp.run()
    }

    /// Runs to HLT, and takes it off.
    pub(super) fn until_halt(&mut self) {
        assert_eq!(self.run(), Exit::Halt);
        self.vp.complete(crate::fault::Completion::Done);
    }

    /// Level 3 at USER.
    pub(super) fn enter_user(&mut self) {
        let long = self.vp.state().long_mode();
        self.state(|state| {
            let (cs, attributes) = if long {
                (USER_CODE64, 0xa0fb)
            } else {
                (USER_CODE32, 0xc0fb)
            };
            flat(state, cs, USER_DATA32, attributes);
            for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
                state.seg[index].attributes = 0xc0f3;
            }
            state.cpl = 3;
            state.rip = USER;
            state.gpr[4] = USER_STACK;
            state.system_flags |= rflags::IF;
        });
    }
}

fn flat(state: &mut State, cs: u16, data: u16, attributes: u32) {
    let segment = Segment {
        base: 0,
        limit: u32::MAX,
        attributes: 0xc093,
        selector: data,
    };
    for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[index] = segment;
    }
    state.seg[seg::CS] = Segment {
        base: 0,
        limit: u32::MAX,
        attributes,
        selector: cs,
    };
}
