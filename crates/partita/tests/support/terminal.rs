//! A terminal with nobody but the test at it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::sync::Arc;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use super::vm::Stream;

/// A pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    keyboard: File,
    end: File,
    screen: Arc<Stream>,
}

impl Terminal {
    /// A terminal of 30 rows and 100 columns, as the system sets up new ones.
    pub(crate) fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("it is granted");
        unlockpt(&master).expect("it is unlocked");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let end = File::options()
            .read(true)
            .write(true)
            .open(OsStr::from_bytes(name.to_bytes()))
            .expect("its other end opens");
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&end, size).expect("its size can be set");
        let keyboard = File::from(master);
        let screen: Arc<Stream> = Arc::default();
        // The thread ends with the last of the terminal's ends.
        drop(screen.fill(keyboard.try_clone().expect("a second handle")));
        Self {
            keyboard,
            end,
            screen,
        }
    }

    /// A handle for a program that runs at the terminal.
    pub(super) fn end(&self) -> Stdio {
        self.end.try_clone().expect("a second handle").into()
    }

    /// What it shows.
    pub(super) fn screen(&self) -> Arc<Stream> {
        Arc::clone(&self.screen)
    }

    /// Presses keys.
    pub(crate) fn press(&self, keys: &str) {
        (&self.keyboard)
            .write_all(keys.as_bytes())
            .expect("the terminal takes keys");
    }

    /// All settings, to be compared.
    pub(crate) fn settings(&self) -> String {
        format!("{:?}", self.termios())
    }

    /// Every key goes to the program at once, and none is shown.
    pub(crate) fn is_raw(&self) -> bool {
        !self
            .termios()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn termios(&self) -> Termios {
        tcgetattr(&self.end).expect("the terminal has settings")
    }
}
