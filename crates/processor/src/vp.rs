//! A virtual processor: state, memory management, block cache, run loop.

use crate::block::{Block, Blocks};
use crate::check::{Checker, Record};
use crate::fault::{Completion, Exit, Fault, Stop, StopReason, vector};
use crate::mmu::Mmu;
use crate::native::Native;
use crate::op::Op;
use crate::requests::{Peer, Requests};
use crate::space::{CodeMap, GuestSpace};
use crate::state::{State, cr, reg, rflags, seg};
use crate::translate::{Link, Ran, Translator};
use std::sync::Arc;

/// How a virtual processor is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Physical address bits, 36 to 52.
    pub physical_bits: u32,
    /// What CPUID offers; see [`crate::cpuid`].
    pub features: crate::cpuid::Features,
    /// How code is run.
    pub mode: ProcessorMode,
}

/// How a virtual processor runs code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProcessorMode {
    /// Instruction by instruction: the reference.
    #[default]
    Interpret,
    /// Hot code of 64-bit mode is translated. Hosts that lack what this takes
    /// (BMI1, BMI2, FSGSBASE) interpret.
    Translate,
    /// Translated, and every step of it compared with the interpreter's: see
    /// [`Vp::difference`]. For one processor per guest.
    Check,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            physical_bits: 46,
            features: crate::cpuid::Features::host(),
            mode: ProcessorMode::default(),
        }
    }
}

/// An event that waits to be delivered before the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception, with its error code where the vector has one.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code.
        error: u32,
    },
}

/// The answers that an instruction has already got, in the order of its
/// exits, so that it can be executed again from its start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    given: Vec<Completion>,
    used: usize,
}

/// Things that [`Vp::run`] must look at before the next block.
pub(crate) mod attention {
    /// Interrupts are held off for one instruction.
    pub(crate) const SHADOW: u32 = 1;
    /// RFLAGS.TF.
    pub(crate) const SINGLE_STEP: u32 = 2;
    /// DR7 has an enabled execution breakpoint.
    pub(crate) const BREAKPOINTS: u32 = 4;
    /// An interrupt window was requested.
    pub(crate) const WINDOW: u32 = 8;
    /// An NMI window was requested.
    pub(crate) const NMI_WINDOW: u32 = 16;
    /// An event waits.
    pub(crate) const EVENT: u32 = 32;
    /// Debug conditions have been met and must be reported at the boundary.
    pub(crate) const DEBUG: u32 = 64;
    /// RFLAGS.RF is set.
    pub(crate) const RESUME: u32 = 128;
    /// SS was just loaded: debug exceptions are held off, too, for one
    /// instruction. Always together with [`SHADOW`].
    pub(crate) const STACK_SHADOW: u32 = 256;
}

/// One virtual x86-64 processor in software.
pub struct Vp {
    /// The architectural state.
    pub(crate) state: State,
    pub(crate) mmu: Mmu,
    pub(crate) config: Config,
    pub(crate) stop: StopReason,
    /// Bits of [`attention`].
    pub(crate) attention: u32,
    /// A store hit a page with cached code: end the block.
    pub(crate) code_written: bool,
    /// Mode bits that blocks are looked up by; see [`Vp::decode_mode`].
    pub(crate) mode_key: u8,
    /// NMIs are blocked until IRET.
    pub(crate) nmi_blocked: bool,
    /// DR6 bits to report at the next instruction boundary.
    pub(crate) debug_pending: u64,
    /// Delivering an event: a second fault makes #DF or worse.
    pub(crate) delivering: Option<u8>,
    /// Mask for the stack pointer: 0xFFFF, 0xFFFF_FFFF or all ones.
    pub(crate) stack_mask: u64,
    /// x87 instruction pointer, data pointer and opcode of the last
    /// non-control instruction are in the FXSAVE image; native stubs here.
    pub(crate) native: Native,
    pub(crate) blocks: Blocks,
    pub(crate) answers: Answers,
    pub(crate) event: Option<Event>,
    pub(crate) exit: Option<Exit>,
    pub(crate) shutdown: bool,
    /// Requests of other threads, and what they must know of this processor.
    pub(crate) peer: Arc<Peer>,
    /// What emitted code works with.
    pub(crate) link: Link,
    pub(crate) translator: Option<Box<Translator>>,
    /// The version of the tables that the link's stack page was found in.
    pub(crate) stack_version: u64,
    /// The version of translations when emitted code last called Rust.
    pub(crate) left_version: u64,
    /// Entries of a translated region before it is translated again.
    pub(crate) hot: u64,
    /// Entries of a block before it is translated.
    pub(crate) warm: u16,
    /// The last instruction did not retire: an exception was delivered instead.
    pub(crate) faulted: bool,
    /// The instruction under way loaded RF from a flags image (IRET, task
    /// switch), so that its own end does not clear it.
    pub(crate) resume_loaded: bool,
    /// PAUSEs in a row, to notice spinning.
    pub(crate) pauses: u32,
    /// Guest instructions retired, about (blocks count when left).
    pub(crate) retired: u64,
    /// In check mode, what compares; not here while it does.
    pub(crate) checker: Option<Box<Checker>>,
    /// What instructions read from the host.
    pub(crate) record: std::cell::RefCell<Record>,
    /// Translated code is to be left at the next loop head.
    pub(crate) short_turn: bool,
    /// What translated code is to do wrong.
    #[cfg(test)]
    pub(crate) planted: Option<crate::check::Fault>,
}

