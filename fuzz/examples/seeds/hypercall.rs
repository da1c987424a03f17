//! Each call once, in each form, and sequences that get somewhere.

use crate::Corpus;
use partita_fuzz::hypercall::{CALLS, MSRS, choice, op};

/// The partition that the harness makes.
pub(crate) const CHILD: u64 = 2;

/// Operations in turn.
#[derive(Clone, Default)]
pub(crate) struct Script(pub(crate) Vec<u8>);

impl Script {
    fn call(mut self, op: u8, choice: u8, code: u16, reps: u16, header: u8, words: &[u64]) -> Self {
        let index = CALLS.iter().position(|call| *call == code).unwrap_or(0);
        let unit = if op == op::ROOT_CALL { 4 } else { 1 };
        let length = (8 * words.len() / unit) as u8;
        self.0.extend_from_slice(&[op, choice, index as u8]);
        self.0.extend_from_slice(&reps.to_le_bytes());
        self.0.extend_from_slice(&[0, header, length]);
        for word in words {
            self.0.extend_from_slice(&word.to_le_bytes());
        }
        self
    }

    /// Operations that were recorded.
    pub(crate) fn then(mut self, operations: &[u8]) -> Self {
        self.0.extend_from_slice(operations);
        self
    }

    pub(crate) fn guest(self, choice: u8, code: u16, reps: u16, header: u8, words: &[u64]) -> Self {
        self.call(op::GUEST_CALL, choice, code, reps, header, words)
    }

    fn root(self, choice: u8, code: u16, reps: u16, words: &[u64]) -> Self {
        self.call(op::ROOT_CALL, choice, code, reps, 0, words)
    }

