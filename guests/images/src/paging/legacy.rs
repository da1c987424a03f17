pub fn two_levels() {}
pub fn three_levels() {}
