//! The channel bus between the root partition and a child.

#[macro_use]
mod macros;

pub mod bus;
pub mod protocol;
pub mod ring;
pub mod server;
