//! Sizes and offsets that the TLFS and the public headers fix.

use core::mem::offset_of;

use tlfs::*;

#[test]
fn sizes() {
    assert_eq!(size_of::<HvMessage>(), 256);
    assert_eq!(size_of::<HvMessageHeader>(), 16);
    assert_eq!(size_of::<HvX64InterceptMessageHeader>(), 40);
    assert_eq!(size_of::<HvX64SegmentRegister>(), 16);
    assert_eq!(size_of::<HvX64TableRegister>(), 16);
    assert_eq!(size_of::<HvRegisterValue>(), 16);
    assert_eq!(size_of::<HvRegisterAssoc>(), 32);
    assert_eq!(size_of::<HvInitialVpContext>(), 224);
    assert_eq!(size_of::<HvInputStartVirtualProcessor>(), 240);
    assert_eq!(size_of::<HvInputCreatePort>(), 56);
    assert_eq!(size_of::<HvInputConnectPort>(), 72);
    assert_eq!(size_of::<HvInputPostMessage>(), 256);
    assert_eq!(size_of::<HvInputSignalEvent>(), 8);
    assert_eq!(size_of::<HvInputCreateVp>(), 40);
    assert_eq!(size_of::<HvInputAssertVirtualInterrupt>(), 32);
    assert_eq!(size_of::<HvTimerMessagePayload>(), 24);
    assert_eq!(size_of::<HvOutputTranslateVirtualAddressEx>(), 64);
    assert_eq!(size_of::<HvReferenceTscPage>(), 24);
}

#[test]
fn offsets() {
    assert_eq!(
        offset_of!(HvX64MemoryInterceptMessage, guest_physical_address),
        56
    );
    // The extension begins where the TLFS's layout ends.
    assert_eq!(offset_of!(HvX64MemoryInterceptMessage, access_size), 0x50);
    assert_eq!(offset_of!(HvX64IoPortInterceptMessage, rax), 48);
    assert_eq!(offset_of!(HvX64IoPortInterceptMessage, rcx), 104);
    assert_eq!(offset_of!(HvReferenceTscPage, tsc_scale), 8);
    assert_eq!(offset_of!(HvReferenceTscPage, tsc_offset), 16);
    assert_eq!(offset_of!(HvVpAssistPage, current_nested_vmcs), 48);
    assert_eq!(offset_of!(HvInputMapGpaPages, map_flags), 16);
    assert_eq!(offset_of!(HvInputPostMessageDirect, message), 16);
    assert_eq!(offset_of!(HvInputRegisterInterceptResult, result), 28);
}

#[test]
fn control_and_result_words() {
    let control = HvHypercallControl::rep(HvCallCode::MAP_GPA_PAGES, 25, 20)
        .with_fast()
        .with_variable_header(3);
    assert_eq!(control.0, 0x0014_0019_0007_004B);
    assert_eq!((control.rep_count(), control.rep_start()), (25, 20));
    assert_eq!(
        (control.fast(), control.variable_header_qwords()),
        (true, 3)
    );
    assert_eq!(control.code(), HvCallCode::MAP_GPA_PAGES);
    let result = HvHypercallResult::new(HvStatus::INSUFFICIENT_BUFFERS, 7);
    assert_eq!(result.0, 0x7_0000_0013);
    assert_eq!(
        (result.status(), result.reps_completed()),
        (HvStatus::INSUFFICIENT_BUFFERS, 7)
    );
    assert_eq!(
        result.status().to_string(),
        "HV_STATUS_INSUFFICIENT_BUFFERS (0x13)"
    );
}

#[test]
fn register_values() {
    let segment = HvX64SegmentRegister {
        base: 1 << 40,
        limit: 5,
        selector: 8,
        attributes: 0xA09B,
    };
    assert_eq!(HvRegisterValue::from(segment).as_segment(), segment);
    assert_eq!(HvRegisterValue::from(segment).0 as u64, 1 << 40);
    let table = HvX64TableRegister {
        pad: [0; 3],
        limit: 0x7F,
        base: 0x1000,
    };
    assert_eq!(
        HvRegisterValue::from(table).0,
        0x1000u128 << 64 | 0x7F << 48
    );
    let event = HvPendingExceptionEvent::new(14, Some(2));
    assert_eq!(
        (event.pending(), event.vector(), event.error_code()),
        (true, 14, Some(2))
    );
    assert_eq!(HvGvaRange(0x5000 | 3).simple(), (0x5000, 4));
    assert_eq!(
        HvGvaRange(0x4000_0000 | 1 << 12 | 1 << 11).extended(),
        (0x4000_0000, 1 << 18)
    );
}