    pub(crate) fn write_msr(mut self, vp: u8, msr: u32, value: u64) -> Self {
        let index = MSRS.iter().position(|known| *known == msr).unwrap_or(0);
        self.0.extend_from_slice(&[op::WRITE_MSR, vp, index as u8]);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn read_msr(mut self, vp: u8, msr: u32) -> Self {
        let index = MSRS.iter().position(|known| *known == msr).unwrap_or(0);
        self.0.extend_from_slice(&[op::READ_MSR, vp, index as u8]);
        self
    }

    pub(crate) fn write_apic(mut self, vp: u8, register: u16, value: u32) -> Self {
        self.0
            .extend_from_slice(&[op::WRITE_APIC, vp, (register / 4) as u8]);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn exit(mut self, vp: u8, which: u8, value: u64) -> Self {
        self.0.extend_from_slice(&[op::EXIT, vp, which]);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn time(mut self, bits: u8, ticks: u64) -> Self {
        self.0.extend_from_slice(&[op::TIME, bits]);
        self.0.extend_from_slice(&ticks.to_le_bytes());
        self
    }

    /// A guest with its hypercall page, SynIC and APIC in use.
    pub(crate) fn ready() -> Self {
        let mut script = Self::default()
            .write_msr(0, 0x4000_0000, 0x8100_0000_0000_0000)
            .write_msr(0, 0x4000_0001, 0x1_0001)
            .write_msr(0, 0x4000_0021, 0x1_1001);
        for vp in 0..2 {
            script = script
                .write_msr(vp, 0x4000_0080, 1)
                .write_msr(vp, 0x4000_0083, 0x1_2001 + 0x2000 * u64::from(vp))
                .write_msr(vp, 0x4000_0082, 0x1_3001 + 0x2000 * u64::from(vp))
                .write_msr(vp, 0x4000_0092, 0x40)
                .write_apic(vp, 0xf0, 0x1ff);
        }
        script
    }
}

pub(crate) fn seeds(corpus: &mut Corpus) -> std::io::Result<()> {
    for code in CALLS {
        calls(corpus, code)?;
    }
    for msr in MSRS {
        let script = Script::ready().write_msr(0, msr, 1).read_msr(1, msr);
        corpus.add(&script.write_msr(0, msr, u64::MAX).read_msr(0, msr).0)?;
    }
    for (which, value) in (0..12).flat_map(|which| [0, 0xff, 0xfee0_0080].map(|v| (which, v))) {
        corpus.add(
            &Script::ready()
                .exit(0, which, value)
                .exit(1, which, value << 3)
                .0,
        )?;
    }
    sequences(corpus)
}

/// One call by both, slow and fast, simple and with reps and sets.
fn calls(corpus: &mut Corpus, code: u16) -> std::io::Result<()> {
    let words = [CHILD, 0, 1, 0x10, 0x40, 2, 0, 3];
    let own = [u64::MAX, 0xffff_fffe, 0, 0x8000_0000, 0, 1, 1, 3];
    for words in [words, own] {
        for (reps, header) in [(0, 0), (1, 0), (3, 0), (0, 2), (2, 2)] {
            let script = Script::ready();
            corpus.add(&script.clone().guest(0, code, reps, header, &words).0)?;
            let fast = choice::FAST | choice::SECOND_VP;
            corpus.add(&script.clone().guest(fast, code, reps, header, &words).0)?;
            corpus.add(&script.root(choice::LEND, code, reps, &words).0)?;
        }
    }
    Ok(())
}

fn sequences(corpus: &mut Corpus) -> std::io::Result<()> {
    // Ports of the child: a message port and an event port, each connected.
    let message_port = [CHILD, 1, CHILD, 1, 2, 0, 0, 0];
    let script = Script::ready()
        .root(0, 0x95, 0, &message_port)
        .root(0, 0x96, 0, &[CHILD, 1, CHILD, 1, 1, 0, 0])
        .guest(0, 0x5c, 0, 0, &[1, 4 << 32 | 1, 0x1234])
        .guest(0, 0x5c, 0, 0, &[1, 4 << 32 | 1, 0x1234])
        .write_msr(0, 0x4000_0084, 0)
        .guest(choice::FAST, 0x5d, 0, 0, &[1]);
    corpus.add(&script.0)?;
    // Timers: one-shot, periodic, direct; then time.
    let script = Script::ready()
        .write_msr(0, 0x4000_00b1, 1000)
        .write_msr(0, 0x4000_00b0, 0x2_000b)
        .write_msr(0, 0x4000_00b3, 5000)
        .write_msr(0, 0x4000_00b2, 0x1_041b)
        .time(40, 1 << 30)
        .read_msr(0, 0x4000_0020)
        .time(60, 1 << 59)
        .read_msr(0, 0x4000_0020);
    corpus.add(&script.0)?;
    // The APIC's timer, IPIs to everybody, INIT and start-up, x2APIC.
    let script = Script::ready()
        .write_apic(0, 0x3e0, 0xb)
        .write_apic(0, 0x320, 0x2_0030)
        .write_apic(0, 0x380, 1)
        .time(50, 1 << 40)
        .write_apic(0, 0x310, 1 << 24)
        .write_apic(0, 0x300, 0x4500)
        .write_apic(0, 0x300, 0x4608)
        .write_apic(0, 0x300, 0xc_0031)
        .write_apic(0, 0xb0, 0)
        .write_msr(0, 0x1b, 0xfee0_0d00)
        .write_msr(0, 0x830, 0xffff_ffff_000c_0040)
        .write_msr(0, 0x80b, 0);
    corpus.add(&script.0)?;
    // Life and death of a partition.
    let script = Script::ready()
        .root(0, 0x40, 0, &[0, 0, 0])
        .root(0, 0x48, 2, &[3, 0xa0, 0xa1])
        .root(0, 0x41, 0, &[3])
        .root(0, 0x4b, 2, &[3, 0, 3, 0x41, 0x42])
        .root(0, 0x4e, 0, &[3, 0, 0])
        .root(0, 0x4c, 2, &[3, 0, 0])
        .root(0, 0x4f, 0, &[CHILD, 1])
        .root(0, 0x42, 0, &[CHILD])
        .root(0, 0x49, 4, &[CHILD, 0])
        .root(0, 0x43, 0, &[CHILD]);
    corpus.add(&script.0)?;
    // Intercepts of CPUID, MSRs and ports, and registers while they are open.
    let open = choice::UNANSWERED;
    let script = Script::ready()
        .root(0, 0x4d, 0, &[CHILD, 1 << 32 | 4, 0])
        .exit(open, 0, 1)
        .root(0, 0x50, 3, &[CHILD, 0, 0x0002_0000_0002_0001, 0x1_0000])
        .root(choice::LEND, 0x51, 1, &[CHILD, 0, 0x2_0000, 0, 7, 0])
        .root(0, 0x51, 1, &[CHILD, 0, 1, 0, 0, 0])
        .exit(0, 11, 0);
    corpus.add(&script.0)?;
    // Results in registers: own registers, and indices of APIC ids.
    let (own, first) = (u64::MAX, 0xffff_fffe);
    let names = 0x0009_0001_0009_0000;
    let script = Script::ready()
        .guest(choice::FAST, 0x50, 2, 0, &[own, first, names])
        .guest(choice::FAST, 0x50, 4, 0, &[own, first, names, names])
        .guest(choice::FAST, 0x9a, 3, 0, &[own, 0, 1 << 32, 2]);
    corpus.add(&script.0)?;
    // The second processor sleeps until it is started with a state.
    let mut start = vec![own, 1];
    start.resize(30, 0);
    let script = Script::ready()
        .write_apic(0, 0x310, 1 << 24)
        .write_apic(0, 0x300, 0x4500)
        .exit(1, 2, 0)
        .guest(0, 0x99, 0, 0, &start)
        .exit(1, 2, 0);
    corpus.add(&script.0)?;
    // A crash with a message, and a reset.
    let script = Script::ready()
        .write_msr(0, 0x4000_0103, 0x2000)
        .write_msr(0, 0x4000_0104, 0x2001)
        .write_msr(0, 0x4000_0105, 3 << 62)
        .write_msr(0, 0x4000_0003, 1);
    corpus.add(&script.0)
}
