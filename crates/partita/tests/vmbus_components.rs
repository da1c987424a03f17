//! The integration components: what the control socket says and does, compared with what a guest
//! with Debian's own drivers and daemons sees.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::daemons;
use support::disks::{Folder, done, pattern};
use support::linux::{self, Linux};
use support::packages::CLOUD;
use support::tree::Tree;

const DAY: u64 = 86400;

/// A guest with hv_utils, the daemons, and a small disk.
fn tree(package: &str) -> Tree {
    let mut tree = daemons::tree(package);
    tree.programs(&["sbin/mke2fs"]);
    let release = b"ID=partita\nVERSION_ID=\"12\"\nNAME=\"Partita Test\"\n";
    tree.file("etc/os-release", 0o644, release.to_vec());
    tree
}

fn start(folder: &Folder, package: &str, processors: u32) -> Linux {
    let disk = folder.path("small.vhdx");
    done(&args![
        "create",
        &disk,
        "--size",
        "16M",
        "--block-size",
        "1M"
    ]);
    let options = linux::options(processors, &[("--disk", &disk)]);
    let mut guest = Linux::start(package, &tree(package), &folder.path(""), &options);
    guest.load_storage();
    guest.load(&["hv_utils", "dummy"]);
    guest
}

fn heartbeat(guest: &Linux) {
    let first = guest
        .control
        .wait_until("/heartbeat", |beat| beat["state"] == "ok");
    let answered = first["answered"].as_u64().expect("a number");
    let later = guest.control.wait_until("/heartbeat", |beat| {
        beat["answered"].as_u64() > Some(answered)
    });
    assert_eq!(later["missed"], 0, "{later}");
}

/// The guest's clock, in seconds since 1970.
fn guest_time(guest: &mut Linux) -> u64 {
    guest.sh("date +%s").trim().parse().expect("a number")
}

fn host_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time after 1970").as_secs()
}

fn clock(guest: &mut Linux) {
    let names = guest.sh("cat /sys/class/ptp/*/clock_name && ls /dev/ptp0");
    assert_eq!(names, "hyperv\n/dev/ptp0\n");
    for difference in [DAY, 0] {
        let body = match difference {
            0 => json!({}),
            _ => json!({ "unix_seconds": host_time() + difference }),
        };
        guest.control.put("/time", body);
        let wanted = host_time() + difference;
        guest.until(&format!(
            "[ $(( $(date +%s) - {wanted} )) -ge -1 ] && [ $(( $(date +%s) - {wanted} )) -lt 60 ]"
        ));
        let now = guest_time(guest);
        assert!(now.abs_diff(host_time() + difference) <= 2, "{now}");
    }
    let refused = Some(json!({ "unix_seconds": -5 }));
    guest.control.refused("PUT", "/time", refused, 400);
}

/// The file of a pool: its keys and values, one after the other. Each record has 512 bytes for the
/// key and 2048 for the value; what comes behind a zero means nothing.
fn pool_file(guest: &mut Linux, pool: u32) -> Vec<String> {
    let text = guest.sh(&format!(
        "f=/var/lib/hyperv/.kvp_pool_{pool}; i=0; while [ $i -lt $(( $(wc -c <$f) / 512 )) ]; do \
         for at in $i $(( i + 1 )); do \
         dd if=$f bs=512 skip=$at count=1 2>/dev/null | tr '\\000' '\\n' | head -n 1; done; \
         i=$(( i + 5 )); done"
    ));
    text.lines().map(str::to_owned).collect()
}

fn pairs(guest: &mut Linux) {
    let text = "Grüße, 漢字 & more: 100 %";
    for (number, pool) in [
        (0, "external"),
        (1, "guest"),
        (3, "auto-external"),
        (4, "auto-internal"),
    ] {
        let at = |key: &str| format!("/kvp/{pool}/{key}");
        guest.control.put(&at("first"), json!({ "value": text }));
        guest
            .control
            .put(&at("a%20number"), json!({ "value": 4_000_000_000_u32 }));
        let expected = ["first", text, "a number", "4000000000"];
        assert_eq!(pool_file(guest, number), expected, "{pool}");
        guest.control.put(&at("first"), json!({ "value": "again" }));
        let read = guest.control.get(&at("first"));
        assert_eq!(read, json!({ "key": "first", "value": "again" }));
        let all = guest.control.get(&format!("/kvp/{pool}"));
        let number_text = json!({ "key": "a number", "value": "4000000000" });
        assert_eq!(
            all,
            json!([{ "key": "first", "value": "again" }, number_text])
        );
        assert_eq!(
            guest.control.delete(&at("first")),
            json!({ "existed": true })
        );
        assert_eq!(
            guest.control.delete(&at("first")),
            json!({ "existed": false })
        );
        guest.control.refused("GET", &at("first"), None, 404);
        assert_eq!(pool_file(guest, number), ["a number", "4000000000"]);
    }
    // The guest's own pair for the host: keys have 512 bytes, values 2048.
    guest.sh(
        "cd /var/lib/hyperv && { printf 'from inside' | dd bs=512 conv=sync; \
         printf 'for the host' | dd bs=2048 conv=sync; } >>.kvp_pool_1; cd /",
    );
    let read = guest.control.get("/kvp/guest/from%20inside");
    assert_eq!(read["value"], "for the host");
    let long = "k".repeat(300);
    let body = Some(json!({ "value": "x" }));
    guest
        .control
        .refused("PUT", &format!("/kvp/guest/{long}"), body, 400);
}

