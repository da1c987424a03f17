//! HvCallGetVpRegisters and HvCallSetVpRegisters (TLFS 7.9).
//!
//! Registers that the hypervisor keeps are always at hand; those of the
//! processor only when its thread lends it.

use tlfs::HvRegisterName as Name;
use tlfs::*;

use super::{Context, HvResult, Reps, require};
use crate::partition::Partition;
use crate::processor::{Exception, Injection, InvalidRegister};
use crate::vp::run::split;
use crate::vp::{Requests, Vp, VpState};

/// HvCallGetVpRegisters.
pub(super) fn get_list(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let (partition, vp) = target(context, &reps.header()?)?;
    while reps.more() {
        let name: Name = reps.input(0)?;
        let value = get(context, &partition, &vp, name)?;
        reps.put(&value)?;
        reps.advance(1);
    }
    Ok(())
}

/// HvCallSetVpRegisters.
pub(super) fn set_list(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let (partition, vp) = target(context, &reps.header()?)?;
    while reps.more() {
        let element: HvRegisterAssoc = reps.input(0)?;
        set(context, &partition, &vp, element.name, element.value())?;
        reps.advance(1);
    }
    Ok(())
}

type Target = (alloc::sync::Arc<Partition>, alloc::sync::Arc<Vp>);

/// The virtual processor that is meant. On itself a partition needs a
/// privilege.
fn target(context: &Context<'_>, input: &HvInputVpRegisters) -> HvResult<Target> {
    require(input.input_vtl & 0xF == 0)?;
    let partition = context.child_or_self(input.partition_id)?;
    if partition.id == context.caller.id
        && !partition.may(HvPartitionPrivilegeMask::ACCESS_VP_REGISTERS)
    {
        return Err(HvStatus::ACCESS_DENIED);
    }
    let vp = context.vp(&partition, input.vp_index)?;
    Ok((partition, vp))
}

/// The CPUID leaf that a feature register repeats.
fn cpuid_leaf(name: Name) -> Option<u32> {
    match name {
        Name::HYPERVISOR_VERSION => Some(HV_CPUID_VERSION),
        Name(0x200..=0x208) => Some(HV_CPUID_FEATURES + (name.0 - 0x200)),
        _ => None,
    }
}

fn get(
    context: &mut Context<'_>,
    partition: &Partition,
    vp: &Vp,
    name: Name,
) -> HvResult<HvRegisterValue> {
    if let Some(leaf) = cpuid_leaf(name) {
        let config = context.hypervisor.config();
        let [a, b, c, d] =
            crate::vp::cpuid::cpuid(config, partition, vp, (leaf, 0), [0; 4]).map(u128::from);
        return Ok(HvRegisterValue(a | b << 32 | c << 64 | d << 96));
    }
    if let Some(value) = get_partition_wide(context, partition, name) {
        return Ok(value.into());
    }
    if let Some(value) = get_own(partition, &vp.state.lock(), vp, name) {
        return Ok(HvRegisterValue(value));
    }
    if let Some(offset) = apic_offset(name) {
        // Counting registers need the guest's time.
        let now = context.processor(vp)?.tsc();
        return get_apic(&vp.state.lock(), offset, now).ok_or(HvStatus::INVALID_PARAMETER);
    }
    context
        .processor(vp)?
        .register(name)
        .ok_or(HvStatus::INVALID_PARAMETER)
}

fn get_partition_wide(context: &Context<'_>, partition: &Partition, name: Name) -> Option<u64> {
    let guest = partition.guest.lock();
    Some(match name {
        Name::GUEST_OS_ID => guest.os_id,
        Name::HYPERCALL => guest.hypercall,
        Name::REFERENCE_TSC => guest.reference_tsc,
        Name::REFERENCE_TSC_SEQUENCE => partition.clock.page().tsc_sequence.into(),
        Name::TIME_REF_COUNT => partition.clock.now(context.platform()),
        Name::PROCESSOR_CLOCK_FREQUENCY => partition.clock.frequency(),
        Name::INTERRUPT_CLOCK_FREQUENCY => context.hypervisor.config().apic_frequency,
        _ => return None,
    })
}

