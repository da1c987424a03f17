//! Tests of the components: their sessions alone, and whole components with
//! a guest on a bus.

mod copying;
mod core;
mod freezing;
mod guest;
mod pairs;
mod services;

use super::wire::{FLAG_RESPONSE, FLAG_TRANSACTION, Header, IcStatus, IcVersion};
use zerocopy::{FromBytes, IntoBytes};

/// Turns a request into its answer, in place, as Linux does.
fn answer(request: &[u8], status: IcStatus) -> Vec<u8> {
    let (mut header, body) = Header::read_from_prefix(request).unwrap();
    header.status = status.0.into();
    header.flags = FLAG_TRANSACTION | FLAG_RESPONSE;
    [header.as_bytes(), body].concat()
}

/// Agrees on versions, whatever was offered.
fn agree(request: &[u8], framework: IcVersion, message: IcVersion) -> Vec<u8> {
    let mut bytes = answer(request, IcStatus::OK);
    bytes.truncate(20);
    bytes[10] = 16;
    bytes.extend([1, 0, 1, 0, 0, 0, 0, 0]);
    bytes.extend(framework.as_bytes());
    bytes.extend(message.as_bytes());
    bytes
}
