//! A virtual processor and the thread that runs it.

use crate::intercept::{self, InterceptHandler, Outcome};
use crate::observer::{HypercallObserver, observe};
use crate::partition::Partition;
use crate::platform::VpHandle;
use crate::software::SoftwareProcessor;
use hypervisor::processor::Processor;
use hypervisor::{CrashReport, Hypervisor, RunOutcome};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tlfs::{HvPartitionId, HvPendingExceptionEvent, HvRegisterName, HvRegisterValue, HvVpIndex};
use winhv::{HvResult, Transport, WinHv};

/// The longest sleep without looking around.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why a virtual processor stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VpStop {
    /// [`Partition::stop`] was called, or the partition is gone.
    Stopped,
    /// A triple fault.
    TripleFault {
        /// RIP at the fault.
        rip: u64,
        /// RSP, CR2 and CR3 then.
        rsp_cr2_cr3: [u64; 3],
    },
    /// The guest asked for a reset through HV_X64_MSR_RESET.
    Reset,
    /// The guest reported a crash; it runs on if run again.
    Crash(Box<CrashReport>),
    /// The hypervisor told something that this stack does not know.
    Unexpected(String),
    /// Translator and interpreter differ: the report, of many lines.
    Difference(String),
}

/// One virtual processor of a [`Partition`].
pub struct VirtualProcessor {
    partition: Arc<Partition>,
    index: HvVpIndex,
    cpu: SoftwareProcessor,
    handle: VpHandle,
}

/// The transport that lends the calling thread's processor to the hypercall.
struct Lent<'a> {
    hypervisor: &'a Hypervisor,
    vp: (HvPartitionId, HvVpIndex),
    cpu: RefCell<&'a mut dyn Processor>,
    observer: Option<&'a HypercallObserver>,
}

impl Transport for Lent<'_> {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        let mut cpu = self.cpu.borrow_mut();
        let result = self
            .hypervisor
            .root_hypercall_for_vp(control, input, output, self.vp, &mut **cpu);
        observe(self.observer, control, input, output, result)
    }
}

impl VirtualProcessor {
    pub(crate) fn new(
        partition: Arc<Partition>,
        index: HvVpIndex,
        cpu: SoftwareProcessor,
        handle: VpHandle,
    ) -> Self {
        Self {
            partition,
            index,
            cpu,
            handle,
        }
    }

    /// Its index.
    pub fn index(&self) -> HvVpIndex {
        self.index
    }

    /// Guest instructions retired so far.
    pub fn retired(&self) -> u64 {
        self.cpu.0.retired()
    }

    /// In check mode: steps that were compared, and differences that were
    /// laid to a device's write at the same time.
    pub fn checked(&self) -> Option<(u64, u64)> {
        self.cpu.0.checked()
    }

    fn winhv(&mut self) -> WinHv<Lent<'_>> {
        WinHv::new(Lent {
            hypervisor: &self.partition.hypervisor,
            vp: (self.partition.id, self.index),
            cpu: RefCell::new(&mut self.cpu),
            observer: self.partition.observer(),
        })
    }

    /// Sets registers (HvCallSetVpRegisters).
    ///
    /// # Errors
    ///
    /// The hypervisor's status: a value that cannot be loaded, say.
    pub fn set_registers(&mut self, registers: &[(HvRegisterName, HvRegisterValue)]) -> HvResult {
        let (id, index) = (self.partition.id, self.index);
        self.winhv().set_vp_registers(id, index, registers)
    }

    /// Reads registers (HvCallGetVpRegisters).
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn registers(&mut self, names: &[HvRegisterName]) -> HvResult<Vec<HvRegisterValue>> {
        let (id, index) = (self.partition.id, self.index);
        self.winhv().vp_registers(id, index, names)
    }

    /// Ends the explicit suspension that every processor is created in. The
    /// first one then runs, the others wait for their start-up IPI.
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn resume(&mut self) -> HvResult {
        let (id, index) = (self.partition.id, self.index);
        self.winhv().set_explicit_suspend(id, index, false)
    }

    /// Runs on the calling thread until something ends it.
    pub fn run(&mut self, handler: &dyn InterceptHandler) -> VpStop {
        self.handle.adopt();
        let partition = self.partition.clone();
        loop {
            if partition.stopped() {
                return VpStop::Stopped;
            }
            match partition
                .hypervisor
                .run_vp(partition.id, self.index, &mut self.cpu)
            {
                RunOutcome::Intercept(message) => match intercept::handle(&message, handler) {
                    Outcome::Complete(value) => {
                        let (id, index) = (partition.id, self.index);
                        let done = self.winhv().complete_intercept(id, index, value.into());
                        if let Err(error) = done {
                            return VpStop::Unexpected(error.to_string());
                        }
                    }
                    Outcome::Fault => {
                        if let Err(error) = self.fault() {
                            return VpStop::Unexpected(error.to_string());
                        }
                    }
                    Outcome::TripleFault { rip } => {
                        if let Some(difference) = self.cpu.0.difference() {
                            return VpStop::Difference(difference.to_owned());
                        }
                        return self.triple_fault(rip);
                    }
                    Outcome::Unknown(kind) => {
                        return VpStop::Unexpected(format!("intercept {:#x}", kind.0));
                    }
                },
                RunOutcome::ApicEoi { vector } => handler.eoi(vector),
                RunOutcome::Halted => self.sleep(true),
                RunOutcome::WaitForSipi | RunOutcome::Suspended => self.sleep(false),
                RunOutcome::Deleted => return VpStop::Stopped,
                RunOutcome::Reset => return VpStop::Reset,
                RunOutcome::Crash(report) => return VpStop::Crash(report),
            }
        }
    }

    /// Answers an intercept with #GP(0).
    fn fault(&mut self) -> HvResult {
        const GENERAL_PROTECTION: u8 = 13;
        let event = HvPendingExceptionEvent::new(GENERAL_PROTECTION, Some(0));
        self.set_registers(&[
            (HvRegisterName::PENDING_EVENT0, event.0.into()),
            (HvRegisterName::INTERCEPT_SUSPEND, 0u64.into()),
        ])
    }

    fn triple_fault(&mut self, rip: u64) -> VpStop {
        let names = [
            HvRegisterName::RSP,
            HvRegisterName::CR2,
            HvRegisterName::CR3,
        ];
        let mut rsp_cr2_cr3 = [0; 3];
        if let Ok(values) = self.registers(&names) {
            for (slot, value) in rsp_cr2_cr3.iter_mut().zip(values) {
                *slot = value.as_u64();
            }
        }
        VpStop::TripleFault { rip, rsp_cr2_cr3 }
    }

    /// Sleeps until a kick, or until the processor's own deadline.
    fn sleep(&self, with_timer: bool) {
        let timers = self.partition.platform.timers();
        let deadline = if with_timer {
            timers.deadline(self.index)
        } else {
            None
        };
        let work = with_timer
            && self
                .partition
                .hypervisor
                .vp_has_work(self.partition.id, self.index);
        if !work && !self.partition.stopped() {
            // A kick since the last look left a token, and this returns at once.
            let wait = deadline.map_or(LONGEST_SLEEP, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            std::thread::park_timeout(wait);
        }
        if with_timer {
            timers.resume(self.index);
        }
    }
}
