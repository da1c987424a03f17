//! Virtualization service providers: the root's ends of the synthetic devices
//! and integration components that children use over the VMBus.

pub mod ic;
pub mod storage;
