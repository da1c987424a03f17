//! The answers that `docs/control-socket.md` shows are those of a VM.
//!
//! Every request in the document is made to a guest with Debian's daemons, in the document's
//! order, and what the document says it answers is compared: texts and yes or no by value, numbers
//! by being some. `PARTITA_WRITE=1` writes the answers into the document instead.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::disks::{Folder, MIB, done, pattern};
use support::packages::CLOUD;
use support::tree::Tree;
use support::{daemons, iso, linux, linux::Linux};

/// Folders of the host that the document names.
const FOLDERS: [&str; 3] = ["/vm/", "/iso/", "/srv/"];
/// Columns of the document.
const WIDTH: usize = 118;
/// What stands for the rest of a list.
const REST: &str = ",…]";

/// A request of the document.
#[derive(Debug, PartialEq)]
struct Sample {
    method: String,
    /// Behind `/v1/vm`.
    resource: String,
    body: Option<String>,
    /// The document's lines of the answer.
    answer: std::ops::Range<usize>,
}

/// The text in single quotes at the start of `text`, and what is behind it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('\'')?.split_once('\'')
}

/// Reads a request as it would be given to curl, without what comes before the method.
fn request(command: &str) -> Option<(String, String, Option<String>)> {
    let (mut rest, mut method, mut body) = (command.trim(), None, None);
    while let Some(option) = rest.strip_prefix('-') {
        if let Some(value) = option.strip_prefix("X ") {
            let (word, behind) = value.split_once(' ')?;
            method = Some(word.to_owned());
            rest = behind.trim_start();
        } else {
            let (value, behind) = quoted(option.strip_prefix("-json ")?)?;
            body = Some(value.to_owned());
            rest = behind.trim_start();
        }
    }
    let resource = rest.strip_prefix("http://vm/v1/vm")?.to_owned();
    let default = if body.is_some() { "POST" } else { "GET" };
    Some((method.unwrap_or_else(|| default.to_owned()), resource, body))
}

/// The requests of a document that have an answer.
fn samples(lines: &[&str]) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(mut command) = lines[at].strip_prefix("$ ").map(str::to_owned) else {
            at += 1;
            continue;
        };
        while command.ends_with('\\') {
            command.pop();
            at += 1;
            command += lines[at].trim_start();
        }
        let begin = at + 1;
        let ends = |line: &&str| line.starts_with("$ ") || line.starts_with("```");
        let length = lines[begin..].iter().position(ends);
        let answer = begin..begin + length.expect("the block ends");
        let (method, resource, body) =
            request(&command).unwrap_or_else(|| panic!("no request: {command}"));
        at = answer.end;
        samples.push(Sample {
            method,
            resource,
            body,
            answer,
        });
    }
    samples
}

/// Whether an answer is of the kind that the document shows.
fn alike(shown: &Value, answer: &Value) -> bool {
    match (shown, answer) {
        (Value::Number(_), Value::Number(_)) => true,
        (Value::Array(shown), Value::Array(answer)) => {
            let pairs = shown.iter().zip(answer);
            shown.len() == answer.len() && pairs.into_iter().all(|(a, b)| alike(a, b))
        }
        (Value::Object(shown), Value::Object(answer)) => {
            let same = |(name, value): (&String, &Value)| {
                answer.get(name).is_some_and(|other| alike(value, other))
            };
            shown.len() == answer.len() && shown.iter().all(same)
        }
        _ => shown == answer,
    }
}

/// Whether the document shows such an answer; the end of a list may be left out.
fn shows(shown: &str, answer: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text);
    let Ok(mut answer) = parse(answer) else {
        return shown == answer;
    };
    let whole = match shown.strip_suffix(REST) {
        Some(beginning) => format!("{beginning}]"),
        None => shown.to_owned(),
    };
    let Ok(parsed) = parse(&whole) else {
        return false;
    };
    if whole != shown
        && let (Some(list), Value::Array(beginning)) = (answer.as_array_mut(), &parsed)
    {
        list.truncate(beginning.len());
    }
    alike(&parsed, &answer)
}

/// An answer as lines of the document, of a list the first two things.
fn shown(answer: &str, cut: bool) -> Vec<String> {
    let mut text = answer.to_owned();
    if cut && let Some((at, _)) = text.match_indices("},{").nth(1) {
        text.replace_range(at + 1.., REST);
    }
    let mut lines = vec![String::new()];
    for part in text.split_inclusive(',') {
        let line = lines.last_mut().expect("there is a line");
        if line.chars().count() + part.chars().count() > WIDTH {
            lines.push(part.to_owned());
        } else {
            line.push_str(part);
        }
    }
    lines
}

/// The machine that the document has in mind.
struct Machine {
    folder: Folder,
    guest: Linux,
}

impl Machine {
    fn start() -> Self {
        let folder = Folder::new();
        for name in FOLDERS {
            fs::create_dir(folder.path(&name[1..])).expect("a folder");
        }
        let disk = folder.path("vm/root.vhdx");
        root_disk(&folder, &disk);
        done(&args![
            "create",
            folder.path("vm/data.vhdx"),
            "--size",
            "64G"
        ]);
        let image = iso::image("DEBIAN", &[("README.TXT", b"Debian\n")]);
        fs::write(folder.path("iso/debian.iso"), image).expect("an image");
        fs::write(folder.path("srv/site.conf"), pattern(1, 1831)).expect("a file");
        let drives: [(&str, &Path); 2] = [("--disk", &disk), ("--dvd", Path::new(""))];
        let mut tree = daemons::tree(CLOUD);
        let release = b"NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        tree.file("etc/os-release", 0o644, release.to_vec());
        tree.file("etc/hosts", 0o644, b"127.0.0.1 debian\n".to_vec());
        let options = linux::options(2, &drives);
        let mut guest = Linux::start(CLOUD, &tree, &folder.path(""), &options);
        guest.load_storage();
        guest.load(&["hv_utils", "dummy", "sr_mod", "isofs"]);
        guest.sh("hostname debian && mount -t ext4 /dev/sda /mnt && mkdir /media");
        guest.sh("ip link set dummy0 address 00:15:5d:01:02:03 up && \
             ip addr add 192.0.2.7/24 dev dummy0 && \
             ip -6 addr flush dev dummy0 && ip -6 addr add 2001:db8::7/64 dev dummy0 && \
             ip route add default via 192.0.2.1");
        daemons::start(&mut guest);
        let heartbeat = |beat: &Value| beat["answered"].as_u64() > Some(2);
        guest.control.wait_until("/heartbeat", heartbeat);
        Self { folder, guest }
    }

