//! A virtual processor with a few pages of memory, in 64-bit mode without
//! paging tables.

use crate::decode::Decoder;
use crate::fault::{Exit, Fault, StopReason};
use crate::op::Op;
use crate::space::{CodeMap, GuestSpace, HostPage};
use crate::state::{cr, reg, seg};
use crate::vp::{Config, ProcessorMode, Vp};
use std::sync::Arc;

/// Pages of memory from address 0.
pub(super) const PAGES: usize = 8;
/// The address that operands lie around: a page boundary.
pub(super) const DATA: u64 = 0x3000;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

struct Space(Box<[Page]>);

// SAFETY: the pages live in the box, which is never replaced.
unsafe impl GuestSpace for Space {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let pointer = self.0.get_mut(page as usize)?.0.as_mut_ptr();
        Some(HostPage {
            pointer,
            index: page as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}
}

/// In 64-bit mode at CPL 0 with SSE, XSAVE and (where the host has it) AVX
/// enabled.
pub(super) fn machine() -> Vp {
    machine_in(ProcessorMode::Interpret)
}

/// The same with a choice of how code runs.
pub(super) fn machine_in(mode: ProcessorMode) -> Vp {
    let config = Config {
        mode,
        ..Config::default()
    };
    let pages = (0..PAGES).map(|_| Page([0; 4096])).collect();
    let code = Arc::new(CodeMap::new(PAGES, false));
    let features = config.features.clone();
    let mut vp = Vp::new(config, Box::new(Space(pages)), code);
    vp.update_state(|state| {
        state.cr0 = cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
        state.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        state.efer = cr::EFER_LME | cr::EFER_LMA;
        state.xcr0 = features.xcr0();
        state.seg[seg::CS].attributes = 0xa09b;
        state.seg[seg::CS].base = 0;
        state.rip = 0x1000;
    });
    vp
}

/// Switches to 32-bit flat protected mode.
pub(super) fn protected32(vp: &mut Vp) {
    vp.update_state(|state| {
        state.efer = 0;
        for segment in &mut state.seg {
            segment.base = 0;
            segment.limit = 0xffff_ffff;
            segment.attributes = 0xc093;
        }
        state.seg[seg::CS].attributes = 0xc09b;
    });
}

/// Decodes one instruction in the machine's mode.
pub(super) fn decode(vp: &Vp, bytes: &[u8]) -> Op {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len() + 16, 0x90);
    let op = Decoder::new(vp.decode_mode())
        .single(&padded)
        .expect("fits");
    assert_eq!(usize::from(op.length), bytes.len(), "{bytes:02x?}");
    op
}

/// Runs one instruction at RIP. `Err`: the exception.
pub(super) fn execute(vp: &mut Vp, bytes: &[u8]) -> Result<(), Fault> {
    let op = decode(vp, bytes);
    run(vp, &op)
}

/// Runs a decoded instruction.
pub(super) fn run(vp: &mut Vp, op: &Op) -> Result<(), Fault> {
    vp.state.gpr[reg::BLOCK_RIP] = vp.state.rip;
    vp.stop = StopReason::None;
    match (op.run)(vp, op) {
        Ok(()) => Ok(()),
        Err(_) => match vp.stop {
            StopReason::Fault(fault) => Err(fault),
            other => panic!("{other:?}"),
        },
    }
}

/// Runs one instruction at RIP from memory, and HLT behind it: translated at
/// once where the machine translates.
pub(super) fn run_in_place(vp: &mut Vp, bytes: &[u8]) -> Exit {
    const CODE: u64 = 0x1000;
    let mut code = bytes.to_vec();
    code.push(0xf4);
    poke(vp, CODE, &code);
    vp.state.rip = CODE;
    vp.warm = 1;
    vp.run()
}

/// Writes guest memory.
pub(super) fn poke(vp: &mut Vp, at: u64, bytes: &[u8]) {
    vp.store_bytes(at, bytes).expect("memory");
}

/// Reads guest memory.
pub(super) fn peek(vp: &mut Vp, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    vp.load_bytes(at, &mut bytes).expect("memory");
    bytes
}
