//! Runs a program in two machines, compares, and makes what differs small.

use super::assemble::{Assembled, assemble};
use super::handlers::{FRAME_FLAGS, INTERRUPT};
use super::machine::*;
use super::program::{Between, Piece, Program};
use super::watch::{INTERPRETED, TRANSLATED, Watch};
use crate::check::Record;
use crate::vp::Event;
use crate::{Completion, Exit, ProcessorMode, Vp, reg, rflags};
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Programs are not made smaller for longer than this.
const SHRINKING: Duration = Duration::from_secs(20);
/// Exits that are remembered.
const MOST_EXITS: usize = 4096;

/// What a run leaves behind.
#[derive(PartialEq)]
struct End {
    values: Vec<u64>,
    exits: Vec<(Exit, u64)>,
    strayed: bool,
    hung: bool,
    unknown: Option<u64>,
}

/// The result of a comparison.
pub(super) enum Verdict {
    Same,
    /// The program does not end, or has no room.
    Useless,
    Different(String),
}

/// Two machines, and states that the interpreter has been in.
pub(super) struct Pair {
    interpreter: Machine,
    translator: Machine,
    boundaries: HashSet<u64>,
    hasher: RandomState,
    pub(super) blocks: u64,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self {
            interpreter: Machine::new(ProcessorMode::Interpret),
            translator: Machine::new(ProcessorMode::Translate),
            boundaries: HashSet::new(),
            hasher: RandomState::new(),
            blocks: 0,
        }
    }

    /// The host can run the translator.
    pub(super) fn translates(&self) -> bool {
        self.translator.vp.translates()
    }

    /// Runs a program in both.
    pub(super) fn compare(&mut self, program: &Program, watch: &Watch) -> Verdict {
        let Some(made) = assemble(program) else {
            return Verdict::Useless;
        };
        let mut start = program.start.clone();
        start.rip = made.entry;
        start.gpr[reg::RSP] = stack_pointer(program);
        self.interpreter.load(&made.image, &program.setup, &start);
        self.translator.load(&made.image, &program.setup, &start);
        self.translator.vp.warm = program.warm;
        self.translator.vp.hot = 1 + u64::from(program.warm) / 4;
        for round in 0..=program.rounds.len() {
            if round > 0 {
                let between = program.rounds[round - 1];
                for machine in [&mut self.interpreter, &mut self.translator] {
                    apply(machine, between, &made);
                    again(machine, program, &start);
                }
            }
            let before = self.interpreter.vp.retired();
            self.boundaries.clear();
            let seen = program.requests.then_some(&mut self.boundaries);
            // Code that overwrote itself may ask for random numbers.
            self.interpreter.vp.record = Record::Keep(VecDeque::new()).into();
            let expected = run(&mut self.interpreter, watch, seen, &self.hasher);
            if let Record::Keep(values) = self.interpreter.vp.record.take() {
                self.translator.vp.record = Record::Play(values).into();
            }
            if expected.hung {
                return Verdict::Useless;
            }
            self.blocks += self.interpreter.vp.retired().wrapping_sub(before);
            let known = program.requests.then_some(&self.boundaries);
            let seen = if let Some(known) = known {
                run_interrupted(&mut self.translator, watch, known, &self.hasher)
            } else {
                run(&mut self.translator, watch, None, &self.hasher)
            };
            let memory = self.memory_difference();
            if expected != seen || memory.is_some() {
                return Verdict::Different(describe(
                    program, &made, round, &start, &expected, &seen, memory,
                ));
            }
        }
        Verdict::Same
    }

    /// The first eight bytes that differ: guest-physical address, and both.
    fn memory_difference(&mut self) -> Option<(u64, u64, u64)> {
        let kernel = page::KERNEL + kernel::INTERRUPT_STACK / PAGE;
        let frame = page::KERNEL * PAGE + FRAME_FLAGS;
        for number in (0..PAGES).filter(|&number| number != kernel) {
            let (one, other) = (self.interpreter.page(number), self.translator.page(number));
            if one == other {
                continue;
            }
            for at in (0..PAGE as usize).step_by(8) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&one[at..at + 8]);
                let mut first = u64::from_le_bytes(bytes);
                bytes.copy_from_slice(&other[at..at + 8]);
                let mut second = u64::from_le_bytes(bytes);
                let gpa = number * PAGE + at as u64;
                if gpa == frame {
                    first &= !rflags::ARITH;
                    second &= !rflags::ARITH;
                }
                if first != second {
                    return Some((gpa, first, second));
                }
            }
        }
        None
    }
}

fn stack_pointer(program: &Program) -> u64 {
    let seed = program.data_seed;
    let odd = if seed.is_multiple_of(16) {
        seed >> 8 & 7
    } else {
        0
    };
    STACK + 3 * PAGE + (seed >> 16 & 0x3f8) - 0x180 + odd
}

