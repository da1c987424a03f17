//! A client of the control socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::vm::LIMIT;

/// The control socket of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `null` where there is none.
    pub(crate) body: Value,
}

impl Control {
    /// The socket at `path`, which may not be there yet.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Asks for `GET /v1/vm` and what follows, which must succeed.
    pub(crate) fn get(&self, resource: &str) -> Value {
        self.done("GET", resource, None)
    }

    /// Posts a body, which must succeed.
    pub(crate) fn post(&self, resource: &str, body: Value) -> Value {
        self.done("POST", resource, Some(body))
    }

    /// Puts a body, which must succeed.
    pub(crate) fn put(&self, resource: &str, body: Value) -> Value {
        self.done("PUT", resource, Some(body))
    }

    /// Deletes something, which must succeed.
    pub(crate) fn delete(&self, resource: &str) -> Value {
        self.done("DELETE", resource, None)
    }

    fn done(&self, method: &str, resource: &str, body: Option<Value>) -> Value {
        let answer = self.request(method, resource, body.as_ref());
        let good = (200..300).contains(&answer.status);
        assert!(good, "{method} {resource} {body:?}: {answer:?}");
        answer.body
    }

    /// A request that must fail with `status`, and one line; gives the line.
    pub(crate) fn refused(
        &self,
        method: &str,
        resource: &str,
        body: Option<Value>,
        status: u16,
    ) -> String {
        let answer = self.request(method, resource, body.as_ref());
        assert_eq!(answer.status, status, "{method} {resource}: {answer:?}");
        let error = answer.body["error"].as_str();
        let error =
            error.unwrap_or_else(|| panic!("{method} {resource} tells no error: {answer:?}"));
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        error.to_owned()
    }

    /// Any request, and what came of it.
    pub(crate) fn request(&self, method: &str, resource: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string);
        let (status, text) = self.exchange(method, resource, body.as_deref());
        // Not all errors that come before a resource need be JSON; these are told apart.
        let body = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        };
        Answer { status, body }
    }

    /// Any request; the answer's status and its body as it came.
    pub(crate) fn exchange(
        &self,
        method: &str,
        resource: &str,
        body: Option<&str>,
    ) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.path).expect("the control socket is there");
        stream
            .set_read_timeout(Some(LIMIT))
            .expect("a socket has a timeout");
        let mut text = format!("{method} /v1/vm{resource} HTTP/1.1\r\nHost: vm\r\n");
        if let Some(body) = body {
            let length = body.len();
            text += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        text += "Connection: close\r\n\r\n";
        text += body.unwrap_or_default();
        stream
            .write_all(text.as_bytes())
            .expect("a request is taken");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .unwrap_or_else(|error| panic!("{method} {resource}: {error}"));
        parse(&answer).unwrap_or_else(|| panic!("{method} {resource}: {answer:?}"))
    }

    /// Asks until `wanted` holds.
    pub(crate) fn wait_until(&self, resource: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let answer = self.request("GET", resource, None);
            if answer.status == 200 && wanted(&answer.body) {
                return answer.body;
            }
            assert!(Instant::now() < end, "{resource} stays {answer:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}