fn get_own(partition: &Partition, state: &VpState, vp: &Vp, name: Name) -> Option<u128> {
    let value = match name {
        Name::EXPLICIT_SUSPEND => u64::from(state.explicit_suspend),
        Name::INTERCEPT_SUSPEND => u64::from(state.intercept_suspend),
        Name::INTERNAL_ACTIVITY_STATE => state.internal_activity().bits(),
        Name::INTERCEPT_COMPLETION => {
            return Some(
                state
                    .intercept
                    .and_then(|intercept| intercept.answer)
                    .unwrap_or(0),
            );
        }
        Name::PENDING_INTERRUPTION => pending_interruption(state).0,
        Name::PENDING_EVENT0 => {
            return Some(state.pending_exception.map_or(0, |exception| {
                HvPendingExceptionEvent::new(exception.vector, exception.error_code).0
            }));
        }
        Name::PENDING_EVENT1 => 0,
        Name(0x210..=0x214) => state.crash[(name.0 - Name::GUEST_CRASH_P0.0) as usize],
        Name::GUEST_CRASH_CTL => HV_CRASH_CTL_NOTIFY | HV_CRASH_CTL_NOTIFY_MSG,
        Name::CR8 => u64::from(state.apic.tpr() >> 4),
        Name::APIC_BASE => state.apic.base_msr(),
        Name::APIC_TPR => state.apic.hv_tpr(),
        Name::TSC_DEADLINE => state.apic.tsc_deadline(),
        Name::INITIAL_APIC_ID => vp.apic_id.into(),
        Name::VP_RUNTIME => partition.clock.after_ticks(0, state.run_ticks),
        Name::VP_INDEX => vp.index.into(),
        Name::VP_ASSIST_PAGE => state.assist,
        Name::SYNTHETIC_ICR | Name::APIC_ICR => state.apic.hv_icr(),
        Name::SYNTHETIC_TPR => state.apic.hv_tpr(),
        Name(0xA0000..=0xA000F) => state.synic.sint((name.0 - Name::SINT0.0) as usize),
        Name::SCONTROL => state.synic.control,
        Name::SVERSION => HV_SYNIC_VERSION,
        Name::SIEFP => state.synic.siefp,
        Name::SIMP => state.synic.simp,
        Name::EOM => 0,
        Name(0xB0000..=0xB0007) => {
            let index = ((name.0 - Name::STIMER0_CONFIG.0) / 2) as usize;
            if name.0 & 1 == 0 {
                state.synic.timer_config(index)
            } else {
                state.synic.timer_count(index)
            }
        }
        _ => return None,
    };
    Some(value.into())
}

fn pending_interruption(state: &VpState) -> HvPendingInterruption {
    match state.pending_exception {
        Some(exception) => HvPendingInterruption::new(
            HvPendingInterruption::EXCEPTION,
            exception.vector,
            exception.error_code,
        ),
        None if state.pending_nmis > 0 => {
            HvPendingInterruption::new(HvPendingInterruption::NMI, 2, None)
        }
        None => HvPendingInterruption::default(),
    }
}

/// The x2APIC register number of an APIC register's name.
fn apic_offset(name: Name) -> Option<u32> {
    name.0.checked_sub(0x84800).filter(|offset| *offset <= 0x3F)
}

/// A register of the APIC, in whatever mode it is.
fn get_apic(state: &VpState, offset: u32, now: u64) -> Option<HvRegisterValue> {
    let page = state.apic.page(now);
    let index = (offset & 7) as usize;
    let value = match offset {
        0x02 => page.apic_id,
        0x03 => page.apic_version,
        0x0A => state.apic.ppr().into(),
        0x0D => page.apic_ldr,
        0x0F => page.apic_spurious,
        0x10..=0x17 => page.apic_isr[index],
        0x18..=0x1F => page.apic_tmr[index],
        0x20..=0x27 => page.apic_irr[index],
        0x28 => page.apic_esr,
        0x32 => page.apic_lvt_timer,
        0x33 => page.apic_lvt_thermal,
        0x34 => page.apic_lvt_perfmon,
        0x35 => page.apic_lvt_lint0,
        0x36 => page.apic_lvt_lint1,
        0x37 => page.apic_lvt_error,
        0x38 => page.apic_initial_count,
        0x39 => page.apic_counter_value,
        0x3E => page.apic_divide_configuration,
        _ => return None,
    };
    Some(u64::from(value).into())
}

