//! Which status flags nothing will read.

use crate::Vp;
use crate::mmu::PAGE_MASK;
use crate::state::rflags;
use crate::translate::REGION_MOST;
use crate::{TranslateRequest, mmu};
use iced_x86::{Decoder, DecoderOptions, FlowControl, RflagsBits};

/// Branches that are followed.
const BRANCHES: u32 = 5;
/// Instructions that are looked at: as many as emission sees when it takes
/// flags for dead. A loop of vectors may have nearly as many before the first
/// one that writes flags.
const INSTRUCTIONS: usize = REGION_MOST;

/// The flags of `mask` are all overwritten before any is read by the code that
/// comes next.
pub(super) fn dead(vp: &mut Vp, mask: u64) -> bool {
    let rip = vp.state.rip;
    vp.state.code64() && follow(vp, rip, mask, BRANCHES)
}

fn follow(vp: &mut Vp, mut rip: u64, mut mask: u64, branches: u32) -> bool {
    for _ in 0..INSTRUCTIONS {
        let mut bytes = [0; 15];
        let length = fetch(vp, rip, &mut bytes);
        let mut decoder = Decoder::with_ip(64, &bytes[..length], rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() || bits(instruction.rflags_read()) & mask != 0 {
            return false;
        }
        mask &= !bits(instruction.rflags_modified());
        if mask == 0 {
            return true;
        }
        match instruction.flow_control() {
            FlowControl::Next => rip = instruction.next_ip(),
            FlowControl::UnconditionalBranch | FlowControl::Call
                if instruction.is_jmp_short_or_near() || instruction.is_call_near() =>
            {
                rip = instruction.near_branch_target();
            }
            FlowControl::ConditionalBranch if branches > 0 => {
                let target = instruction.near_branch_target();
                return follow(vp, target, mask, branches - 1)
                    && follow(vp, instruction.next_ip(), mask, branches - 1);
            }
            _ => return false,
        }
    }
    false
}

fn bits(named: u32) -> u64 {
    [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ]
    .iter()
    .filter(|(name, _)| named & name != 0)
    .fold(0, |all, (_, bit)| all | bit)
}

/// Code bytes at a linear address: how many there are.
pub(super) fn fetch(vp: &mut Vp, linear: u64, bytes: &mut [u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        let at = linear.wrapping_add(done as u64);
        let Some(from) = host(vp, at) else {
            break;
        };
        let here = ((0x1000 - (at & PAGE_MASK)) as usize).min(bytes.len() - done);
        crate::host::copy_from(from, &mut bytes[done..done + here]);
        done += here;
    }
    done
}

/// Where a linear address lies in this process, whatever the rights.
pub(super) fn host(vp: &mut Vp, linear: u64) -> Option<*mut u8> {
    let (pointer, _) = place(vp, linear)?;
    Some(pointer.wrapping_add((linear & PAGE_MASK) as usize))
}

/// The page of a linear address: in this process, and its number.
pub(super) fn place(vp: &mut Vp, linear: u64) -> Option<(*mut u8, u32)> {
    let exempt = TranslateRequest {
        write: false,
        execute: false,
        user: false,
        exempt: true,
        mark: false,
    };
    let gpa = if mmu::canonical(linear) {
        vp.translate(linear, exempt).ok()?
    } else {
        return None;
    };
    let page = vp.mmu.host_page(gpa >> 12)?;
    Some((page.pointer, page.index))
}
