//! Small machine-code programs that use what a kernel uses.

mod debug;
mod long;
mod machine;
mod protected;
mod random;
mod registers;
mod virtual86;
