//! What is printed when translator and interpreter differ.

use super::compare::values;
use super::flags;
use super::follow::Nearest;
use crate::Vp;
use crate::fault::Exit;
use crate::state::State;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, IntelFormatter};
use std::fmt::Write;

/// Instructions and words of memory that are shown.
const INSTRUCTIONS: usize = 40;
const WORDS: usize = 24;

/// The whole text.
pub(super) fn difference(
    shadow: &mut Vp,
    vp: &Vp,
    before: &State,
    exit: Option<Exit>,
    other: Option<Exit>,
    nearest: Option<Nearest>,
    turn: u64,
) -> String {
    let mut text = format!("translator and interpreter differ (turn {turn})\n");
    if exit != other && other.is_some() {
        let _ = writeln!(
            text,
            "  exits: translator {exit:x?}, interpreter {other:x?}"
        );
    }
    let found = nearest.is_some();
    let near = nearest.unwrap_or_else(|| Nearest {
        state: shadow.state.clone(),
        differing: 0,
        memory: Vec::new(),
        trail: Vec::new(),
    });
    if !found {
        let _ = writeln!(text, "  the interpreter never came to the translator's RIP");
    }
    let _ = writeln!(
        text,
        "  {:16} {:>16} {:>16} {:>16}",
        "", "before", "translator", "interpreter"
    );
    let rows = values(before)
        .into_iter()
        .zip(values(&vp.state))
        .zip(values(&near.state));
    for (i, (((name, before), (_, one)), (_, other))) in rows.enumerate() {
        if i < 18 || one != other {
            let mark = if one == other { ' ' } else { '*' };
            let _ = writeln!(
                text,
                "{mark} {name:16} {before:016x} {one:016x} {other:016x}"
            );
        }
    }
    for (at, one, other) in near.memory.iter().take(WORDS) {
        let _ = writeln!(
            text,
            "* memory {at:#x} (system-physical): translator {one:016x} interpreter {other:016x}"
        );
    }
    let _ = writeln!(text, "  the interpreter's way, the last blocks:");
    let mut lines = Vec::new();
    for &rip in &near.trail {
        list(shadow, rip, near.state.rip, &mut lines);
    }
    let skipped = lines.len().saturating_sub(INSTRUCTIONS);
    for line in &lines[skipped..] {
        let _ = writeln!(text, "    {line}");
    }
    text
}

/// One block.
fn list(vp: &mut Vp, rip: u64, end: u64, lines: &mut Vec<String>) {
    let mut bytes = [0; 256];
    let length = flags::fetch(vp, rip, &mut bytes);
    let mut decoder = Decoder::with_ip(64, &bytes[..length], rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        lines.push(format!("{:016x}  {line}", instruction.ip()));
        let over = instruction.flow_control() != FlowControl::Next || instruction.next_ip() == end;
        if over || instruction.is_invalid() {
            break;
        }
    }
}
