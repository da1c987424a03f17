//! Partition, virtual-processor and memory services for the virtualization
//! stack.
//!
//! A worker creates its child partition here. Everything about partitions
//! goes through `winhv` as encoded hypercalls; what this crate adds is the
//! host's side: memory, threads and time for the hypervisor, the processor
//! that runs a guest's instructions, and intercepts as calls of a handler.

mod guest_pages;
mod intercept;
mod observer;
mod partition;
mod platform;
mod registers;
mod software;
mod space;
mod system_memory;
mod timer;
mod tsc;
mod virtual_processor;

pub use guest_pages::{GuestBuffer, GuestPages, HostPiece};
pub use hypervisor::{BadSpa, CrashReport, RootNotification};
pub use intercept::InterceptHandler;
pub use observer::{HypercallObserver, ObservedCall};
pub use partition::{BadGpa, Partition, PartitionConfig, RamRange, VidError};
pub use platform::NotificationSink;
pub use processor::ProcessorMode;
pub use system_memory::{PAGE_SIZE, SystemMemory};
pub use virtual_processor::{VirtualProcessor, VpStop};
pub use winhv::HvError;
