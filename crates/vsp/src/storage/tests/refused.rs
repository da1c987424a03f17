//! A host that refuses io_uring.

use super::guest::{Guest, NO_DATA, data_in};
use crate::storage::scsi::{op, test_medium::TestMedium};
use crate::storage::uring::ring::Ring;
use crate::storage::{Attachment, Io};

/// Has the kernel refuse io_uring_setup to this thread, and to those that it
/// starts from now on, as container runtimes do.
fn refuse() {
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (load, equal, answer) = (0x20, 0x15, 0x06);
    let refusal = 0x0005_0000 | libc::EPERM as u32;
    let filter = [
        statement(load, 0, 0, 0),
        statement(equal, 0, 1, libc::SYS_io_uring_setup as u32),
        statement(answer, 0, 0, refusal),
        statement(answer, 0, 0, 0x7fff_0000),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: no memory is involved.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(done, 0);
    // SAFETY: the program is read during the call only.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Runs something in a thread that has no io_uring.
fn without_uring(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        refuse();
        assert!(Ring::new().is_err());
        run();
    });
    thread.join().unwrap();
}

#[test]
fn threads_take_its_place() {
    without_uring(|| {
        let mut guest = Guest::new(0, Io::Auto);
        let medium = TestMedium::new(64, 512);
        guest.handle.attach(0, Attachment::Disk(medium)).unwrap();
        let mut channel = guest.ready();
        let read = [op::READ_10, 0, 0, 0, 0, 1, 0, 0, 8, 0];
        let result = channel.command(0, &read, data_in(4096));
        assert_eq!((result.srb_status, result.data_transfer_length), (1, 4096));
        assert_eq!(channel.command(0, &[0; 6], NO_DATA).srb_status, 1);
    });
}

#[test]
fn a_controller_that_must_have_it_opens_no_channel() {
    without_uring(|| {
        let mut guest = Guest::new(0, Io::Uring);
        let offer = guest.offers[0];
        let pfns: Vec<u64> = (16..32).collect();
        assert!(guest.client.open(&offer, &pfns).is_err());
    });
}
