pub fn protected_mode() {}
pub fn protected_faults() {}
pub fn task_switch() {}
pub fn virtual_8086() {}
pub fn real_mode() {}