/// What the guest says of itself.
fn own_pairs(guest: &mut Linux) {
    let all = guest.control.get("/kvp/auto");
    let value = |key: &str| {
        let found = all
            .as_array()
            .expect("a list")
            .iter()
            .find(|pair| pair["key"] == key);
        found.unwrap_or_else(|| panic!("{key}: {all}"))["value"].clone()
    };
    let release = guest.sh("uname -r");
    // The daemon leaves out what comes behind the version.
    let build = value("OSBuildNumber");
    assert_eq!(build, release.trim(), "{all}");
    assert_eq!(value("OSName"), "Partita Test", "{all}");
    assert_eq!(
        value("OSVersion"),
        release.split('-').next().unwrap_or_default(),
        "{all}"
    );
    assert_eq!(value("ProcessorArchitecture"), "x86_64");
    assert_eq!(value("NetworkAddressIPv4"), "192.0.2.7");
}

fn addresses(guest: &mut Linux) {
    let mac = "02:50:61:72:74:69";
    let missing = guest
        .control
        .request("GET", &format!("/network/{mac}"), None);
    assert_eq!(missing.status, 502, "{missing:?}");
    guest.sh(&format!(
        "ip link set dummy0 address {mac} up && \
         ip addr add 192.0.2.7/24 dev dummy0 && ip -6 addr add 2001:db8::7/64 dev dummy0 && \
         ip route add default via 192.0.2.1"
    ));
    let network = guest.control.get(&format!("/network/{mac}"));
    assert_eq!(
        (&network["ipv4"], &network["ipv6"]),
        (&json!(true), &json!(true))
    );
    let listed = network["addresses"].as_array().expect("a list");
    for expected in [
        json!({ "address": "192.0.2.7", "prefix": 24 }),
        json!({ "address": "2001:db8::7", "prefix": 64 }),
    ] {
        assert!(listed.contains(&expected), "{network}");
    }
    assert_eq!(network["gateways"], json!(["192.0.2.1"]), "{network}");
    assert_eq!(network["dns_servers"], json!(["192.0.2.53"]), "{network}");
    // The daemon sets addresses of the bus's own adapters only.
    let body =
        Some(json!({ "ipv4": true, "addresses": [{ "address": "192.0.2.8", "prefix": 24 }] }));
    let place = "/network/%7B11111111-2222-3333-4444-555555555555%7D";
    let refused = guest.control.refused("PUT", place, body, 502);
    assert!(refused.contains("the guest refuses"), "{refused}");
}

