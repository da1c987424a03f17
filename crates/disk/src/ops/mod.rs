//! What is done with whole disk files: opening, creating, examining, converting, and changing
//! their chains of parents.
//!
//! A new file takes its name only once it is complete and durable. A file that is changed in place
//! goes through its log, or in an order in which every step leaves a valid disk. So each of these
//! may be killed at any time, and done again.

mod chain;
mod convert;
mod create;
mod draft;
mod maintain;
mod open;
mod path;

pub use chain::{RebaseMode, merge, rebase};
pub use convert::convert;
pub use create::{CreateOptions, create, create_on, create_with_progress};
pub use maintain::{CheckReport, check, compact, info, resize};
pub use open::{OpenOptions, open};