// SAFETY: a Vp is used by one thread at a time; its raw pointers name guest
// memory that any thread may access through `host`.
unsafe impl Send for Vp {}

impl Vp {
    /// A virtual processor after power-on.
    pub fn new(config: Config, space: Box<dyn GuestSpace>, code: Arc<CodeMap>) -> Self {
        let (space, checker) = if config.mode == ProcessorMode::Check {
            code.start_journal();
            Checker::beside(&config, space, code.len())
        } else {
            (space, None)
        };
        let mut vp = Self {
            state: State::power_on(),
            mmu: Mmu::new(space, code, config.physical_bits),
            config,
            stop: StopReason::None,
            attention: 0,
            code_written: false,
            mode_key: 0,
            nmi_blocked: false,
            debug_pending: 0,
            delivering: None,
            stack_mask: 0xffff,
            native: Native::new(),
            blocks: Blocks::new(),
            answers: Answers::default(),
            event: None,
            exit: None,
            shutdown: false,
            peer: Arc::default(),
            link: Link::new(),
            translator: None,
            stack_version: 0,
            left_version: 0,
            warm: crate::translate::WARM,
            hot: crate::translate::HOT,
            faulted: false,
            resume_loaded: false,
            pauses: 0,
            retired: 0,
            checker,
            record: std::cell::RefCell::default(),
            short_turn: false,
            #[cfg(test)]
            planted: None,
        };
        vp.mode_changed();
        if vp.config.mode != ProcessorMode::Interpret {
            vp.start_translator();
        }
        vp
    }

    /// Translated code runs; false in interpreter mode, and where the host
    /// lacks what the translator takes.
    pub fn translates(&self) -> bool {
        self.translator.is_some()
    }

    /// Code is translated once it was entered `entries` times, at least 2:
    /// fewer than a sensible number are for tests.
    pub fn translate_after(&mut self, entries: u16) {
        self.warm = entries.max(2);
    }

    /// The handle for other threads to interrupt [`Vp::run`].
    pub fn requests(&self) -> Requests {
        self.peer.requests.clone()
    }

    /// The architectural state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Changes the architectural state from outside, then brings everything
    /// derived from it up to date.
    pub fn update_state(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.state.gpr[reg::ZERO] = 0;
        self.forget_transfers();
        self.mmu.flush_all();
        self.forget_shadow();
        self.mode_changed();
    }

    /// Guest instructions retired so far.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// INIT, or power-on.
    pub fn reset(&mut self, power_on: bool) {
        let old = std::mem::replace(&mut self.state, State::power_on());
        if !power_on {
            self.state.msr = old.msr;
            self.state.fpu = old.fpu;
            self.state.xcr0 = old.xcr0;
            self.state.tsc_offset = old.tsc_offset;
            self.state.cr0 |= old.cr0 & (cr::CR0_CD | cr::CR0_NW);
        }
        self.state.gpr[reg::RDX] = u64::from(self.config.features.signature());
        self.event = None;
        self.exit = None;
        self.shutdown = false;
        self.answers = Answers::default();
        self.attention = 0;
        self.nmi_blocked = false;
        self.debug_pending = 0;
        self.forget_transfers();
        self.mmu.flush_all();
        self.forget_shadow();
        self.mode_changed();
    }

    /// Start-up IPI.
    pub fn startup(&mut self, vector: u8) {
        let cs = &mut self.state.seg[seg::CS];
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.state.rip = 0;
        self.mode_changed();
    }

    /// Drops cached translations.
    pub fn flush_tlb(&mut self) {
        self.mmu.flush_all();
        self.forget_shadow();
    }

