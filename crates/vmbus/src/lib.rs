//! The channel bus (VMBus) between the root partition and a child.
//!
//! * [`protocol`]: the wire types.
//! * [`server`]: the control plane, a pure state machine.
//! * [`ring`]: rings in guest memory.
//! * [`bus`]: the bus at work; devices implement [`bus::Vsp`].
//! * [`client`]: the guest's side, to test and fuzz the others.
//!
//! Everything that comes from the guest is taken for hostile: it is read
//! once, checked, and can only hurt the guest itself. What the bus keeps for
//! a guest is bounded.

#[macro_use]
mod macros;

pub mod bus;
pub mod client;
pub mod protocol;
pub mod ring;
pub mod server;
