//! Partitions.

use tlfs::{
    HvCallCode, HvInputCreatePartition, HvInputGetNextChildPartition, HvInputGetPartitionProperty,
    HvInputGetSystemProperty, HvInputInstallIntercept, HvInputRegisterInterceptResult,
    HvInputSetPartitionProperty, HvInputUnregisterInterceptResult, HvInterceptAccessMask,
    HvInterceptType, HvOutputGetPartitionProperty, HvOutputGetSystemProperty,
    HvPartitionCreationFlags, HvPartitionId, HvPartitionIdParameter, HvPartitionPropertyCode,
    HvSystemProperty,
};

use crate::{HvResult, Transport, WinHv};

impl<T: Transport> WinHv<T> {
    /// HvCallCreatePartition: a child of the caller; its id.
    pub fn create_partition(&self, flags: HvPartitionCreationFlags) -> HvResult<HvPartitionId> {
        let input = HvInputCreatePartition {
            flags: flags.bits(),
            ..Default::default()
        };
        let output: HvPartitionIdParameter = self.call_out(HvCallCode::CREATE_PARTITION, &input)?;
        Ok(output.partition_id)
    }

    /// HvCallInitializePartition. May want memory deposited.
    pub fn initialize_partition(&self, partition_id: HvPartitionId) -> HvResult {
        self.call(
            HvCallCode::INITIALIZE_PARTITION,
            &HvPartitionIdParameter { partition_id },
        )
    }

    /// HvCallFinalizePartition.
    pub fn finalize_partition(&self, partition_id: HvPartitionId) -> HvResult {
        self.call(
            HvCallCode::FINALIZE_PARTITION,
            &HvPartitionIdParameter { partition_id },
        )
    }

    /// HvCallDeletePartition.
    pub fn delete_partition(&self, partition_id: HvPartitionId) -> HvResult {
        self.call(
            HvCallCode::DELETE_PARTITION,
            &HvPartitionIdParameter { partition_id },
        )
    }

    /// HvCallGetPartitionProperty.
    pub fn partition_property(
        &self,
        partition_id: HvPartitionId,
        property_code: HvPartitionPropertyCode,
    ) -> HvResult<u64> {
        let input = HvInputGetPartitionProperty {
            partition_id,
            property_code,
            padding: 0,
        };
        let output: HvOutputGetPartitionProperty =
            self.call_out(HvCallCode::GET_PARTITION_PROPERTY, &input)?;
        Ok(output.property_value)
    }

    /// HvCallSetPartitionProperty.
    pub fn set_partition_property(
        &self,
        partition_id: HvPartitionId,
        property_code: HvPartitionPropertyCode,
        property_value: u64,
    ) -> HvResult {
        let input = HvInputSetPartitionProperty {
            partition_id,
            property_code,
            padding: 0,
            property_value,
        };
        self.call(HvCallCode::SET_PARTITION_PROPERTY, &input)
    }

    /// HvCallGetPartitionId: the caller's.
    pub fn partition_id(&self) -> HvResult<HvPartitionId> {
        let output: HvPartitionIdParameter =
            self.call_out(HvCallCode::GET_PARTITION_ID, &[0u8; 0])?;
        Ok(output.partition_id)
    }

    /// HvCallGetNextChildPartition: the child after `previous` (0 for the
    /// first); `None` when there is no more.
    pub fn next_child_partition(
        &self,
        parent_id: HvPartitionId,
        previous: HvPartitionId,
    ) -> HvResult<Option<HvPartitionId>> {
        let input = HvInputGetNextChildPartition {
            parent_id,
            previous_child_id: previous,
        };
        let output: HvPartitionIdParameter =
            self.call_out(HvCallCode::GET_NEXT_CHILD_PARTITION, &input)?;
        Ok((output.partition_id != tlfs::HV_PARTITION_ID_INVALID).then_some(output.partition_id))
    }

    /// HvCallInstallIntercept; an empty `access` removes. `parameter` is the
    /// port, CPUID leaf or MSR.
    pub fn install_intercept(
        &self,
        partition_id: HvPartitionId,
        intercept_type: HvInterceptType,
        parameter: u64,
        access: HvInterceptAccessMask,
    ) -> HvResult {
        let input = HvInputInstallIntercept {
            partition_id,
            access_type: access.bits(),
            intercept_type,
            parameters: parameter,
        };
        self.call(HvCallCode::INSTALL_INTERCEPT, &input)
    }

    /// HvCallRegisterInterceptResult.
    pub fn register_intercept_result(&self, result: &HvInputRegisterInterceptResult) -> HvResult {
        self.call(HvCallCode::REGISTER_INTERCEPT_RESULT, result)
    }

    /// HvCallUnregisterInterceptResult.
    pub fn unregister_intercept_result(
        &self,
        result: &HvInputUnregisterInterceptResult,
    ) -> HvResult {
        self.call(HvCallCode::UNREGISTER_INTERCEPT_RESULT, result)
    }

    /// HvCallGetSystemProperty.
    pub fn system_property(&self, property_id: HvSystemProperty) -> HvResult<u64> {
        let input = HvInputGetSystemProperty {
            property_id,
            reserved: 0,
            argument: 0,
        };
        let output: HvOutputGetSystemProperty =
            self.call_out(HvCallCode::GET_SYSTEM_PROPERTY, &input)?;
        Ok(output.value)
    }
}