    /// Drops the cached translation of one page.
    pub fn flush_page(&mut self, linear: u64) {
        self.mmu.flush_page(linear);
        self.forget_shadow();
    }

    /// The guest-physical map was changed.
    pub fn gpa_space_changed(&mut self) {
        self.mmu.space_changed();
        self.blocks.clear();
        self.forget_translated();
        self.forget_shadow();
    }

    /// Translations changed: the shadow of a checked processor has none then.
    fn forget_shadow(&mut self) {
        if let Some(checker) = &mut self.checker {
            checker.forget();
        }
    }

    /// Makes [`Vp::run`] return [`Exit::InterruptWindow`] when an interrupt
    /// can be delivered.
    pub fn request_interrupt_window(&mut self, requested: bool) {
        self.set_attention(attention::WINDOW, requested);
    }

    /// The same for NMIs.
    pub fn request_nmi_window(&mut self, requested: bool) {
        self.set_attention(attention::NMI_WINDOW, requested);
    }

    /// An external interrupt could be delivered now.
    pub fn can_interrupt(&self) -> bool {
        self.state.system_flags & rflags::IF != 0
            && self.attention & attention::SHADOW == 0
            && self.event.is_none()
            && self.exit.is_none()
            && !self.shutdown
    }

    /// An NMI could be delivered now.
    pub fn can_nmi(&self) -> bool {
        !self.nmi_blocked
            && self.attention & attention::SHADOW == 0
            && self.event.is_none()
            && self.exit.is_none()
            && !self.shutdown
    }

    /// Delivers an event before the next instruction.
    pub fn inject(&mut self, event: Event) {
        self.event = Some(event);
        self.attention |= attention::EVENT;
    }

    #[inline]
    pub(crate) fn set_attention(&mut self, bit: u32, on: bool) {
        if on {
            self.attention |= bit;
        } else {
            self.attention &= !bit;
        }
    }

    /// Brings everything derived from CR0, CR4, EFER, CS, SS, CPL, RFLAGS and
    /// the debug registers up to date. Handlers that change one of these call
    /// it and end the block.
    pub(crate) fn mode_changed(&mut self) {
        self.stack_mask = if self.state.code64() {
            u64::MAX
        } else if self.state.seg[seg::SS].big() && !self.state.v86() {
            0xffff_ffff
        } else {
            0xffff
        };
        self.mode_key = self.decode_mode();
        let flags = self.state.system_flags;
        self.set_attention(attention::SINGLE_STEP, flags & rflags::TF != 0);
        self.set_attention(attention::RESUME, flags & rflags::RF != 0);
        self.set_attention(attention::BREAKPOINTS, self.code_breakpoints());
        self.data_rights_changed();
    }

    // ---- what handlers use -------------------------------------------------

    /// Ends the instruction with an exception.
    #[cold]
    pub(crate) fn raise(&mut self, fault: Fault) -> Stop {
        self.stop = StopReason::Fault(fault);
        Stop
    }

    /// #GP with an error code.
    #[cold]
    pub(crate) fn gp(&mut self, error: u32) -> Stop {
        self.raise(Fault::new(vector::GP, error))
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Stop {
        self.raise(Fault::new(vector::UD, 0))
    }

    /// Asks the outside: the answer, once it is there. The first time the
    /// instruction stops here, and is executed again when the answer has come.
    pub(crate) fn answer(&mut self, exit: Exit) -> Result<u64, Stop> {
        match self.answer_raw(exit)? {
            Completion::Value(value) => Ok(value),
            _ => Ok(0),
        }
    }

    /// The same for answers that are not one value.
    pub(crate) fn answer_raw(&mut self, exit: Exit) -> Result<Completion, Stop> {
        if let Some(&answer) = self.answers.given.get(self.answers.used) {
            self.answers.used += 1;
            if let Completion::Fault { vector, error } = answer {
                return Err(self.raise(Fault::new(vector, error)));
            }
            return Ok(answer);
        }
        self.stop = StopReason::Exit(exit);
        Err(Stop)
    }

    /// A repeated string instruction has finished an iteration for good: its
    /// answers are used up.
    pub(crate) fn answers_done(&mut self) {
        self.answers.given.clear();
        self.answers.used = 0;
    }

    /// The instruction pointer behind `op`.
    #[inline]
    pub(crate) fn next_rip(&self, end: u64) -> u64 {
        self.state.gpr[reg::BLOCK_RIP].wrapping_add(end)
    }

    /// A kick is outstanding: long instructions look now and then.
    #[inline]
    pub(crate) fn interrupted(&self) -> bool {
        self.peer.requests.pending()
    }

    // ---- running -----------------------------------------------------------

    /// Executes guest instructions until something outside is needed.
    pub fn run(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            // Not completed yet (or found while completing).
            return exit;
        }
        if let Some(checker) = self.checker.take() {
            return self.run_checked(checker);
        }
        loop {
            if let Some(exit) = self.turn() {
                return exit;
            }
        }
    }