fn set(
    context: &mut Context<'_>,
    partition: &Partition,
    vp: &Vp,
    name: Name,
    value: HvRegisterValue,
) -> HvResult {
    let own = partition.id == context.caller.id;
    // A guest does not suspend itself or answer its own intercepts.
    if own && (name.0 < 0x100 || name == Name::INTERCEPT_COMPLETION) {
        return Err(HvStatus::ACCESS_DENIED);
    }
    let handled = set_control(vp, name, value)?
        || set_partition_wide(context, partition, vp, name, value.as_u64())?
        || set_apic(context, vp, name, value.as_u64())?
        || set_synic(context, partition, vp, name, value.as_u64())?;
    if handled {
        vp.request(context.platform(), Requests::EVENT);
        return Ok(());
    }
    if name == Name::PENDING_INTERRUPTION {
        return set_pending_interruption(context, vp, HvPendingInterruption(value.as_u64()));
    }
    context
        .processor(vp)?
        .set_register(name, value)
        .map_err(|error| match error {
            InvalidRegister::UnknownName => HvStatus::INVALID_PARAMETER,
            InvalidRegister::InvalidValue => HvStatus::INVALID_REGISTER_VALUE,
        })
}

/// Suspension, intercepts, activity, crash parameters. Whether it was one.
fn set_control(vp: &Vp, name: Name, value: HvRegisterValue) -> HvResult<bool> {
    let mut state = vp.state.lock();
    let low = value.as_u64();
    match name {
        Name::EXPLICIT_SUSPEND => state.explicit_suspend = low & 1 != 0,
        Name::INTERCEPT_SUSPEND => state.intercept_suspend = low & 1 != 0,
        Name::INTERNAL_ACTIVITY_STATE => {
            let activity = HvInternalActivity::from_bits(low);
            state.set_internal_activity(activity.ok_or(HvStatus::INVALID_REGISTER_VALUE)?);
        }
        Name::INTERCEPT_COMPLETION => {
            let intercept = state.intercept.as_mut().ok_or(HvStatus::INVALID_VP_STATE)?;
            intercept.answer = Some(value.0);
        }
        Name::PENDING_EVENT0 => {
            let event = HvPendingExceptionEvent(value.0);
            state.pending_exception = event
                .pending()
                .then(|| exception(event.vector(), event.error_code()))
                .transpose()?;
        }
        Name::PENDING_EVENT1 => require(low & 1 == 0)?,
        Name(0x210..=0x214) => state.crash[(name.0 - Name::GUEST_CRASH_P0.0) as usize] = low,
        _ => return Ok(false),
    }
    Ok(true)
}

fn exception(vector: u16, error_code: Option<u32>) -> HvResult<Exception> {
    let vector = u8::try_from(vector).ok().filter(|vector| *vector < 32);
    let vector = vector.ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
    Ok(Exception { vector, error_code })
}

fn set_pending_interruption(
    context: &mut Context<'_>,
    vp: &Vp,
    event: HvPendingInterruption,
) -> HvResult {
    match (event.pending(), event.kind()) {
        (false, _) => vp.state.lock().pending_exception = None,
        (true, HvPendingInterruption::EXCEPTION) => {
            let exception = exception(event.vector(), event.error_code())?;
            vp.state.lock().pending_exception = Some(exception);
        }
        (true, HvPendingInterruption::NMI) => {
            let mut state = vp.state.lock();
            state.pending_nmis = state.pending_nmis.max(1);
        }
        (true, HvPendingInterruption::INTERRUPT) => {
            let vector = u8::try_from(event.vector());
            let vector = vector.map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
            context.processor(vp)?.inject(Injection::Interrupt(vector));
        }
        _ => return Err(HvStatus::INVALID_REGISTER_VALUE),
    }
    vp.request(context.platform(), Requests::EVENT);
    Ok(())
}

