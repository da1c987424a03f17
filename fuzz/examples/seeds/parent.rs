//! What a parent does to its child, call by call as `winhv` makes them.

use crate::Corpus;
use crate::hypercall::{CHILD, Script};
use crate::recorder::{Recorder, record};
use partita_fuzz::hypercall::choice;
use tlfs::{
    HvGpaMapping, HvInterceptAccessMask, HvInterceptType, HvInterruptControl, HvInterruptType,
    HvMapGpaFlags, HvMessage, HvMessageType, HvPartitionPropertyCode, HvPortInfo, HvPortType,
    HvRegisterName, HvTranslateGvaFlags,
};
use winhv::WinHv;

const ROOT: u64 = 1;

/// Names of registers: the first of each group and how many follow.
const REGISTERS: [(u32, u32); 18] = [
    (0x0, 8),
    (0x200, 8),
    (0x210, 8),
    (0x240, 8),
    (0x1_0000, 8),
    (0x2_0000, 18),
    (0x3_0000, 4),
    (0x4_0000, 6),
    (0x5_0000, 6),
    (0x6_0000, 8),
    (0x7_0000, 2),
    (0x8_0000, 32),
    (0x8_4800, 64),
    (0x9_0000, 24),
    (0xa_0000, 24),
    (0xb_0000, 8),
    (0xc_0000, 2),
    (0xf000_0000, 1),
];

/// Every seed starts with a guest that is set up, and ends with it running.
fn add(
    corpus: &mut Corpus,
    lend: bool,
    work: impl FnOnce(&WinHv<Recorder>),
    after: impl FnOnce(Script) -> Script,
) -> std::io::Result<()> {
    let calls = record(if lend { choice::LEND } else { 0 }, work);
    let script = Script::ready().then(&calls).exit(0, 2, 0).exit(1, 2, 0);
    corpus.add(&after(script).0)
}

pub(crate) fn seeds(corpus: &mut Corpus) -> std::io::Result<()> {
    registers(corpus)?;
    interrupts(corpus)?;
    ports(corpus)?;
    properties(corpus)?;
    memory(corpus)?;
    intercepts(corpus)
}

fn registers(corpus: &mut Corpus) -> std::io::Result<()> {
    for (first, count) in REGISTERS {
        let names: Vec<_> = (first..first + count).map(HvRegisterName).collect();
        for value in [0_u64, 1, 0x31, 0x8000_0301, u64::MAX] {
            let set: Vec<_> = names.iter().map(|name| (*name, value.into())).collect();
            // Results do not matter here: the recorder says yes to all.
            let work = |winhv: &WinHv<Recorder>| {
                for part in set.chunks(16) {
                    let _ = winhv.set_vp_registers(CHILD, 0, part);
                }
                let _ = winhv.vp_registers(CHILD, 0, &names);
            };
            add(corpus, value & 1 != 0, work, |script| script)?;
        }
    }
    Ok(())
}

fn interrupts(corpus: &mut Corpus) -> std::io::Result<()> {
    for kind in 0..10 {
        for (level, logical, destination) in [
            (false, false, 0),
            (true, true, 1),
            (true, false, 0xffff_ffff),
        ] {
            let control = HvInterruptControl::new(HvInterruptType(kind), level, logical);
            let work = |winhv: &WinHv<Recorder>| {
                for vector in [0x31, 8] {
                    let _ = winhv.assert_virtual_interrupt(CHILD, control, destination, vector);
                }
                let _ = winhv.clear_virtual_interrupt(CHILD);
            };
            let after = |script: Script| {
                let lint = script
                    .write_apic(0, 0x350, 0x700)
                    .write_apic(0, 0x360, 0x400);
                lint.write_apic(0, 0xb0, 0).write_msr(0, 0x4000_0070, 0)
            };
            add(corpus, false, work, after)?;
        }
    }
    Ok(())
}

