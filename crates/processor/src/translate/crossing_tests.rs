//! Code that runs on into a page that comes and goes.

use super::tests::{STACK, machine};
use crate::Vp;
use crate::fault::Exit;
use crate::state::{cr, reg};
use crate::vp::ProcessorMode;
use std::time::{Duration, Instant};

const START: u64 = 0x1f00;
const SECOND: u64 = 0x2000;
/// Page tables from here on: four levels, one page each.
const TABLES: u64 = 0x4000;
const LAST_TABLE: u64 = TABLES + 0x3000;

/// Thirty rounds of a loop with `MOV EAX, imm32` across the boundary.
fn place(vp: &mut Vp, second: u64, high: u16) {
    let first = [
        0xbd, 30, 0, 0, 0, // mov ebp, 30
        0xe9, 0xf4, 0, 0, 0, // jmp 1ffe
    ];
    vp.store_bytes(START, &first).expect("memory");
    vp.store_bytes(SECOND - 2, &[0xb8, 0x11]).expect("memory");
    let [low, top] = high.to_le_bytes();
    let rest = [
        0x22, low, top, // the rest of MOV
        0xff, 0xcd, // dec ebp
        0x0f, 0x85, 0xfa, 0xfe, 0xff, 0xff, // jne 1f05
        0xf4, // hlt
    ];
    vp.store_bytes(second, &rest).expect("memory");
}

fn map(vp: &mut Vp, linear: u64, entry: u64) {
    let at = LAST_TABLE + (linear >> 12) * 8;
    vp.store_bytes(at, &entry.to_le_bytes()).expect("memory");
    vp.flush_page(linear);
}

fn paging(vp: &mut Vp) {
    for level in 0..3 {
        let entry: u64 = (TABLES + 0x1000 * (level + 1)) | 3;
        vp.store_bytes(TABLES + 0x1000 * level, &entry.to_le_bytes())
            .expect("memory");
    }
    for page in 0..16 {
        map(vp, page << 12, page << 12 | 3);
    }
    vp.update_state(|state| {
        state.cr3 = TABLES;
        state.cr0 |= cr::CR0_PG;
    });
}

/// Runs the loop; EAX at its end.
fn run(vp: &mut Vp) -> (Exit, u64) {
    vp.shutdown = false;
    vp.state.rip = START;
    vp.state.gpr[reg::RSP] = STACK;
    let requests = vp.requests();
    let limit = Instant::now() + Duration::from_secs(60);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = {
        let done = done.clone();
        std::thread::spawn(move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if Instant::now() > limit {
                    requests.kick();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let exit = vp.run();
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    watch.join().expect("the watch");
    (exit, vp.state.gpr[reg::RAX])
}

#[test]
fn the_second_page_may_come_and_go() {
    for mode in [ProcessorMode::Interpret, ProcessorMode::Translate] {
        let mut vp = machine(mode, 0);
        place(&mut vp, SECOND, 0x4433);
        // Another page to be mapped in its place.
        place(&mut vp, 0x3000, 0x6655);
        paging(&mut vp);
        assert_eq!(run(&mut vp), (Exit::Halt, 0x4433_2211), "{mode:?}");
        map(&mut vp, SECOND, 0);
        assert_eq!(run(&mut vp).0, Exit::TripleFault, "{mode:?}: not mapped");
        map(&mut vp, SECOND, SECOND | 3);
        assert_eq!(run(&mut vp), (Exit::Halt, 0x4433_2211), "{mode:?}");
        map(&mut vp, SECOND, 0x3003);
        assert_eq!(run(&mut vp), (Exit::Halt, 0x6655_2211), "{mode:?}");
        map(&mut vp, SECOND, SECOND | 3);
        assert_eq!(run(&mut vp), (Exit::Halt, 0x4433_2211), "{mode:?}");
        // Other code in the second page alone.
        place(&mut vp, SECOND, 0x8877);
        assert_eq!(run(&mut vp), (Exit::Halt, 0x8877_2211), "{mode:?}");
    }
}
