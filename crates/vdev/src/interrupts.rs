//! The chipset's interrupt controllers and the lines that lead to them.
//!
//! A line is an ISA interrupt: it goes to the 8259 pair (if there is one) and
//! to the I/O APIC, where line 0 arrives at pin 2.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ioapic::IoApic;
use crate::pic::PicPair;

/// Delivery mode of an interrupt message (Intel 82093AA, redirection table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To each addressed processor, with the vector.
    Fixed,
    /// To one of the addressed processors, with the vector.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// The vector comes from the 8259 pair.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field of a redirection entry; `None` for
    /// reserved encodings.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// An interrupt message of the I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptRequest {
    /// The vector, as the guest programmed it (it may be illegal).
    pub vector: u8,
    /// APIC id or logical address, eight bits; 0xFF addresses everyone.
    pub destination: u32,
    /// Logical rather than physical addressing.
    pub logical: bool,
    /// Level-triggered: the I/O APIC waits for
    /// [`Chipset::eoi`](crate::Chipset::eoi).
    pub level: bool,
    /// How the interrupt is delivered.
    pub mode: DeliveryMode,
}

/// Where the chipset's interrupts go. Called with no lock of the interrupt
/// controllers held, but possibly with that of the device that interrupts,
/// so an implementation must not access a device of the chipset.
pub trait InterruptSink: Send + Sync {
    /// Delivers an interrupt message.
    fn assert(&self, request: InterruptRequest);

    /// The INTR output of the 8259 pair, which is wired to LINT0 of the
    /// bootstrap processor, changed. A processor that takes the interrupt
    /// fetches its vector with
    /// [`Chipset::acknowledge_extint`](crate::Chipset::acknowledge_extint).
    fn set_extint(&self, asserted: bool) {
        let _ = asserted;
    }
}

#[derive(Debug)]
struct State {
    ioapic: IoApic,
    pic: Option<PicPair>,
}

/// The interrupt controllers, shared by the devices and the chipset.
pub(crate) struct Interrupts {
    state: Mutex<State>,
    sink: Arc<dyn InterruptSink>,
}

impl Interrupts {
    pub(crate) fn new(sink: Arc<dyn InterruptSink>, legacy_pic: bool) -> Self {
        let pic = legacy_pic.then(PicPair::new);
        Self {
            state: Mutex::new(State {
                ioapic: IoApic::new(),
                pic,
            }),
            sink,
        }
    }

    /// Drives line `line` (0 to 23; above 15 only the I/O APIC has it).
    pub(crate) fn set_line(&self, line: u8, asserted: bool) {
        let pin = if line == 0 { 2 } else { line };
        let mut extint = None;
        let request = {
            let mut state = self.lock();
            if let Some(pic) = &mut state.pic {
                extint = changed_extint(pic, |pic| pic.set_line(line, asserted));
            }
            state.ioapic.set_line(pin, asserted)
        };
        if let Some(request) = request {
            self.sink.assert(request);
        }
        self.report_extint(extint);
    }

    /// Ends a level-triggered interrupt at the I/O APIC.
    pub(crate) fn eoi(&self, vector: u8) {
        self.with_ioapic(|ioapic, out| ioapic.eoi(vector, out));
    }

    pub(crate) fn read_ioapic(&self, offset: u64) -> u32 {
        self.lock().ioapic.read(offset)
    }

    pub(crate) fn write_ioapic(&self, offset: u64, value: u32) {
        self.with_ioapic(|ioapic, out| ioapic.write(offset, value, out));
    }

    /// Reads an 8259 port, if there is an 8259 pair.
    pub(crate) fn read_pic(&self, port: u16) -> Option<u8> {
        let mut state = self.lock();
        let pic = state.pic.as_mut()?;
        let mut value = 0;
        let extint = changed_extint(pic, |pic| value = pic.read(port));
        drop(state);
        self.report_extint(extint);
        Some(value)
    }

    /// Writes an 8259 port; whether there is an 8259 pair.
    pub(crate) fn write_pic(&self, port: u16, value: u8) -> bool {
        let mut state = self.lock();
        let Some(pic) = &mut state.pic else {
            return false;
        };
        let extint = changed_extint(pic, |pic| pic.write(port, value));
        drop(state);
        self.report_extint(extint);
        true
    }

    /// The interrupt-acknowledge cycle of a processor.
    pub(crate) fn acknowledge_extint(&self) -> Option<u8> {
        let mut state = self.lock();
        let pic = state.pic.as_mut()?;
        let mut vector = 0;
        let extint = changed_extint(pic, |pic| vector = pic.acknowledge());
        drop(state);
        self.report_extint(extint);
        Some(vector)
    }

    pub(crate) fn extint_asserted(&self) -> bool {
        self.lock().pic.as_ref().is_some_and(PicPair::output)
    }

