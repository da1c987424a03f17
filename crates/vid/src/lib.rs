//! vid
