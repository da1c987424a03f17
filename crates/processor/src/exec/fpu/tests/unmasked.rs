//! Unmasked SSE exceptions: #XM must come where the host raises SIGFPE, with
//! the flags that the host has set then, and with the destination untouched.

use super::differential::{Bench, codes, encode, instruction};
use super::machine;
use super::random::Random;
use super::vex::{self, vex_codes};
use crate::fault::vector;
use crate::native::{Form, VexForm};
use crate::state::cr;
use iced_x86::Mnemonic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Where the handler goes on: behind the instruction under test.
static RESUME: AtomicU64 = AtomicU64::new(0);
/// MXCSR when SIGFPE came, with bit 31; 0: it did not.
static CAUGHT: AtomicU32 = AtomicU32::new(0);
/// One test at a time has the signal.
static SIGNAL: Mutex<()> = Mutex::new(());

extern "C" fn on_fpe(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO,
    // and its floating-point state is there on x86-64.
    unsafe {
        let state = (*context).uc_mcontext.fpregs;
        CAUGHT.store((*state).mxcsr | 1 << 31, Ordering::SeqCst);
        (*state).mxcsr |= 0x1f80;
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = RESUME.load(Ordering::SeqCst) as i64;
    }
}

fn install() {
    // SAFETY: the handler is async-signal-safe: atomics and its own context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fpe as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn exceptions_equal_the_host() {
    let _signal = SIGNAL.lock().expect("no test has failed with the signal");
    install();
    let mut bench = Bench::new();
    let (mut raised, mut quiet) = (0, 0);
    for code in codes().chain(vex_codes()) {
        let mut random = Random::new(0xfe ^ code as u64);
        for _ in 0..20 {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            let uses = Form::new(&instruction).is_some_and(|form| form.uses_mxcsr())
                || VexForm::new(&instruction).is_some_and(|form| form.uses_mxcsr());
            if !uses {
                continue;
            }
            let bytes = encode(&instruction);
            let op = machine::decode(&bench.vp, &bytes);
            bench.runner.prepare(&bytes);
            for _ in 0..100 {
                bench.fill(&mut random, false, false, true);
                RESUME.store(bench.runner.after, Ordering::SeqCst);
                CAUGHT.store(0, Ordering::SeqCst);
                let before = bench.vp.state.fpu.clone();
                bench.runner.run(&mut bench.context);
                let caught = CAUGHT.load(Ordering::SeqCst);
                let outcome = machine::run(&mut bench.vp, &op);
                let state = &bench.vp.state;
                if caught == 0 {
                    assert_eq!(outcome, Ok(()), "{instruction} {before:02x?}");
                    let difference = bench.difference();
                    assert_eq!(difference, None, "{instruction}");
                    quiet += 1;
                    continue;
                }
                let fault = outcome.expect_err("the host raised an exception");
                assert_eq!(fault.vector, vector::XM, "{instruction}");
                // The dot products round more than once: see `unmasked` in `vector`.
                let unsure = match code.mnemonic() {
                    Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd => 0x3f,
                    // And so, where a result is out of range, with these.
                    _ if vex::fused(code) => 0x20,
                    _ => 0,
                };
                let (ours, host) = (state.fpu.mxcsr() | unsure, caught & 0xffff | unsure);
                assert_eq!(ours, host, "{instruction}: {ours:#x}, host {host:#x}");
                assert_eq!(state.fpu.fxsave[..24], before.fxsave[..24], "{instruction}");
                assert_eq!(state.fpu.fxsave[28..], before.fxsave[28..], "{instruction}");
                assert_eq!(state.fpu.upper, before.upper, "{instruction}");
                raised += 1;
            }
        }
    }
    assert!(
        raised > 1000 && quiet > 1000,
        "{raised} raised, {quiet} did not"
    );
}

#[test]
fn without_osxmmexcpt_it_is_an_undefined_opcode() {
    let mut vp = machine::machine();
    vp.update_state(|state| state.cr4 &= !cr::CR4_OSXMMEXCPT);
    vp.state.fpu.set_mxcsr(0x1d80);
    vp.state.fpu.set_xmm(1, u128::from(1f32.to_bits()));
    // DIVSS XMM1, XMM2: 1 / 0.
    let fault = machine::execute(&mut vp, &[0xf3, 0x0f, 0x5e, 0xca]).expect_err("1 / 0");
    assert_eq!(fault.vector, vector::UD);
    assert_eq!(vp.state.fpu.mxcsr(), 0x1d84);
}