fn freeze(guest: &mut Linux) {
    guest.sh("/sbin/mke2fs -q -t ext4 /dev/sda && mount -t ext4 /dev/sda /mnt");
    let backup = guest.control.get("/backup");
    assert_eq!(backup["frozen"], false);
    assert!(backup["auto_recovery"].is_boolean(), "{backup}");
    guest.control.post("/freeze", json!({ "hold_seconds": 60 }));
    assert_eq!(guest.control.get("/backup")["frozen"], true);
    guest
        .control
        .refused("POST", "/freeze", Some(json!({})), 409);
    guest.sh("(echo text >/mnt/file; echo done >/run/written) & sleep 1");
    guest.sh("[ ! -e /run/written ]");
    assert_eq!(
        guest.control.post("/thaw", json!({})),
        json!({ "intact": true })
    );
    guest.until("[ -e /run/written ]");
    assert_eq!(guest.control.get("/backup")["frozen"], false);
    // Whoever froze it does not come back in time.
    guest
        .control
        .post("/freeze", json!({ "hold_seconds": 0.5 }));
    guest.sh("echo more >>/mnt/file && sync && [ $(wc -l </mnt/file) = 2 ]");
    guest
        .control
        .wait_until("/backup", |backup| backup["frozen"] == false);
    let late = guest.control.post("/thaw", json!({}));
    assert_eq!(late, json!({ "intact": false }));
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn files(guest: &mut Linux, folder: &Folder) {
    let source = folder.path("source");
    let bytes = pattern(1, (1 << 20) + 12345);
    fs::write(&source, &bytes).expect("a file");
    let copy = |change: Value| {
        let mut body = json!({ "source": source, "destination": "/run/new/copied" });
        let change = change.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(change);
        body
    };
    let refused = |guest: &Linux, change: Value, status: u16| {
        guest
            .control
            .refused("POST", "/files", Some(copy(change)), status)
    };
    refused(guest, json!({}), 502);
    let create = copy(json!({ "create_path": true }));
    let copied = guest.control.post("/files", create);
    assert_eq!(copied["bytes"], bytes.len());
    let inside = guest.sh("sha256sum </run/new/copied");
    assert_eq!(
        inside.split_whitespace().next(),
        Some(sha256(&bytes).as_str())
    );
    // It is there already.
    refused(guest, json!({}), 502);
    fs::write(&source, b"short").expect("a file");
    guest
        .control
        .post("/files", copy(json!({ "overwrite": true })));
    assert_eq!(guest.sh("cat /run/new/copied"), "short");
    fs::write(&source, b"").expect("a file");
    guest
        .control
        .post("/files", copy(json!({ "destination": "/run/new/empty" })));
    guest.sh("[ -f /run/new/empty ] && [ ! -s /run/new/empty ]");
    let nothing = json!({ "source": folder.path("nothing") });
    refused(guest, nothing, 400);
    refused(guest, json!({ "destination": "relative" }), 400);
}

fn expect_clean_logs(guest: &mut Linux) {
    guest.expect_clean_log();
    // The copies that were to be refused are the only errors of the daemons.
    let (_, bad) = guest.attempt("grep -E '[.](warn|err|crit)' /run/syslog | grep -v HV_FCOPY");
    assert_eq!(bad, "");
}

on_every_kernel!(components_and_daemons, without_daemons_nothing_hangs);

fn components_and_daemons(package: &str, processors: u32) {
    let folder = Folder::new();
    let mut guest = start(&folder, package, processors);
    daemons::start(&mut guest);
    heartbeat(&guest);
    clock(&mut guest);
    pairs(&mut guest);
    addresses(&mut guest);
    own_pairs(&mut guest);
    freeze(&mut guest);
    files(&mut guest, &folder);
    guest.sh("umount /mnt");
    expect_clean_logs(&mut guest);
    guest.control.post("/reboot", json!({}));
    guest.wait_for_shell();
    guest.load(&["hv_utils"]);
    guest
        .control
        .wait_until("/components", |components| components["shutdown"] == true);
    guest.control.post("/shutdown", json!({}));
    guest.ended();
}

fn without_daemons_nothing_hangs(package: &str, processors: u32) {
    let folder = Folder::new();
    let mut guest = start(&folder, package, processors);
    heartbeat(&guest);
    clock(&mut guest);
    let begun = Instant::now();
    for (method, resource, body) in [
        ("GET", "/kvp/guest?timeout_seconds=1", None),
        (
            "PUT",
            "/kvp/guest/a?timeout_seconds=1",
            Some(json!({ "value": "b" })),
        ),
        ("GET", "/network/02:50:61:72:74:69?timeout_seconds=1", None),
        ("GET", "/backup?timeout_seconds=1", None),
        ("POST", "/freeze", Some(json!({ "timeout_seconds": 1 }))),
        (
            "POST",
            "/files",
            Some(json!({ "source": "/etc/passwd", "destination": "/run/x", "timeout_seconds": 1 })),
        ),
    ] {
        let answer = guest.control.request(method, resource, body.as_ref());
        let error = answer.body["error"].as_str().unwrap_or_default();
        let clear = match answer.status {
            // The driver holds the request, or the versions, back for a daemon.
            409 => error.contains("not ready"),
            504 => error.contains("does not answer"),
            // The driver answers by itself.
            502 => error.contains("daemon"),
            _ => false,
        };
        assert!(clear, "{resource}: {answer:?}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    guest.expect_clean_log();
    guest.control.post("/shutdown", json!({ "force": true }));
    guest.ended();
}

#[test]
fn without_drivers_requests_are_refused() {
    let folder = Folder::new();
    let guest = Linux::start(CLOUD, &tree(CLOUD), &folder.path(""), &[]);
    for (method, resource) in [
        ("POST", "/shutdown"),
        ("PUT", "/time"),
        ("GET", "/kvp/guest"),
        ("POST", "/freeze"),
        ("POST", "/thaw"),
    ] {
        let refused = guest.control.refused(method, resource, None, 409);
        assert!(refused.contains("does not use this component"), "{refused}");
    }
    assert_eq!(guest.control.get("/heartbeat")["state"], "not connected");
    guest.power_off();
}
