//! The controller over a bus, as a guest sees it.

mod files;
mod guest;
mod hostile;
mod in_flight;
mod refused;
mod requests;
