//! Every form that user code can run, against the host's own processor: the
//! same instruction with the same operands, once through the decoder and a
//! [`Vp`], once natively, comparing registers, flags, MXCSR, x87 image and
//! memory. Seeded: a failure names its seed.
//!
//! Left out: FIP, FDP and FOP (the native runner's own addresses; tested by
//! themselves), and MASKMOVQ, MASKMOVDQU, the state-saving instructions and
//! environments, which have tests of their own.

mod differential;
mod environments;
mod machine;
mod native;
mod random;
mod state;
mod translated;
mod unmasked;
mod vex;
mod xsave;