fn ports(corpus: &mut Corpus) -> std::io::Result<()> {
    let message = HvMessage::new(HvMessageType(1), 0, &[7; 16]);
    for (owner, other) in [(ROOT, CHILD), (CHILD, ROOT), (CHILD, CHILD)] {
        let work = |winhv: &WinHv<Recorder>| {
            for (id, vp) in [(1, 0), (3, u32::MAX)] {
                let _ = winhv.create_port(owner, id, other, HvPortInfo::message(2, vp));
                let _ = winhv.create_port(owner, id + 1, other, HvPortInfo::event(2, vp, 8, 16));
                let _ = winhv.connect_port(other, id, owner, id, HvPortType::MESSAGE);
                let _ = winhv.connect_port(other, id + 1, owner, id + 1, HvPortType::EVENT);
                let _ = winhv.post_message(id, 1, &[1, 2, 3, 4]);
                let _ = winhv.signal_event(id + 1, 3);
            }
            let _ = winhv.post_message_direct(CHILD, 1, 2, &message);
            let _ = winhv.signal_event_direct(CHILD, 1, 2, 9);
        };
        let after = |script: Script| {
            let calls = script
                .guest(0, 0x5c, 0, 0, &[1, 8 << 32 | 5, 0x1234])
                .guest(choice::FAST, 0x5d, 0, 0, &[2 | 3 << 32])
                .guest(0, 0x5d, 0, 0, &[4])
                .write_msr(1, 0x4000_0084, 0);
            let last = record(0, |winhv| {
                let _ = winhv.disconnect_port(other, 1);
                let _ = winhv.delete_port(owner, 2);
            });
            calls.then(&last).exit(0, 2, 0)
        };
        add(corpus, false, work, after)?;
    }
    Ok(())
}

fn properties(corpus: &mut Corpus) -> std::io::Result<()> {
    let codes = [
        0x1_0000, 0x1_0001, 0x2_0000, 0x2_0001, 0x2_0002, 0x2_0003, 0x3_0003, 0x3_0005, 0x5_0000,
        0x5_0003, 0x5_0010, 0x5_0017, 0x6_0000, 0x6_0006, 0x6_0009, 0x6_000a, 0x7_0000, 0x8_0000,
    ];
    for code in codes.map(HvPartitionPropertyCode) {
        for value in [0, 1, 0x1000, u64::MAX] {
            let work = |winhv: &WinHv<Recorder>| {
                let _ = winhv.set_partition_property(CHILD, code, value);
                let _ = winhv.partition_property(CHILD, code);
            };
            let again = record(0, |winhv| {
                let _ = winhv.set_partition_property(CHILD, code, 0);
            });
            let after = |script: Script| script.then(&again).read_msr(0, 0x4000_0020).exit(0, 2, 0);
            add(corpus, false, work, after)?;
        }
    }
    Ok(())
}

fn memory(corpus: &mut Corpus) -> std::io::Result<()> {
    let rights = HvMapGpaFlags::READABLE;
    let sparse =
        [(0x60, 0xa0), (0x62, 0xa1)].map(|(target_gpa_page, source_gpa_page)| HvGpaMapping {
            target_gpa_page,
            source_gpa_page,
        });
    let work = |winhv: &WinHv<Recorder>| {
        let _ = winhv.unmap_gpa_pages(CHILD, 0, 4, false);
        let _ = winhv.map_gpa_pages(CHILD, 0x50, 0x90..0x94, rights);
        let _ = winhv.map_sparse_gpa_pages(CHILD, sparse, rights);
        let _ = winhv.read_gpa(CHILD, 0, 0x1_0000, &mut [0; 16]);
        let _ = winhv.write_gpa(CHILD, 0, 0x4_0000, &[1, 2, 3]);
        let _ = winhv.memory_balance(CHILD);
        let _ = winhv.withdraw_memory(CHILD, 20);
        let flags = HvTranslateGvaFlags::from_bits_retain(3);
        let _ = winhv.translate_virtual_address(CHILD, 0, 5, flags);
        let _ = winhv.next_child_partition(ROOT, 0);
    };
    add(corpus, true, work, |script| script)?;
    let work = |winhv: &WinHv<Recorder>| {
        let _ = winhv.delete_vp(CHILD, 1);
        let _ = winhv.withdraw_memory(CHILD, 20);
        let _ = winhv.create_vp(CHILD, 1);
        let _ = winhv.finalize_partition(CHILD);
        let _ = winhv.withdraw_memory(CHILD, 20);
        let _ = winhv.delete_partition(CHILD);
    };
    add(corpus, false, work, |script| script)
}

fn intercepts(corpus: &mut Corpus) -> std::io::Result<()> {
    for kind in 0..10 {
        for parameter in [0, 1, 0x80, 0x4000_0000, 0xc000_0080] {
            let work = |winhv: &WinHv<Recorder>| {
                let access = HvInterceptAccessMask::all();
                let kind = HvInterceptType(kind);
                let _ = winhv.install_intercept(CHILD, kind, parameter, access);
            };
            let after = |script: Script| {
                script
                    .exit(choice::UNANSWERED, 1, parameter)
                    .exit(1, 0, parameter)
                    .exit(1, 4, parameter)
                    .read_msr(1, 0x10)
            };
            add(corpus, false, work, after)?;
        }
    }
    Ok(())
}
