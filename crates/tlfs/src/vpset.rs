//! Sets of virtual processors (TLFS 7.8.7.3, HV_VP_SET).

/// HV_GENERIC_SET_SPARSE_4K: banks of 64 VPs.
pub const HV_GENERIC_SET_SPARSE_4K: u64 = 0;
/// HV_GENERIC_SET_ALL: all VPs.
pub const HV_GENERIC_SET_ALL: u64 = 1;
/// VPs in a bank.
pub const HV_VPS_PER_BANK: u32 = 64;

wire! {
    /// HV_VP_SET without its banks.
    pub struct HvVpSetHeader {
        /// [`HV_GENERIC_SET_SPARSE_4K`] or [`HV_GENERIC_SET_ALL`].
        pub format: u64,
        /// One bit for each bank that follows.
        pub valid_bank_mask: u64,
    }
}
