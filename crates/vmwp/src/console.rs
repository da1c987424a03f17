//! The person's terminal as the VM's serial console.
//!
//! [`RawTerminal`] puts the terminal into raw mode, so that every key reaches the guest, and puts
//! it back whatever ends the process: normal return, a panic in any thread, or a signal. Keys are
//! read by [`read_stdin`], which also understands the escape key Ctrl-A.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::termios::{self, OptionalActions, OutputModes, Termios};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// The terminal's settings from before raw mode, while raw mode is on.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of the terminal on standard input, ended when this is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Turns raw mode on; does nothing and gives `None` if standard input is no terminal.
    ///
    /// # Errors
    /// If the terminal's settings cannot be changed or signals cannot be watched.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        // Watch for the ends of the process first: none may come between.
        restore_on_panic();
        restore_on_signals()?;
        let saved = termios::tcgetattr(io::stdin())?;
        set_raw(&saved)?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
        SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Puts the terminal back as it was before raw mode. May be called at any time and any number of
/// times; needed only before ending the process by a way that drops nothing.
pub fn restore() {
    if let Some(saved) = SAVED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
    {
        // There is nobody to tell if the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, saved);
    }
}

fn set_raw(saved: &Termios) -> io::Result<()> {
    let mut raw = saved.clone();
    raw.make_raw();
    // Messages of Partita itself still end in a plain line feed.
    raw.output_modes |= saved.output_modes & OutputModes::OPOST;
    Ok(termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?)
}

fn restore_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
}

/// A thread that puts the terminal back and then lets each signal do what it does by default.
fn restore_on_signals() -> io::Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
    thread::Builder::new()
        .name("console-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGCONT {
                    if let Some(saved) = SAVED
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_ref()
                    {
                        let _ = set_raw(saved);
                    }
                    continue;
                }
                restore();
                let _ = emulate_default_handler(signal);
            }
        })?;
    *started = true;
    Ok(())
}

/// What the person at the console wants, apart from typing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleCommand {
    /// End the VM (Ctrl-A x).
    End,
    /// Show the keys (Ctrl-A h).
    Help,
}

/// The keys, as shown by Ctrl-A h.
pub const HELP: &str = "Ctrl-A x: end the VM   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A h: this help";

const CTRL_A: u8 = 0x01;

/// Finds the escape sequences in what is typed.
#[derive(Debug, Default)]
pub struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes typed bytes off `typed` up to the end of the first command, or all if there is none;
    /// appends those for the guest to `guest` and tells the command.
    pub fn feed(&mut self, typed: &mut &[u8], guest: &mut Vec<u8>) -> Option<ConsoleCommand> {
        while let Some((&byte, rest)) = typed.split_first() {
            *typed = rest;
            if !self.escaped {
                if byte == CTRL_A {
                    self.escaped = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            self.escaped = false;
            match byte {
                b'x' | b'X' => return Some(ConsoleCommand::End),
                b'h' | b'H' | b'?' => return Some(ConsoleCommand::Help),
                CTRL_A => guest.push(CTRL_A),
                other => guest.extend_from_slice(&[CTRL_A, other]),
            }
        }
        None
    }
}

/// Starts a thread that reads standard input until its end: `on_bytes` gets what is meant for the
/// guest, `on_end` is called when the person ends the VM. The end of the input itself only means
/// that there will be no more. Escape keys count only if standard input is a terminal, so that
/// piped input arrives unchanged.
///
/// # Errors
/// If the thread cannot be started.
pub fn read_stdin(
    mut on_bytes: impl FnMut(&[u8]) + Send + 'static,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let interactive = io::stdin().is_terminal();
    let reader = move || {
        let mut parser = EscapeParser::default();
        let mut buffer = [0; 1024];
        let mut guest = Vec::new();
        loop {
            let length = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if !interactive {
                on_bytes(&buffer[..length]);
                continue;
            }
            let mut typed = &buffer[..length];
            while !typed.is_empty() {
                guest.clear();
                let command = parser.feed(&mut typed, &mut guest);
                if !guest.is_empty() {
                    on_bytes(&guest);
                }
                match command {
                    Some(ConsoleCommand::End) => return on_end(),
                    Some(ConsoleCommand::Help) => {
                        let _ = write!(io::stderr(), "\r\n[{HELP}]\r\n");
                    }
                    None => {}
                }
            }
        }
    };
    thread::Builder::new()
        .name("console-input".into())
        .spawn(reader)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reaches the guest, and the commands up to the end of the VM.
    fn feed(chunks: &[&[u8]]) -> (Vec<u8>, Vec<ConsoleCommand>) {
        let mut parser = EscapeParser::default();
        let (mut guest, mut commands) = (Vec::new(), Vec::new());
        for mut chunk in chunks.iter().copied() {
            while !chunk.is_empty() && commands.last() != Some(&ConsoleCommand::End) {
                commands.extend(parser.feed(&mut chunk, &mut guest));
            }
        }
        (guest, commands)
    }

    #[test]
    fn plain_bytes_pass() {
        assert_eq!(
            feed(&[b"ls\r", b"\x03\x1b[A"]),
            (b"ls\r\x03\x1b[A".to_vec(), vec![])
        );
    }

    #[test]
    fn the_escape_key_works_across_reads() {
        assert_eq!(
            feed(&[b"a\x01", b"x"]),
            (b"a".to_vec(), vec![ConsoleCommand::End])
        );
        assert_eq!(feed(&[b"\x01", b"\x01b"]), (b"\x01b".to_vec(), vec![]));
        assert_eq!(
            feed(&[b"\x01hq"]),
            (b"q".to_vec(), vec![ConsoleCommand::Help])
        );
    }

    #[test]
    fn commands_that_are_read_together_are_all_obeyed() {
        let commands = vec![ConsoleCommand::Help, ConsoleCommand::End];
        assert_eq!(feed(&[b"\x01ha\x01xb"]), (b"a".to_vec(), commands));
    }

    #[test]
    fn an_unknown_escape_goes_to_the_guest() {
        assert_eq!(feed(&[b"\x01k"]), (b"\x01k".to_vec(), vec![]));
    }

    #[test]
    fn nothing_behind_the_end_reaches_the_guest() {
        assert_eq!(feed(&[b"\x01xrm -rf"]), (vec![], vec![ConsoleCommand::End]));
    }
}
