//! How a virtual processor that waits is started.

use alloc::boxed::Box;

use tlfs::{HvInitialVpContext, HvRegisterName as Name, HvRegisterValue};

use crate::Processor;

/// What starts a virtual processor.
#[derive(Debug)]
pub(crate) enum Startup {
    /// A start-up IPI with its vector.
    Sipi(u8),
    /// HvCallStartVirtualProcessor with a first state.
    Context(Box<HvInitialVpContext>),
}

impl Startup {
    pub(crate) fn apply(&self, cpu: &mut dyn Processor) {
        match self {
            Self::Sipi(vector) => cpu.startup(*vector),
            Self::Context(context) => apply_context(cpu, context),
        }
    }
}

fn apply_context(cpu: &mut dyn Processor, context: &HvInitialVpContext) {
    // Leaves the wait for a start-up IPI; every register that this sets is
    // set below.
    cpu.startup(0);
    let registers: [(Name, HvRegisterValue); 18] = [
        (Name::EFER, context.efer.into()),
        (Name::CR4, context.cr4.into()),
        (Name::CR3, context.cr3.into()),
        (Name::CR0, context.cr0.into()),
        (Name::PAT, context.msr_cr_pat.into()),
        (Name::CS, context.cs.into()),
        (Name::DS, context.ds.into()),
        (Name::ES, context.es.into()),
        (Name::FS, context.fs.into()),
        (Name::GS, context.gs.into()),
        (Name::SS, context.ss.into()),
        (Name::TR, context.tr.into()),
        (Name::LDTR, context.ldtr.into()),
        (Name::IDTR, context.idtr.into()),
        (Name::GDTR, context.gdtr.into()),
        (Name::RSP, context.rsp.into()),
        (Name::RFLAGS, context.rflags.into()),
        (Name::RIP, context.rip.into()),
    ];
    for (name, value) in registers {
        // A value that the processor refuses leaves the register as INIT set
        // it: the guest asked for a state that does not exist.
        let _ = cpu.set_register(name, value);
    }
}
