//! The local APIC of one virtual processor, in xAPIC and x2APIC mode
//! (Intel SDM 3A, "Advanced Programmable Interrupt Controller"; TLFS,
//! "Local APIC", for the synthetic EOI, ICR and TPR registers).
//!
//! A pure state machine: it holds no lock and does no I/O. Time is the
//! guest's TSC and comes in with each call that needs it; what concerns other
//! processors or devices goes out as [`ApicEffect`]s, appended to the
//! caller's vector.

mod access;
mod destination;
mod local;
mod registers;
mod state;
mod timer;
mod vector_set;

#[cfg(test)]
mod tests;

pub use destination::Destination;
pub use local::LocalApic;
pub use state::LocalInterruptControllerState;

/// What distinguishes one local APIC from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicConfig {
    /// The initial (x2)APIC id. xAPIC mode shows its low eight bits.
    pub apic_id: u32,
    /// Frequency of the guest's TSC in Hz.
    pub tsc_frequency: u64,
    /// Undivided frequency of the APIC timer in Hz, as
    /// HV_X64_MSR_APIC_FREQUENCY reports it.
    pub apic_frequency: u64,
    /// Whether this is the bootstrap processor.
    pub bootstrap: bool,
}

/// State that IA32_APIC_BASE puts the APIC in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Globally disabled: the processor behaves as if it had none.
    Disabled,
    /// Registers in a page of guest-physical memory, 8-bit ids.
    XApic,
    /// Registers as MSRs 0x800 and up, 32-bit ids.
    X2Apic,
}

/// An access that the processor answers with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApicFault {
    /// The register does not exist in the present mode, or not for this
    /// direction.
    #[error("no such local APIC register")]
    NoSuchRegister,
    /// The value has reserved bits set.
    #[error("reserved bits set in a local APIC register")]
    ReservedBits,
    /// IA32_APIC_BASE may not change this way.
    #[error("illegal local APIC mode transition")]
    IllegalTransition,
}

/// Delivery mode of an interrupt message.
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
    /// Start-up IPI; the vector is the page number of the start address.
    Startup,
    /// The vector comes from an external 8259.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field of the ICR, an LVT entry or an I/O APIC
    /// redirection entry; `None` for the reserved encoding.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whom an IPI is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiTarget {
    /// The sender alone.
    SelfOnly,
    /// Every processor with the sender.
    All,
    /// Every processor but the sender.
    AllButSelf,
    /// The processors whose APIC [matches](LocalApic::matches).
    To(Destination),
}

/// An interprocessor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Whom it is for.
    pub destination: IpiTarget,
    /// How it is delivered. Never [`DeliveryMode::ExtInt`].
    pub mode: DeliveryMode,
    /// The vector, at least 16 for the modes that deliver one; the page
    /// number for [`DeliveryMode::Startup`].
    pub vector: u8,
    /// Always set: INIT level de-assert does nothing on processors since the
    /// Pentium 4 and is not reported.
    pub level_asserted: bool,
    /// Always clear: these processors send every IPI edge-triggered.
    pub level_triggered: bool,
}

/// Something that the local APIC asks of the world around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicEffect {
    /// Send an interprocessor interrupt.
    Ipi(Ipi),
    /// A level-triggered interrupt was finished: tell the I/O APICs.
    EoiBroadcast {
        /// The vector that ended.
        vector: u8,
    },
    /// Deliver an NMI to this virtual processor (from a LINT pin).
    Nmi,
}
