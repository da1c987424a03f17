//! Virtual disk files: VHDX, VHD and raw.