/// Registers that place pages, or belong to all virtual processors.
fn set_partition_wide(
    context: &Context<'_>,
    partition: &Partition,
    vp: &Vp,
    name: Name,
    value: u64,
) -> HvResult<bool> {
    let hypervisor = context.hypervisor;
    match name {
        Name::GUEST_OS_ID => hypervisor.set_guest_os_id(partition, value),
        Name::HYPERCALL if hypervisor.set_hypercall_msr(partition, value) => {}
        Name::HYPERCALL => return Err(HvStatus::INVALID_REGISTER_VALUE),
        Name::REFERENCE_TSC => hypervisor.set_reference_tsc_msr(partition, value),
        Name::VP_ASSIST_PAGE => {
            hypervisor.set_vp_page(partition, vp, HV_X64_MSR_VP_ASSIST_PAGE, value);
        }
        Name::SIEFP => hypervisor.set_vp_page(partition, vp, HV_X64_MSR_SIEFP, value),
        Name::SIMP => hypervisor.set_vp_page(partition, vp, HV_X64_MSR_SIMP, value),
        Name::VP_INDEX
        | Name::TIME_REF_COUNT
        | Name::VP_RUNTIME
        | Name::SVERSION
        | Name::INITIAL_APIC_ID => return Err(HvStatus::INVALID_PARAMETER),
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_apic(context: &mut Context<'_>, vp: &Vp, name: Name, value: u64) -> HvResult<bool> {
    let invalid = HvStatus::INVALID_REGISTER_VALUE;
    match name {
        Name::CR8 => {
            let class = u8::try_from(value)
                .ok()
                .filter(|class| *class < 16)
                .ok_or(invalid)?;
            vp.state.lock().apic.set_tpr(class << 4);
        }
        Name::APIC_TPR | Name::SYNTHETIC_TPR => {
            vp.state
                .lock()
                .apic
                .set_hv_tpr(value)
                .map_err(|_| invalid)?;
        }
        Name::APIC_BASE => vp
            .state
            .lock()
            .apic
            .set_base_msr(value)
            .map_err(|_| invalid)?,
        Name::TSC_DEADLINE => vp.state.lock().apic.set_tsc_deadline(value),
        _ => return set_apic_page(context, vp, name, value),
    }
    Ok(true)
}

/// Registers of the APIC's page that a parent restores. Nothing is sent or
/// raised by it.
fn set_apic_page(context: &mut Context<'_>, vp: &Vp, name: Name, value: u64) -> HvResult<bool> {
    let Some(offset) = apic_offset(name) else {
        return Ok(false);
    };
    let value = u32::try_from(value).map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
    let now = context.processor(vp)?.tsc();
    let mut state = vp.state.lock();
    let mut page = state.apic.page(now);
    let index = (offset & 7) as usize;
    let register = match offset {
        0x0D => &mut page.apic_ldr,
        0x0F => &mut page.apic_spurious,
        0x10..=0x17 => &mut page.apic_isr[index],
        0x18..=0x1F => &mut page.apic_tmr[index],
        0x20..=0x27 => &mut page.apic_irr[index],
        0x28 => &mut page.apic_esr,
        0x32 => &mut page.apic_lvt_timer,
        0x33 => &mut page.apic_lvt_thermal,
        0x34 => &mut page.apic_lvt_perfmon,
        0x35 => &mut page.apic_lvt_lint0,
        0x36 => &mut page.apic_lvt_lint1,
        0x37 => &mut page.apic_lvt_error,
        0x38 => &mut page.apic_initial_count,
        0x3E => &mut page.apic_divide_configuration,
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    *register = value;
    state.apic.restore(&page, now);
    Ok(true)
}

fn set_synic(
    context: &Context<'_>,
    partition: &Partition,
    vp: &Vp,
    name: Name,
    value: u64,
) -> HvResult<bool> {
    let platform = context.platform();
    let now = partition.clock.now(platform);
    let mut state = vp.state.lock();
    let (synic, mut bus) = split(&mut state, platform, now);
    let valid = match name {
        Name::SCONTROL => {
            synic.control = value;
            true
        }
        Name::EOM => {
            synic.deliver(&mut bus);
            true
        }
        Name(0xA0000..=0xA000F) => synic.set_sint((name.0 - Name::SINT0.0) as usize, value),
        Name(0xB0000..=0xB0007) => {
            let index = ((name.0 - Name::STIMER0_CONFIG.0) / 2) as usize;
            if name.0 & 1 == 0 {
                synic.set_timer_config(index, value, now)
            } else {
                synic.set_timer_count(index, value, now);
                true
            }
        }
        _ => return Ok(false),
    };
    if valid {
        Ok(true)
    } else {
        Err(HvStatus::INVALID_REGISTER_VALUE)
    }
}
