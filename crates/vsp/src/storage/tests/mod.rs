//! The controller over a bus, as a guest sees it.

mod guest;
mod hostile;
mod requests;
