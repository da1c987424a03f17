//! Virtual interrupts.

use tlfs::{
    HvCallCode, HvInputAssertVirtualInterrupt, HvInputClearVirtualInterrupt, HvInterruptControl,
    HvPartitionId,
};

use crate::{HvResult, Transport, WinHv};

impl<T: Transport> WinHv<T> {
    /// HvCallAssertVirtualInterrupt: `destination` is an APIC id or a logical
    /// destination as `control` says.
    pub fn assert_virtual_interrupt(
        &self,
        partition_id: HvPartitionId,
        control: HvInterruptControl,
        destination: u64,
        vector: u8,
    ) -> HvResult {
        let input = HvInputAssertVirtualInterrupt {
            partition_id,
            control: control.0,
            destination_address: destination,
            vector: vector.into(),
            ..Default::default()
        };
        self.call(HvCallCode::ASSERT_VIRTUAL_INTERRUPT, &input)
    }

    /// HvCallClearVirtualInterrupt: takes back an external interrupt that
    /// was not acknowledged.
    pub fn clear_virtual_interrupt(&self, partition_id: HvPartitionId) -> HvResult {
        self.call(
            HvCallCode::CLEAR_VIRTUAL_INTERRUPT,
            &HvInputClearVirtualInterrupt { partition_id },
        )
    }
}
