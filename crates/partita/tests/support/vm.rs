//! A running `partita` with somebody at its console.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::terminal::Terminal;
use super::turn::Turn;

/// How long a guest may take for a step: to boot, to answer, to end. Ten times
/// what it takes on a machine that does nothing else.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// What came out of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    text: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl Stream {
    /// Takes all that `source` gives until its end, in a thread.
    pub(crate) fn fill(self: &Arc<Self>, mut source: impl Read + Send + 'static) -> JoinHandle<()> {
        let stream = Arc::clone(self);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal without anybody left gives an error at its end.
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                let mut text = stream.text.lock().unwrap_or_else(PoisonError::into_inner);
                text.extend_from_slice(&buffer[..length]);
                stream.grown.notify_all();
            }
        })
    }

    /// All of it, without carriage returns.
    pub(crate) fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).replace('\r', "")
    }

    /// Waits until `wanted` came `times` times.
    fn wait_for(&self, wanted: &str, times: usize) {
        let end = Instant::now() + LIMIT;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        while String::from_utf8_lossy(&text).matches(wanted).count() < times {
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no {wanted:?} (times {times}) after {LIMIT:?}:\n{}",
                String::from_utf8_lossy(&text)
            );
            let waited = self.grown.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How a VM ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit status of `partita`.
    pub(crate) status: ExitStatus,
    /// The guest's console.
    pub(crate) console: String,
    /// Partita's own messages.
    pub(crate) messages: String,
}

impl Ended {
    /// Fails unless `partita` exited with `code`.
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }
}

/// A `partita` process. It is ended when dropped.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<Stream>,
    messages: Arc<Stream>,
    readers: Vec<JoinHandle<()>>,
    _turn: Turn,
}

fn partita<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_partita"));
    command.args(arguments).stderr(Stdio::piped());
    command
}

impl Vm {
    /// Starts `partita` with pipes for its console.
    pub(crate) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = partita(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut vm = Self::spawn(&mut command, Arc::default());
        vm.input = vm.child.stdin.take();
        let output = vm.child.stdout.take().expect("a pipe was asked for");
        vm.readers.push(vm.console.fill(output));
        vm
    }

    /// Starts `partita` at a terminal.
    pub(crate) fn start_at<A: AsRef<OsStr>>(
        terminal: &Terminal,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = partita(arguments);
        command.stdin(terminal.end()).stdout(terminal.end());
        command.env("TERM", "xterm");
        Self::spawn(&mut command, terminal.screen())
    }

    fn spawn(command: &mut Command, console: Arc<Stream>) -> Self {
        let turn = Turn::wait();
        let mut child = command.spawn().expect("partita starts");
        let messages: Arc<Stream> = Arc::default();
        let errors = child.stderr.take().expect("a pipe was asked for");
        let readers = vec![messages.fill(errors)];
        Self {
            child,
            input: None,
            console,
            messages,
            readers,
            _turn: turn,
        }
    }

    /// The worker's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Types into the pipe.
    pub(crate) fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("the input is still open");
        input
            .write_all(text.as_bytes())
            .expect("partita takes input");
    }

    /// Ends the input.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    /// Waits until the console has shown `wanted` for the `times`th time.
    pub(crate) fn wait_for(&self, wanted: &str, times: usize) {
        self.console.wait_for(wanted, times);
    }

    /// The console so far.
    pub(crate) fn console(&self) -> String {
        self.console.text()
    }

    /// Ends `partita` as a failing host does, and gives all of the console.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().expect("partita can be ended");
        self.child.wait().expect("partita can be waited for");
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        self.console.text()
    }

    /// Waits until `partita` has ended by itself.
    pub(crate) fn ended(mut self) -> Ended {
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("partita can be waited for") {
                break status;
            }
            assert!(
                Instant::now() < end,
                "partita did not end in {LIMIT:?}:\n{}\n{}",
                self.console.text(),
                self.messages.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        Ended {
            status,
            console: self.console.text(),
            messages: self.messages.text(),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Refused only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
