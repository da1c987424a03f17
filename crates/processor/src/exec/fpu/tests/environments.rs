//! FNSTENV, FNSAVE, FLDENV, FRSTOR and FNINIT in the 32-bit protected format,
//! against the host. The pointers are left out: the host's are its own.

use super::machine::{DATA, execute, machine, peek, poke};
use super::native::{Context, Runner};
use super::random::Random;
use crate::state::reg;

const FNSTENV: [u8; 2] = [0xd9, 0x33];
const FNSAVE: [u8; 2] = [0xdd, 0x33];
const FLDENV: [u8; 2] = [0xd9, 0x23];
const FRSTOR: [u8; 2] = [0xdd, 0x23];
const FNINIT: [u8; 2] = [0xdb, 0xe3];
const FNCLEX: [u8; 2] = [0xdb, 0xe2];

#[repr(C, align(64))]
struct Memory([u8; 108]);

#[test]
fn environments_equal_the_hosts() {
    let mut random = Random::new(0xe0);
    let mut vp = machine();
    let mut runner = Runner::new();
    let mut context = Context::new();
    let mut memory = Box::new(Memory([0; 108]));
    for bytes in [FNSTENV, FNSAVE, FLDENV, FRSTOR, FNINIT, FNCLEX] {
        runner.prepare(&bytes);
        for _ in 0..5000 {
            let image = random.image(true);
            memory.0.fill_with(|| random.next() as u8);
            for register in memory.0[28..].chunks_exact_mut(10) {
                register.copy_from_slice(&random.extended());
            }
            poke(&mut vp, DATA, &memory.0);
            vp.state.fpu.fxsave = image;
            context.image = image;
            vp.state.gpr[reg::RBX] = DATA;
            context.gpr[reg::RBX] = &raw mut memory.0 as u64;
            runner.run(&mut context);
            assert_eq!(execute(&mut vp, &bytes), Ok(()));
            let ours = peek(&mut vp, DATA, 108);
            assert_eq!(
                ours[..12],
                memory.0[..12],
                "{bytes:02x?}: control, status, tags"
            );
            assert_eq!(ours[28..], memory.0[28..], "{bytes:02x?}: registers");
            let fpu = &vp.state.fpu.fxsave;
            assert_eq!(
                fpu[..5],
                context.image[..5],
                "{bytes:02x?} {:02x?}",
                &memory.0[..12]
            );
            for at in (32..160).step_by(16) {
                assert_eq!(fpu[at..at + 10], context.image[at..at + 10], "{bytes:02x?}");
            }
        }
    }
}