    /// An event, a run of translated code, or a block.
    #[inline(always)]
    pub(crate) fn turn(&mut self) -> Option<Exit> {
        if self.shutdown {
            return Some(Exit::TripleFault);
        }
        if self.peer.requests.pending() && self.peer.requests.take() {
            return Some(Exit::Kicked);
        }
        if self.attention != 0 {
            return self.attend();
        }
        let ran = self.run_translated();
        #[cfg(test)]
        if !matches!(ran, Ran::Interpret | Ran::Handlers) {
            self.spoil();
        }
        let translate = match ran {
            Ran::Again => return None,
            Ran::Exit(exit) => return Some(exit),
            Ran::Interpret => true,
            Ran::Handlers => false,
        };
        let Some(block) = self.next_block() else {
            return self.stopped(0);
        };
        if translate && self.may_translate() && block.is_warm(self.warm) {
            if self.translate_region() {
                return None;
            }
            block.never_warm();
        }
        self.run_block(&block, usize::MAX)
    }

    /// Executes exactly one instruction (or delivers one event). `None`: go on.
    pub fn step(&mut self) -> Option<Exit> {
        if let Some(exit) = self.exit {
            return Some(exit);
        }
        if self.shutdown {
            return Some(Exit::TripleFault);
        }
        if self.attention != 0 {
            return self.attend();
        }
        self.step_instruction()
    }

    fn step_instruction(&mut self) -> Option<Exit> {
        match self.next_block() {
            Some(block) => self.run_block(&block, 1),
            None => self.stopped(0),
        }
    }

    /// Answers the exit that `run` returned, and retires its instruction.
    pub fn complete(&mut self, completion: Completion) {
        match self.checker.take() {
            Some(checker) => self.complete_checked(checker, completion),
            None => self.complete_here(completion),
        }
    }

    pub(crate) fn complete_here(&mut self, completion: Completion) {
        let Some(exit) = self.exit.take() else { return };
        match exit {
            Exit::Halt | Exit::InterruptWindow | Exit::Kicked => return,
            Exit::TripleFault => {
                self.exit = Some(exit);
                return;
            }
            _ => {}
        }
        if completion == Completion::Retry {
            self.answers_done();
            return;
        }
        self.answers.given.push(completion);
        self.answers.used = 0;
        self.exit = self.step_boundary_free();
        if self.exit.is_none() {
            self.answers_done();
        }
    }

    /// Executes the instruction that has just been answered: without looking
    /// at events and breakpoints again, but with its shadow and trap.
    fn step_boundary_free(&mut self) -> Option<Exit> {
        let before = self.attention;
        self.resume_loaded = false;
        let exit = self.step_instruction();
        if exit.is_none() {
            self.after_step(before);
        }
        match exit {
            Some(Exit::Halt | Exit::Kicked | Exit::InterruptWindow) => None,
            other => other,
        }
    }

    /// What a boundary with `attention` set needs.
    #[cold]
    pub(crate) fn attend(&mut self) -> Option<Exit> {
        let before = self.attention;
        if before & (attention::DEBUG | attention::STACK_SHADOW) == attention::DEBUG {
            self.attention &= !attention::DEBUG;
            let dr6 = std::mem::take(&mut self.debug_pending);
            if dr6 != 0 {
                let fault = Fault {
                    dr6,
                    trap: true,
                    ..Fault::new(vector::DB, 0)
                };
                return self.deliver_fault(fault);
            }
        }
        if before & attention::EVENT != 0 {
            self.attention &= !(attention::EVENT | attention::SHADOW | attention::STACK_SHADOW);
            if let Some(event) = self.event.take() {
                return self.deliver_event(event);
            }
        }
        if before & attention::NMI_WINDOW != 0 && self.can_nmi() {
            return Some(Exit::InterruptWindow);
        }
        if before & attention::WINDOW != 0 && self.can_interrupt() {
            return Some(Exit::InterruptWindow);
        }
        let suppressed = attention::RESUME | attention::STACK_SHADOW;
        if before & (attention::BREAKPOINTS | suppressed) == attention::BREAKPOINTS
            && let Some(dr6) = self.code_breakpoint_hit()
        {
            let fault = Fault {
                dr6,
                ..Fault::new(vector::DB, 0)
            };
            return self.deliver_fault(fault);
        }
        let stepwise =
            attention::SHADOW | attention::SINGLE_STEP | attention::BREAKPOINTS | attention::RESUME;
        if before & stepwise == 0 {
            // Only windows that are closed: run a whole block.
            let block = match self.next_block() {
                Some(block) => block,
                None => return self.stopped(0),
            };
            return self.run_block(&block, usize::MAX);
        }
        // What an instruction before this one loaded has been told already.
        self.resume_loaded = false;
        let exit = self.step_instruction();
        let retired = !matches!(
            exit,
            Some(
                Exit::Hypercall
                    | Exit::Cpuid { .. }
                    | Exit::ReadMsr { .. }
                    | Exit::WriteMsr { .. }
                    | Exit::ReadCr8
                    | Exit::WriteCr8 { .. }
                    | Exit::IoRead { .. }
                    | Exit::IoWrite { .. }
                    | Exit::MmioRead { .. }
                    | Exit::MmioWrite { .. }
                    | Exit::TripleFault
            )
        );
        if retired {
            self.after_step(before);
        }
        exit
    }

