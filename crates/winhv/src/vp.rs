//! Virtual processors.

use alloc::vec;
use alloc::vec::Vec;

use tlfs::{
    HV_PAGE_SIZE, HvCallCode, HvInputCreateVp, HvInputDeleteVp, HvInputTranslateVirtualAddress,
    HvInputVpRegisters, HvOutputTranslateVirtualAddress, HvPartitionId, HvRegisterAssoc,
    HvRegisterName, HvRegisterValue, HvTranslateGvaFlags, HvVpIndex,
};
use zerocopy::IntoBytes;

use crate::{HvError, HvResult, Transport, WinHv};

/// Register values in a page of output.
const VALUES_PER_PAGE: usize = HV_PAGE_SIZE / size_of::<HvRegisterValue>();

fn header(partition_id: HvPartitionId, vp_index: HvVpIndex) -> HvInputVpRegisters {
    HvInputVpRegisters {
        partition_id,
        vp_index,
        ..Default::default()
    }
}

impl<T: Transport> WinHv<T> {
    /// HvCallCreateVp. May want memory deposited. The new virtual processor
    /// is suspended until `EXPLICIT_SUSPEND` is cleared.
    pub fn create_vp(&self, partition_id: HvPartitionId, vp_index: HvVpIndex) -> HvResult {
        let input = HvInputCreateVp {
            partition_id,
            vp_index,
            ..Default::default()
        };
        self.call(HvCallCode::CREATE_VP, &input)
    }

    /// HvCallDeleteVp.
    pub fn delete_vp(&self, partition_id: HvPartitionId, vp_index: HvVpIndex) -> HvResult {
        let input = HvInputDeleteVp {
            partition_id,
            vp_index,
            reserved: 0,
        };
        self.call(HvCallCode::DELETE_VP, &input)
    }

    /// HvCallGetVpRegisters: the values in the order of the names.
    pub fn vp_registers(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        names: &[HvRegisterName],
    ) -> HvResult<Vec<HvRegisterValue>> {
        let mut values = Vec::with_capacity(names.len());
        for names in names.chunks(VALUES_PER_PAGE) {
            let mut input = header(partition_id, vp_index).as_bytes().to_vec();
            input.extend_from_slice(names.as_bytes());
            let mut output = vec![HvRegisterValue::default(); names.len()];
            let done = values.len();
            let shift = |error: HvError| HvError {
                completed: done + error.completed,
                ..error
            };
            let code = HvCallCode::GET_VP_REGISTERS;
            self.rep(code, names.len(), &input, output.as_mut_bytes())
                .map_err(shift)?;
            values.append(&mut output);
        }
        Ok(values)
    }

    /// One register by HvCallGetVpRegisters.
    pub fn vp_register(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        name: HvRegisterName,
    ) -> HvResult<HvRegisterValue> {
        let values = self.vp_registers(partition_id, vp_index, &[name])?;
        Ok(values.first().copied().unwrap_or_default())
    }

    /// HvCallSetVpRegisters, in the order given.
    pub fn set_vp_registers(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        registers: &[(HvRegisterName, HvRegisterValue)],
    ) -> HvResult {
        let elements = registers
            .iter()
            .map(|(name, value)| HvRegisterAssoc::new(*name, *value));
        let header = |_| header(partition_id, vp_index);
        self.rep_list(HvCallCode::SET_VP_REGISTERS, header, elements)
            .map(|_| ())
    }

    /// Answers an intercept: sets `INTERCEPT_COMPLETION` to `value`, then
    /// clears `INTERCEPT_SUSPEND`, in one call.
    pub fn complete_intercept(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        value: u128,
    ) -> HvResult {
        let registers = [
            (HvRegisterName::INTERCEPT_COMPLETION, value.into()),
            (HvRegisterName::INTERCEPT_SUSPEND, 0u64.into()),
        ];
        self.set_vp_registers(partition_id, vp_index, &registers)
    }

    /// Starts a virtual processor, or stops it for the time being.
    pub fn set_explicit_suspend(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        suspended: bool,
    ) -> HvResult {
        let value = u64::from(suspended).into();
        let registers = [(HvRegisterName::EXPLICIT_SUSPEND, value)];
        self.set_vp_registers(partition_id, vp_index, &registers)
    }

    /// HvCallTranslateVirtualAddress.
    pub fn translate_virtual_address(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        gva_page: u64,
        flags: HvTranslateGvaFlags,
    ) -> HvResult<HvOutputTranslateVirtualAddress> {
        let input = HvInputTranslateVirtualAddress {
            partition_id,
            vp_index,
            padding: 0,
            control_flags: flags.bits(),
            gva_page,
        };
        self.call_out(HvCallCode::TRANSLATE_VIRTUAL_ADDRESS, &input)
    }
}