    /// Back to the state after power-on; lines keep their levels only as far
    /// as devices drive them again.
    pub(crate) fn reset(&self) {
        let had_pic = {
            let mut state = self.lock();
            let pic = state.pic.as_ref().map(|_| PicPair::new());
            *state = State {
                ioapic: IoApic::new(),
                pic,
            };
            state.pic.is_some()
        };
        self.report_extint(had_pic.then_some(false));
    }

    fn with_ioapic(&self, act: impl FnOnce(&mut IoApic, &mut Vec<InterruptRequest>)) {
        let mut out = Vec::new();
        act(&mut self.lock().ioapic, &mut out);
        for request in out {
            self.sink.assert(request);
        }
    }

    /// Tells the sink the level of INTR. Another thread may have changed it
    /// and spoken first, so whoever speaks looks again until both agree.
    fn report_extint(&self, mut level: Option<bool>) {
        while let Some(asserted) = level {
            self.sink.set_extint(asserted);
            let now = self.extint_asserted();
            level = (now != asserted).then_some(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No call under this lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something to the 8259 pair; the new level of INTR if that changed it.
fn changed_extint(pic: &mut PicPair, act: impl FnOnce(&mut PicPair)) -> Option<bool> {
    let before = pic.output();
    act(pic);
    (pic.output() != before).then(|| pic.output())
}

/// A device's interrupt line. Can be cloned and used from any thread.
#[derive(Clone)]
pub struct IrqLine {
    interrupts: Arc<Interrupts>,
    line: u8,
}

impl IrqLine {
    pub(crate) fn new(interrupts: &Arc<Interrupts>, line: u8) -> Self {
        Self {
            interrupts: Arc::clone(interrupts),
            line,
        }
    }

    /// The line's number.
    pub fn number(&self) -> u8 {
        self.line
    }

    /// Drives the line high or low.
    pub fn set(&self, asserted: bool) {
        self.interrupts.set_line(self.line, asserted);
    }

    /// Signals one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IrqLine")
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod test_sink {
    use super::*;

    /// A sink that records everything.
    #[derive(Default)]
    pub(crate) struct Recorder {
        pub(crate) requests: Mutex<Vec<InterruptRequest>>,
        pub(crate) extint: Mutex<Vec<bool>>,
    }

    impl Recorder {
        pub(crate) fn take(&self) -> Vec<InterruptRequest> {
            std::mem::take(&mut self.requests.lock().unwrap())
        }

        pub(crate) fn take_vectors(&self) -> Vec<u8> {
            self.take()
                .into_iter()
                .map(|request| request.vector)
                .collect()
        }

        pub(crate) fn take_extint(&self) -> Vec<bool> {
            std::mem::take(&mut self.extint.lock().unwrap())
        }
    }

    impl InterruptSink for Recorder {
        fn assert(&self, request: InterruptRequest) {
            self.requests.lock().unwrap().push(request);
        }

        fn set_extint(&self, asserted: bool) {
            self.extint.lock().unwrap().push(asserted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_sink::Recorder;
    use super::*;

    fn route(interrupts: &Interrupts, pin: u8, entry: u32) {
        interrupts.write_ioapic(0, u32::from(0x10 + 2 * pin));
        interrupts.write_ioapic(0x10, entry);
    }

    #[test]
    fn lines_reach_both_controllers() {
        let sink = Arc::new(Recorder::default());
        let interrupts = Arc::new(Interrupts::new(sink.clone(), true));
        route(&interrupts, 2, 0x30);
        route(&interrupts, 4, 0x34);
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xEF),
        ] {
            assert!(interrupts.write_pic(port, value));
        }
        IrqLine::new(&interrupts, 0).pulse();
        assert_eq!(sink.take_vectors(), [0x30], "line 0 is pin 2");
        assert_eq!(sink.take_extint(), vec![], "masked at the 8259");
        let line = IrqLine::new(&interrupts, 4);
        line.set(true);
        assert_eq!(sink.take_vectors(), [0x34]);
        assert!(interrupts.extint_asserted());
        assert_eq!(interrupts.acknowledge_extint(), Some(0x24));
        assert_eq!(sink.take_extint(), [true, false]);
    }

    #[test]
    fn without_an_8259_its_ports_are_absent() {
        let interrupts = Interrupts::new(Arc::new(Recorder::default()), false);
        assert_eq!(interrupts.read_pic(0x21), None);
        assert!(!interrupts.write_pic(0x21, 0));
        assert_eq!(interrupts.acknowledge_extint(), None);
        interrupts.set_line(1, true);
        assert!(!interrupts.extint_asserted());
    }

    #[test]
    fn level_interrupts_repeat_on_eoi() {
        let sink = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(sink.clone(), false);
        route(&interrupts, 10, 0x803A);
        interrupts.set_line(10, true);
        interrupts.eoi(0x3A);
        interrupts.set_line(10, false);
        interrupts.eoi(0x3A);
        assert_eq!(sink.take_vectors(), [0x3A, 0x3A]);
        interrupts.set_line(10, true);
        interrupts.reset();
        interrupts.set_line(10, true);
        assert_eq!(sink.take_vectors(), [0x3A], "masked after the reset");
    }
}
