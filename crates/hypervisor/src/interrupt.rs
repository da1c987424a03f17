//! Interrupts on their way to virtual processors: IPIs, device interrupts,
//! synthetic cluster IPIs.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::apic::{ApicEffect, DeliveryMode, Destination, Ipi, IpiTarget};
use crate::partition::Partition;
use crate::vp::{Requests, RunOutcome, Startup, Vp};
use crate::{Hypervisor, Platform};

impl Hypervisor {
    /// Carries out what a virtual processor's APIC asked for.
    pub(crate) fn apply_effects(
        &self,
        partition: &Partition,
        vp: &Arc<Vp>,
        effects: &[ApicEffect],
    ) {
        for effect in effects {
            match *effect {
                ApicEffect::Ipi(ipi) => send_ipi(self.platform(), partition, vp, ipi),
                ApicEffect::EoiBroadcast { vector } => {
                    vp.state
                        .lock()
                        .outcomes
                        .push_back(RunOutcome::ApicEoi { vector });
                    vp.request(self.platform(), Requests::EVENT);
                }
                ApicEffect::Nmi => vp.request_nmi(self.platform()),
            }
        }
    }
}

fn send_ipi(platform: &dyn Platform, partition: &Partition, sender: &Arc<Vp>, ipi: Ipi) {
    let targets: Vec<Arc<Vp>> = match ipi.destination {
        IpiTarget::SelfOnly => alloc::vec![sender.clone()],
        IpiTarget::All => partition.all_vps(),
        IpiTarget::AllButSelf => partition
            .all_vps()
            .into_iter()
            .filter(|vp| vp.index != sender.index)
            .collect(),
        IpiTarget::To(destination) => matching(partition, destination),
    };
    deliver(
        platform,
        &targets,
        ipi.mode,
        ipi.vector,
        ipi.level_triggered,
    );
}

/// The virtual processors that accept a message for `destination`.
pub(crate) fn matching(partition: &Partition, destination: Destination) -> Vec<Arc<Vp>> {
    let mut vps = partition.all_vps();
    vps.retain(|vp| vp.state.lock().apic.matches(destination));
    vps
}

/// Delivers an interrupt message to `targets`, or to one of them for lowest
/// priority.
pub(crate) fn deliver(
    platform: &dyn Platform,
    targets: &[Arc<Vp>],
    mode: DeliveryMode,
    vector: u8,
    level: bool,
) {
    match mode {
        DeliveryMode::Fixed => {
            targets
                .iter()
                .for_each(|vp| request_vector(platform, vp, vector, level));
        }
        DeliveryMode::LowestPriority => {
            if let Some(vp) = lowest_priority(targets) {
                request_vector(platform, vp, vector, level);
            }
        }
        DeliveryMode::Nmi => targets.iter().for_each(|vp| vp.request_nmi(platform)),
        DeliveryMode::Init => targets
            .iter()
            .for_each(|vp| vp.request(platform, Requests::INIT)),
        DeliveryMode::Startup => {
            targets
                .iter()
                .for_each(|vp| vp.request_startup(platform, Startup::Sipi(vector)));
        }
        // There is no system management mode behind this APIC; an ExtINT
        // comes from the 8259s alone.
        DeliveryMode::Smi | DeliveryMode::ExtInt => {}
    }
}

fn request_vector(platform: &dyn Platform, vp: &Arc<Vp>, vector: u8, level: bool) {
    vp.state.lock().apic.request(vector, level);
    vp.request(platform, Requests::EVENT);
}

/// The target whose software-enabled APIC has the lowest processor priority;
/// the lowest index among equals.
fn lowest_priority(targets: &[Arc<Vp>]) -> Option<&Arc<Vp>> {
    targets
        .iter()
        .filter_map(|vp| {
            let state = vp.state.lock();
            state.apic.is_enabled().then(|| (state.apic.ppr(), vp))
        })
        .min_by_key(|(priority, vp)| (*priority, vp.index))
        .map(|(_, vp)| vp)
}
