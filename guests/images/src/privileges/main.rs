//! What the partition may do: CPUID leaves, registers and hypercalls by privilege.
#![no_std]
#![no_main]

mod leaves;
mod registers;

use guest_kit::guest;

guest!(
    "privileges",
    leaves::hypervisor,
    leaves::features,
    leaves::processor,
    registers::unknown,
    registers::by_privilege,
    registers::contents,
    registers::crash,
    registers::assist_page,
    registers::guest_idle,
    registers::hypercalls,
);
