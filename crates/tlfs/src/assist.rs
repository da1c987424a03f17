//! The VP assist page (TLFS 7.8.7).

wire! {
    /// HV_VP_ASSIST_PAGE up to the nested fields.
    pub struct HvVpAssistPage {
        /// Bit 0: no EOI required.
        pub apic_assist: u32,
        /// Reserved.
        pub reserved: u32,
        /// VTL control.
        pub vtl_control: [u64; 3],
        /// Nested enlightenments.
        pub nested_enlightenments_control: u64,
        /// Enlightened VM entry.
        pub enlighten_vm_entry: u8,
        /// Reserved.
        pub reserved1: [u8; 7],
        /// Enlightened VMCS.
        pub current_nested_vmcs: u64,
    }
}