fn apply(machine: &mut Machine, between: Between, made: &Assembled) {
    match between {
        Between::Nothing => {}
        Between::Device(number, value) => {
            if let Some(site) = made.sites.get(number % made.sites.len().max(1)) {
                let gpa = page::CODE * PAGE + (site - 4 - CODE);
                machine.poke(gpa, &value.to_le_bytes());
            }
        }
        Between::Flush => machine.vp.flush_tlb(),
        Between::FlushPage(linear) => machine.vp.flush_page(linear),
        Between::Functions => {
            let entry = table_entry(&made.image, 0, FUNCTIONS) - PHYSICAL;
            let offset = (entry % PAGE) as usize;
            let change = (page::FUNCTIONS[0] ^ page::FUNCTIONS[1]) * PAGE;
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&machine.page(entry / PAGE)[offset..offset + 8]);
            let value = u64::from_le_bytes(bytes) ^ change;
            machine.poke(entry, &value.to_le_bytes());
            machine.vp.flush_page(FUNCTIONS);
        }
    }
}

/// Starts the program again, in whatever state memory is.
fn again(machine: &mut Machine, program: &Program, start: &Start) {
    let budget = page::KERNEL * PAGE + kernel::VARIABLES + variable::BUDGET;
    machine.poke(budget, &60u32.to_le_bytes());
    machine.restart(&program.setup, start);
}

/// An answer that depends on the question only.
fn answer(exit: Exit) -> Completion {
    match exit {
        Exit::IoRead { port, size } => {
            Completion::Value(u64::from(port) * 0x1357 + u64::from(size))
        }
        Exit::MmioRead { gpa, size } => Completion::Value((gpa ^ u64::from(size)).rotate_left(17)),
        Exit::ReadMsr { index } => Completion::Value(u64::from(index) << 7),
        Exit::ReadCr8 => Completion::Value(5),
        Exit::Cpuid { default, .. } => Completion::Cpuid(default),
        _ => Completion::Done,
    }
}

/// Runs to the first HLT.
fn run(
    machine: &mut Machine,
    watch: &Watch,
    mut seen: Option<&mut HashSet<u64>>,
    hasher: &RandomState,
) -> End {
    let mut exits = Vec::new();
    let limit = if machine.vp.translates() {
        TRANSLATED
    } else {
        INTERPRETED
    };
    watch.start(machine.vp.requests(), limit);
    let hung = loop {
        let exit = match &mut seen {
            None => machine.vp.run(),
            Some(seen) => {
                seen.insert(hash(&machine.vp, hasher));
                match machine.vp.step() {
                    Some(exit) => exit,
                    None if watch.expired() => break true,
                    None => continue,
                }
            }
        };
        match exit {
            Exit::Halt | Exit::TripleFault => break false,
            Exit::Kicked if watch.expired() => break true,
            Exit::Kicked => {}
            other => note(&mut exits, other, &machine.vp),
        }
        machine.vp.complete(answer(exit));
    };
    watch.stop();
    end(machine, exits, hung, None)
}

fn note(exits: &mut Vec<(Exit, u64)>, exit: Exit, vp: &Vp) {
    if exits.len() < MOST_EXITS {
        exits.push((exit, vp.state.rip));
    }
}

/// The same, with requests at any time and interrupts where they may come.
fn run_interrupted(
    machine: &mut Machine,
    watch: &Watch,
    known: &HashSet<u64>,
    hasher: &RandomState,
) -> End {
    let mut exits = Vec::new();
    let mut unknown = None;
    watch.start(machine.vp.requests(), TRANSLATED);
    let kicker = watch.kick(machine.vp.requests());
    let hung = loop {
        let exit = machine.vp.run();
        match exit {
            Exit::Halt | Exit::TripleFault => break false,
            Exit::Kicked => {
                if watch.expired() {
                    break true;
                }
                let inside = machine.vp.state.rip.wrapping_sub(KERNEL + kernel::HANDLERS);
                if inside >= PAGE && !known.contains(&hash(&machine.vp, hasher)) {
                    unknown.get_or_insert(machine.vp.state.rip);
                }
                machine.vp.complete(Completion::Done);
                if inside >= PAGE
                    && machine.vp.can_interrupt()
                    && hasher.hash_one(kicker.count()) & 1 == 0
                {
                    machine.vp.inject(Event::Interrupt(INTERRUPT));
                }
                continue;
            }
            other => note(&mut exits, other, &machine.vp),
        }
        machine.vp.complete(answer(exit));
    };
    drop(kicker);
    watch.stop();
    // The last request may be outstanding still.
    machine.vp.peer.requests.take();
    end(machine, exits, hung, unknown)
}

/// Registers at an instruction boundary; status flags may be dead there.
fn hash(vp: &Vp, hasher: &RandomState) -> u64 {
    let state = &vp.state;
    hasher.hash_one((
        &state.gpr[..16],
        state.rip,
        state.cr3,
        &state.fpu.fxsave[160..416],
    ))
}

