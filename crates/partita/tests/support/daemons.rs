//! Debian's daemons for the integration components.

use super::linux::{self, Linux};
use super::tree::Tree;

const DAEMONS: [&str; 3] = ["kvp", "vss", "fcopy"];

/// Files of a guest with the daemons' programs.
pub(crate) fn tree(package: &str) -> Tree {
    let mut tree = linux::tree(package);
    tree.programs(&[
        "usr/sbin/hv_kvp_daemon",
        "usr/sbin/hv_vss_daemon",
        "usr/sbin/hv_fcopy_daemon",
        "usr/libexec/hypervkvpd/hv_get_dns_info",
        "usr/libexec/hypervkvpd/hv_get_dhcp_info",
    ]);
    // Those two are scripts for another shell.
    tree.file(
        "bin/bash",
        0o755,
        b"#!/bin/sh\nexec /bin/sh \"$@\"\n".to_vec(),
    );
    tree.file(
        "etc/resolv.conf",
        0o644,
        b"nameserver 192.0.2.53\n".to_vec(),
    );
    tree
}

/// Starts the daemons, with somebody who takes what they have to complain about.
pub(crate) fn start(guest: &mut Linux) {
    guest.sh("syslogd -O /run/syslog && until [ -S /dev/log ]; do sleep 0.1; done");
    for daemon in DAEMONS {
        guest.until(&format!("[ -c /dev/vmbus/hv_{daemon} ]"));
        guest.sh(&format!("hv_{daemon}_daemon"));
    }
    guest.control.wait_until("/components", |components| {
        let components = components.as_object().expect("an object");
        components.values().all(|connected| connected == true)
    });
}
