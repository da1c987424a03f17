//! What is seen of a guest from outside: through the control socket of its VM.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long a guest's components have to show life: several periods of the heartbeat.
const LIFE: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the socket may take for an answer: longer than a guest may take for one.
const ANSWER: Duration = Duration::from_secs(40);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// What was seen of a guest that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outside {
    /// State of the heartbeat.
    pub(super) heartbeat: String,
    /// Whether the guest uses time synchronization.
    pub(super) time: bool,
    /// What it has done with its disk.
    pub(super) disk: DiskCounts,
    /// Why the request to shut down failed, if it did.
    pub(super) shutdown: Option<String>,
}

/// Requests of the guest to its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskCounts {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) flushes: u64,
    pub(super) errors: u64,
}

/// Looks at the guest whose VM has this control socket, and asks it to shut down.
pub(super) fn observe(socket: &Path) -> Outside {
    let control = Control {
        socket: socket.to_owned(),
    };
    let mut outside = Outside {
        disk: control.disk().unwrap_or_default(),
        ..Outside::default()
    };
    let start = Instant::now();
    loop {
        outside.heartbeat = match control.get("heartbeat") {
            Ok(answer) => answer["state"].as_str().unwrap_or("unknown").to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let components = control.get("components").unwrap_or_default();
        outside.time = components["time"] == true;
        let alive = outside.heartbeat == "ok" && outside.time && components["shutdown"] == true;
        if alive || start.elapsed() > LIFE {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let shutdown = control.request("POST", "shutdown", Some("{}"));
    outside.shutdown = shutdown.err().map(|error| format!("{error:#}"));
    outside
}

struct Control {
    socket: PathBuf,
}

impl Control {
    fn get(&self, resource: &str) -> Result<Value> {
        self.request("GET", resource, None)
    }

    /// Counts of the disk, the first at the first controller.
    fn disk(&self) -> Result<DiskCounts> {
        let answer = self.get("statistics")?;
        let disk = &answer["controllers"][0]["luns"][0];
        let count = |name: &str| disk[name].as_u64().unwrap_or(0);
        Ok(DiskCounts {
            reads: count("reads"),
            writes: count("writes"),
            bytes_read: count("bytes_read"),
            bytes_written: count("bytes_written"),
            flushes: count("flushes"),
            errors: count("errors"),
        })
    }

    /// One request and its answer, which must be a good one.
    fn request(&self, method: &str, resource: &str, body: Option<&str>) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).context("the control socket is gone")?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut text =
            format!("{method} /v1/vm/{resource} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n");
        if let Some(body) = body {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n\r\n{body}"));
        } else {
            text.push_str("\r\n");
        }
        stream.write_all(text.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        parse(&String::from_utf8_lossy(&answer))
    }
}

/// The JSON in an answer, or what it says is wrong.
fn parse(answer: &str) -> Result<Value> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the control socket gave no answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let value: Value = match body {
        "" => Value::Null,
        body => serde_json::from_str(body).context("the control socket gave no JSON")?,
    };
    if status.starts_with('2') {
        return Ok(value);
    }
    match value["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => bail!("the control socket answered with status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_understood() {
        let value = parse("HTTP/1.1 200 OK\r\na: b\r\n\r\n{\"state\":\"ok\"}").unwrap();
        assert_eq!(value["state"], "ok");
        assert_eq!(parse("HTTP/1.1 202 Accepted\r\n\r\n").unwrap(), Value::Null);
        for (answer, part) in [
            (
                "HTTP/1.1 409 Conflict\r\n\r\n{\"error\":\"not now\"}",
                "not now",
            ),
            ("HTTP/1.1 500 Oh\r\n\r\n", "500"),
            ("HTTP/1.1 200 OK\r\n\r\n{", "no JSON"),
            ("", "no answer"),
        ] {
            let error = format!("{:#}", parse(answer).unwrap_err());
            assert!(error.contains(part), "{answer}: {error}");
        }
    }

    /// Serves these bodies, one for each request, and gives the requests.
    fn serve(listener: UnixListener, bodies: &'static [(&str, &str)]) -> Vec<String> {
        let mut requests = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).unwrap();
            let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let line = request.lines().next().unwrap().to_owned();
            let (_, body) = bodies.iter().find(|(r, _)| line.contains(r)).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{body}").unwrap();
            let last = line.starts_with("POST");
            requests.push(line);
            if last {
                break;
            }
        }
        requests
    }

    #[test]
    fn a_guest_is_looked_at_and_shut_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(|| {
            serve(
                listener,
                &[
                    (
                        "statistics",
                        r#"{"controllers":[{"luns":[{"lun":0,"reads":7,"writes":8,"bytes_read":9,
                        "bytes_written":10,"flushes":1,"errors":0}]}]}"#,
                    ),
                    ("heartbeat", r#"{"state":"ok"}"#),
                    ("components", r#"{"time":true,"shutdown":true}"#),
                    ("shutdown", "null"),
                ],
            )
        });
        let outside = observe(&path);
        assert_eq!(
            outside,
            Outside {
                heartbeat: "ok".into(),
                time: true,
                disk: DiskCounts {
                    reads: 7,
                    writes: 8,
                    bytes_read: 9,
                    bytes_written: 10,
                    flushes: 1,
                    errors: 0,
                },
                shutdown: None,
            }
        );
        let requests = server.join().unwrap();
        assert_eq!(requests.last().unwrap(), "POST /v1/vm/shutdown HTTP/1.1");
    }

    #[test]
    fn nobody_at_the_socket_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control {
            socket: folder.path().join("control"),
        };
        let error = format!("{:#}", control.get("heartbeat").unwrap_err());
        assert!(error.contains("control socket is gone"), "{error}");
    }
}