    /// Once a single instruction has retired that ran under `before`.
    fn after_step(&mut self, before: u32) {
        let resume_loaded = std::mem::take(&mut self.resume_loaded);
        if before & attention::SHADOW != 0 {
            self.attention &= !(attention::SHADOW | attention::STACK_SHADOW);
        }
        if self.faulted {
            // The instruction did not retire: its handler runs next, without
            // a trap of the instruction it interrupted.
            return;
        }
        if before & attention::RESUME != 0 && self.state.system_flags & rflags::RF != 0 {
            // RF holds for one instruction, unless that instruction set it.
            if !resume_loaded {
                self.state.system_flags &= !rflags::RF;
                self.attention &= !attention::RESUME;
            }
        }
        if before & attention::SINGLE_STEP != 0 && self.attention & attention::STACK_SHADOW == 0 {
            self.debug_pending |= 1 << 14;
            self.attention |= attention::DEBUG;
        }
    }

    /// Runs a block's instructions, at most `limit`.
    #[inline]
    pub(crate) fn run_block(&mut self, block: &Block, limit: usize) -> Option<Exit> {
        let start = self.state.rip;
        self.state.gpr[reg::BLOCK_RIP] = start;
        self.faulted = false;
        let count = block.ops.len().min(limit);
        // No block is empty.
        let (last, body) = block.ops[..count].split_last()?;
        for (i, op) in body.iter().enumerate() {
            if (op.run)(self, op).is_err() {
                self.retired += i as u64;
                return self.stopped_at(op, start);
            }
            if self.code_written {
                self.code_written = false;
                self.retired += i as u64 + 1;
                self.state.rip = self.advance(start, op.end());
                return None;
            }
        }
        // The last instruction may branch: RIP is behind it beforehand.
        self.state.rip = self.advance(start, last.end());
        self.retired += count as u64;
        if (last.run)(self, last).is_err() {
            return self.stopped_at(last, start);
        }
        self.code_written = false;
        None
    }

    /// A handler stopped at `op` of the block at `start`.
    #[cold]
    pub(crate) fn stopped_at(&mut self, op: &Op, start: u64) -> Option<Exit> {
        if op.has_memory() && usize::from(op.segment) == seg::SS {
            let _ = self.as_stack_fault(Stop);
        }
        match self.stop {
            StopReason::Halted => {
                if !op.is_last() {
                    self.state.rip = self.advance(start, op.end());
                }
            }
            // Traps (INT3, data breakpoints) have RIP behind the instruction.
            StopReason::Fault(Fault { trap: true, .. }) => {
                self.state.rip = self.advance(start, op.end());
            }
            _ => self.state.rip = self.advance(start, u64::from(op.offset)),
        }
        self.stopped(op.length)
    }

    /// Acts on the reason for a stop; RIP is right.
    #[cold]
    pub(crate) fn stopped(&mut self, _length: u8) -> Option<Exit> {
        self.code_written = false;
        match std::mem::replace(&mut self.stop, StopReason::None) {
            StopReason::None | StopReason::Yield => None,
            StopReason::Fault(fault) => {
                self.answers_done();
                self.deliver_fault(fault)
            }
            StopReason::Exit(exit) => {
                self.answers.used = 0;
                self.exit = Some(exit);
                Some(exit)
            }
            StopReason::Halted => Some(Exit::Halt),
        }
    }

    fn advance(&self, start: u64, by: u64) -> u64 {
        let rip = start.wrapping_add(by);
        if self.state.code64() {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }
}