fn end(machine: &mut Machine, exits: Vec<(Exit, u64)>, hung: bool, unknown: Option<u64>) -> End {
    End {
        values: values(&machine.vp)
            .into_iter()
            .map(|(_, value)| value)
            .collect(),
        exits,
        strayed: machine.strayed(),
        hung,
        unknown,
    }
}

/// Everything that a program can see, by name.
fn values(vp: &Vp) -> Vec<(String, u64)> {
    let mut all = crate::check::values(&vp.state);
    all.push(("attention".into(), u64::from(vp.attention)));
    all
}

fn describe(
    program: &Program,
    made: &Assembled,
    round: usize,
    start: &Start,
    expected: &End,
    seen: &End,
    memory: Option<(u64, u64, u64)>,
) -> String {
    let mut text = listing(program, made);
    let _ = writeln!(text, "  difference after round {round}");
    let _ = writeln!(text, "  start: gpr {:x?}", start.gpr);
    let names = values(&Machine::new(ProcessorMode::Interpret).vp);
    for (i, (name, _)) in names.iter().enumerate() {
        let (one, other) = (expected.values[i], seen.values[i]);
        if one != other {
            let _ = writeln!(
                text,
                "  * {name:10} interpreter {one:016x} translator {other:016x}"
            );
        } else if i < 18 {
            let _ = writeln!(text, "    {name:10} {one:016x}");
        }
    }
    if let Some((gpa, one, other)) = memory {
        let _ = writeln!(
            text,
            "  * memory at {gpa:#x} ({}): interpreter {one:016x} translator {other:016x}",
            place(gpa)
        );
    }
    if expected.exits != seen.exits {
        let at = expected
            .exits
            .iter()
            .zip(&seen.exits)
            .take_while(|(a, b)| a == b)
            .count();
        let _ = writeln!(
            text,
            "  * exit {at}: interpreter {:x?} translator {:x?}",
            expected.exits.get(at),
            seen.exits.get(at)
        );
    }
    for (name, end) in [("interpreter", expected), ("translator", seen)] {
        if end.strayed {
            let _ = writeln!(text, "  * {name}: stored beyond a page of memory");
        }
        if end.hung {
            let _ = writeln!(text, "  * {name}: does not end");
        }
        if let Some(rip) = end.unknown {
            let _ = writeln!(
                text,
                "  * {name}: interrupted in a state that is none, at {rip:#x}"
            );
        }
    }
    text
}

fn place(gpa: u64) -> String {
    let number = gpa / PAGE;
    let name = match number {
        page::KERNEL..16 => "kernel",
        16..20 => "code",
        20 | 21 => "functions",
        page::COUNTERS => "counters",
        24..36 => "data",
        36..52 => "own data",
        52..56 => "stack",
        _ => "tables",
    };
    format!("{name} page {number}")
}

fn listing(program: &Program, made: &Assembled) -> String {
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  {:?}\n  loops {} in {:?}, bases {:x?}, warm {}, rounds {:?}, requests {}",
        program.setup,
        program.loops,
        program.counter,
        program.bases,
        program.warm,
        program.rounds,
        program.requests
    );
    let mut formatter = IntelFormatter::new();
    let mut list = |code: &[u8], at: u64, text: &mut String| {
        let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let mut line = String::new();
            formatter.format(&instruction, &mut line);
            let _ = writeln!(text, "    {:x}  {line}", instruction.ip());
            if matches!(instruction.code(), iced_x86::Code::Int3) {
                break;
            }
        }
    };
    // What stands behind the last function are places for labels only.
    let nops = made
        .code
        .iter()
        .rev()
        .take_while(|&&byte| byte == 0x90)
        .count();
    list(&made.code[..made.code.len() - nops], made.entry, &mut text);
    if program
        .body
        .iter()
        .any(|piece| piece.any(&|p| matches!(p, Piece::Far(..))))
    {
        for number in 0..super::program::FAR {
            let offset = 0x100 + number * super::program::FAR_SIZE;
            let at = (page::FUNCTIONS[0] * PAGE + offset) as usize;
            let code = &made.image.0[at..at + super::program::FAR_SIZE as usize];
            list(code, FUNCTIONS + offset, &mut text);
        }
    }
    text
}

/// Makes a program that differs smaller for as long as it still does, in
/// machines of its own: the smallest, and its description.
pub(super) fn shrink(program: &Program, watch: &Watch) -> Option<(Program, String)> {
    let fails = |candidate: &Program| match Pair::new().compare(candidate, watch) {
        Verdict::Different(text) => Some(text),
        _ => None,
    };
    let mut text = fails(program)?;
    let mut best = program.clone();
    let since = Instant::now();
    loop {
        let mut smaller = false;
        for candidate in best.smaller() {
            if since.elapsed() > SHRINKING {
                return Some((best, text));
            }
            if let Some(found) = fails(&candidate) {
                (best, text, smaller) = (candidate, found, true);
                break;
            }
        }
        if !smaller {
            return Some((best, text));
        }
    }
}