    /// A text of the document with the folders where they are, or the other way round.
    fn places(&self, text: &str, to_document: bool) -> String {
        FOLDERS.iter().fold(text.to_owned(), |text, name| {
            let there = format!("\"{}", self.folder.path(&name[1..]).display());
            let here = format!("\"{name}");
            if to_document {
                text.replace(&there, &here)
            } else {
                text.replace(&here, &there)
            }
        })
    }

    fn answer(&mut self, sample: &Sample) -> String {
        let body = sample.body.as_deref().map(|body| self.places(body, false));
        let (method, resource) = (&sample.method, &sample.resource);
        let control = &self.guest.control;
        let (_, text) = control.exchange(method, resource, body.as_deref());
        if resource.ends_with("/insert") {
            // What locks the drive.
            self.guest.until("mount -t iso9660 -o ro /dev/sr0 /media");
        }
        self.places(&text, true)
    }
}

fn root_disk(folder: &Folder, disk: &Path) {
    let raw = folder.path("empty.img");
    Tree::default().write_ext4(&raw, 64 * MIB);
    done(&args!["convert", raw, disk]);
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/control-socket.md")
}

#[test]
fn the_document_shows_what_is_answered() {
    let text = fs::read_to_string(document()).expect("the document");
    let lines: Vec<&str> = text.lines().collect();
    let samples = samples(&lines);
    assert!(samples.len() > 15, "{}", samples.len());
    let mut machine = Machine::start();
    // The guest's end has to be the last.
    let is_end = |sample: &&Sample| sample.resource == "/shutdown";
    let order = samples.iter().filter(|sample| !is_end(sample));
    let order = order.chain(samples.iter().filter(is_end));
    let answers: Vec<(&Sample, String)> = order
        .map(|sample| (sample, machine.answer(sample)))
        .collect();
    machine.guest.ended();
    if std::env::var_os("PARTITA_WRITE").is_some_and(|value| value == "1") {
        return write(&lines, answers);
    }
    for (sample, answer) in answers {
        let shown = lines[sample.answer.clone()].concat();
        assert!(
            shows(&shown, &answer),
            "{} {} answers\n{answer}\nbut the document shows\n{shown}\n\
             (PARTITA_WRITE=1 writes it anew)",
            sample.method,
            sample.resource
        );
    }
}

/// Writes the document with other answers.
fn write(lines: &[&str], mut answers: Vec<(&Sample, String)>) {
    answers.sort_by_key(|(sample, _)| sample.answer.start);
    let (mut text, mut done) = (Vec::new(), 0);
    for (sample, answer) in answers {
        text.extend(
            lines[done..sample.answer.start]
                .iter()
                .map(ToString::to_string),
        );
        let cut = lines[sample.answer.clone()].concat().ends_with(REST);
        text.extend(shown(&answer, cut));
        done = sample.answer.end;
    }
    text.extend(lines[done..].iter().map(ToString::to_string));
    fs::write(document(), text.join("\n") + "\n").expect("the document can be written");
}

#[test]
fn requests_are_read_as_curl_reads_them() {
    let lines = [
        "```sh",
        "$ http://vm/v1/vm",
        "{\"a\":1,",
        "\"b\":2}",
        "$ -X PUT --json '{\"v\": \"x y\"}' \\",
        "    http://vm/v1/vm/kvp/a",
        "null",
        "```",
        "text",
    ];
    let read = samples(&lines);
    let parts = |sample: &Sample| (sample.method.clone(), sample.resource.clone());
    assert_eq!(parts(&read[0]), ("GET".to_owned(), String::new()));
    assert_eq!(read[0].answer, 2..4);
    assert_eq!(parts(&read[1]), ("PUT".to_owned(), "/kvp/a".to_owned()));
    assert_eq!(read[1].body.as_deref(), Some("{\"v\": \"x y\"}"));
    assert_eq!(read[1].answer, 6..7);
}

#[test]
fn answers_are_compared_by_kind() {
    assert!(shows("{\"a\":1,\"b\":\"x\"}", "{\"b\":\"x\",\"a\":7}"));
    assert!(!shows("{\"a\":1,\"b\":\"x\"}", "{\"b\":\"y\",\"a\":7}"));
    assert!(!shows("{\"a\":1}", "{\"a\":1,\"b\":2}"));
    assert!(!shows("{\"a\":1}", "{\"a\":null}"));
    assert!(shows("[{\"a\":1},…]", "[{\"a\":1},{\"b\":2}]"));
    assert!(!shows("[{\"b\":1},…]", "[{\"a\":1},{\"b\":2}]"));
    assert!(!shows("[{\"a\":1}]", "[{\"a\":1},{\"b\":2}]"));
    let list = "[{\"a\":1},{\"b\":2},{\"c\":3}]";
    assert_eq!(shown(list, true).concat(), "[{\"a\":1},{\"b\":2},…]");
    assert!(shows(&shown(list, true).concat(), list));
}
