//! A boot with every step of the translator compared with the interpreter.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use support::initramfs;
use support::packages::{self, CLOUD};
use support::vm::Vm;

#[test]
fn translator_and_interpreter_agree_on_a_boot() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    let script = "seq 1 2000 | sort -r | sha256sum\npoweroff -f\n";
    initramfs::write(&initrd, script);
    let kernel = packages::kernel(CLOUD);
    let ended = Vm::start([
        "run".as_ref(),
        "--kernel".as_ref(),
        kernel.as_os_str(),
        "--initrd".as_ref(),
        initrd.as_os_str(),
        "--memory".as_ref(),
        "256M".as_ref(),
        "--processor-mode".as_ref(),
        "check".as_ref(),
    ])
    .ended()
    .expect_code(0);
    let sum = "b09fec8add1936494551b22f00084d3b8e8d03a0ec6a35e98e297455ac09b2ad";
    assert!(ended.console.contains(sum), "{}", ended.console);
    assert_eq!(ended.messages, "");
}
