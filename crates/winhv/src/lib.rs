//! winhv
