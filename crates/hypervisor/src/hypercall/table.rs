//! The hypercalls that exist. Whoever adds one adds a line here.

use tlfs::*;
use tlfs::{HvCallCode as C, HvHypercallControl, HvPartitionPrivilegeMask as P, HvStatus};

use super::{Call, HvResult, Kind};
use super::{flush, intercept, interrupt, memory, message, partition, port, registers, system, vp};

const NO: P = P::empty();

const fn simple(
    code: C,
    privilege: P,
    input: usize,
    output: usize,
    handler: super::SimpleHandler,
) -> Call {
    Call {
        code,
        privilege,
        input,
        variable: false,
        output,
        kind: Kind::Simple(handler),
    }
}

const fn rep(
    code: C,
    privilege: P,
    header: usize,
    (input, output): (usize, usize),
    handler: super::RepHandler,
) -> Call {
    let kind = Kind::Rep {
        input,
        output,
        handler,
    };
    Call {
        code,
        privilege,
        input: header,
        variable: false,
        output: 0,
        kind,
    }
}

const fn variable(call: Call) -> Call {
    Call {
        variable: true,
        ..call
    }
}

const fn of<T>() -> usize {
    size_of::<T>()
}

#[rustfmt::skip]
static CALLS: &[Call] = &[
    simple(C::FLUSH_VIRTUAL_ADDRESS_SPACE, NO, of::<HvInputFlushVirtualAddressSpace>(), 0, flush::space),
    rep(C::FLUSH_VIRTUAL_ADDRESS_LIST, NO, of::<HvInputFlushVirtualAddressSpace>(), (8, 0), flush::list),
    simple(C::NOTIFY_LONG_SPIN_WAIT, NO, 8, 0, system::notify_long_spin_wait),
    simple(C::SEND_SYNTHETIC_CLUSTER_IPI, NO, of::<HvInputSendSyntheticClusterIpi>(), 0, interrupt::cluster_ipi),
    variable(simple(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, NO, of::<HvInputFlushVirtualAddressSpaceEx>(), 0, flush::space_ex)),
    variable(rep(C::FLUSH_VIRTUAL_ADDRESS_LIST_EX, NO, of::<HvInputFlushVirtualAddressSpaceEx>(), (8, 0), flush::list_ex)),
    variable(simple(C::SEND_SYNTHETIC_CLUSTER_IPI_EX, NO, of::<HvInputSendSyntheticClusterIpiEx>(), 0, interrupt::cluster_ipi_ex)),
    simple(C::CREATE_PARTITION, P::CREATE_PARTITIONS, of::<HvInputCreatePartition>(), 8, partition::create),
    simple(C::INITIALIZE_PARTITION, NO, of::<HvPartitionIdParameter>(), 0, partition::initialize),
    simple(C::FINALIZE_PARTITION, NO, of::<HvPartitionIdParameter>(), 0, partition::finalize),
    simple(C::DELETE_PARTITION, NO, of::<HvPartitionIdParameter>(), 0, partition::delete),
    simple(C::GET_PARTITION_PROPERTY, NO, of::<HvInputGetPartitionProperty>(), 8, partition::get_property),
    simple(C::SET_PARTITION_PROPERTY, NO, of::<HvInputSetPartitionProperty>(), 0, partition::set_property),
    simple(C::GET_PARTITION_ID, P::ACCESS_PARTITION_ID, 0, 8, partition::get_id),
    simple(C::GET_NEXT_CHILD_PARTITION, P::CREATE_PARTITIONS, of::<HvInputGetNextChildPartition>(), 8, partition::next_child),
    rep(C::DEPOSIT_MEMORY, P::ACCESS_MEMORY_POOL, of::<HvInputDepositMemory>(), (8, 0), memory::deposit),
    rep(C::WITHDRAW_MEMORY, P::ACCESS_MEMORY_POOL, of::<HvInputMemoryPool>(), (0, 8), memory::withdraw),
    simple(C::GET_MEMORY_BALANCE, P::ACCESS_MEMORY_POOL, of::<HvInputMemoryPool>(), 16, memory::balance),
    rep(C::MAP_GPA_PAGES, NO, of::<HvInputMapGpaPages>(), (8, 0), memory::map),
    rep(C::UNMAP_GPA_PAGES, NO, of::<HvInputUnmapGpaPages>(), (0, 0), memory::unmap),
    simple(C::INSTALL_INTERCEPT, NO, of::<HvInputInstallIntercept>(), 0, intercept::install),
    simple(C::CREATE_VP, NO, of::<HvInputCreateVp>(), 0, vp::create),
    simple(C::DELETE_VP, NO, of::<HvInputDeleteVp>(), 0, vp::delete),
    rep(C::GET_VP_REGISTERS, NO, of::<HvInputVpRegisters>(), (4, 16), registers::get_list),
    rep(C::SET_VP_REGISTERS, NO, of::<HvInputVpRegisters>(), (32, 0), registers::set_list),
    simple(C::TRANSLATE_VIRTUAL_ADDRESS, NO, of::<HvInputTranslateVirtualAddress>(), 16, vp::translate),
    simple(C::READ_GPA, NO, of::<HvInputReadGpa>(), of::<HvOutputReadGpa>(), memory::read_gpa),
    simple(C::WRITE_GPA, NO, of::<HvInputWriteGpa>(), of::<HvOutputWriteGpa>(), memory::write_gpa),
    simple(C::ASSERT_VIRTUAL_INTERRUPT_DEPRECATED, NO, of::<HvInputAssertVirtualInterrupt>(), 0, interrupt::assert_deprecated),
    simple(C::CLEAR_VIRTUAL_INTERRUPT, NO, of::<HvInputClearVirtualInterrupt>(), 0, interrupt::clear),
    simple(C::CREATE_PORT_DEPRECATED, P::CREATE_PORT, of::<HvInputCreatePortDeprecated>(), 0, port::create_deprecated),
    simple(C::DELETE_PORT, P::CREATE_PORT, of::<HvInputPortReference>(), 0, port::delete),
    simple(C::CONNECT_PORT_DEPRECATED, P::CONNECT_PORT, of::<HvInputConnectPortDeprecated>(), 0, port::connect_deprecated),
    simple(C::DISCONNECT_PORT, P::CONNECT_PORT, of::<HvInputPortReference>(), 0, port::disconnect),
    simple(C::POST_MESSAGE, P::POST_MESSAGES, of::<HvInputPostMessage>(), 0, message::post),
    simple(C::SIGNAL_EVENT, P::SIGNAL_EVENTS, of::<HvInputSignalEvent>(), 0, message::signal),
    rep(C::MAP_SPARSE_GPA_PAGES, NO, of::<HvInputMapSparseGpaPages>(), (16, 0), memory::map_sparse),
    simple(C::GET_SYSTEM_PROPERTY, NO, of::<HvInputGetSystemProperty>(), 8, system::get_property),
    simple(C::REGISTER_INTERCEPT_RESULT, NO, of::<HvInputRegisterInterceptResult>(), 0, intercept::register_result),
    simple(C::UNREGISTER_INTERCEPT_RESULT, NO, of::<HvInputUnregisterInterceptResult>(), 0, intercept::unregister_result),
    simple(C::ASSERT_VIRTUAL_INTERRUPT, NO, of::<HvInputAssertVirtualInterrupt>(), 0, interrupt::assert),
    simple(C::CREATE_PORT, P::CREATE_PORT, of::<HvInputCreatePort>(), 0, port::create),
    simple(C::CONNECT_PORT, P::CONNECT_PORT, of::<HvInputConnectPort>(), 0, port::connect),
    simple(C::START_VIRTUAL_PROCESSOR, P::START_VIRTUAL_PROCESSOR, of::<HvInputStartVirtualProcessor>(), 0, vp::start),
    rep(C::GET_VP_INDEX_FROM_APIC_ID, P::START_VIRTUAL_PROCESSOR, of::<HvInputGetVpIndexFromApicId>(), (4, 4), vp::index_from_apic_id),
    simple(C::TRANSLATE_VIRTUAL_ADDRESS_EX, NO, of::<HvInputTranslateVirtualAddress>(), 64, vp::translate_ex),
    simple(C::SIGNAL_EVENT_DIRECT, NO, of::<HvInputSignalEventDirect>(), 8, message::signal_direct),
    simple(C::POST_MESSAGE_DIRECT, NO, of::<HvInputPostMessageDirect>(), 0, message::post_direct),
    simple(C::EXT_QUERY_CAPABILITIES, P::ENABLE_EXTENDED_HYPERCALLS, 0, 8, system::query_extended_capabilities),
];

/// The call that a control word names, if the word is well-formed.
pub(crate) fn find_call(control: HvHypercallControl) -> HvResult<&'static Call> {
    let code = control.code();
    let call = CALLS
        .iter()
        .find(|call| call.code == code)
        .ok_or(HvStatus::INVALID_HYPERCALL_CODE)?;
    call.check(control)?;
    Ok(call)
}
