//! Results as a table for people, as a part of a document, and as JSON.

use serde::Serialize;

use crate::results::{Results, Row, Side};
use crate::support::stats::geometric_mean;

/// What the results were measured with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Circumstances {
    /// The host's processor.
    pub(crate) processor: String,
    /// Packages of the kernels of the guests.
    pub(crate) kernels: Vec<String>,
    /// QEMU's version, if it took part.
    pub(crate) qemu: Option<String>,
    /// What Partita was told.
    pub(crate) processor_mode: Option<String>,
    /// Rounds of all sides.
    pub(crate) rounds: u32,
    /// Time for each program in each round.
    pub(crate) milliseconds: u32,
    /// The sides that took part.
    pub(crate) sides: Vec<Side>,
}

/// Everything to be told.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    command: String,
    circumstances: Circumstances,
    groups: Vec<Group>,
    rows: Vec<Summary>,
    rounds: Results,
}

/// The geometric means of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Group {
    name: String,
    /// QEMU's time divided by Partita's.
    against_qemu: Option<f64>,
    /// Partita's time divided by the host's own.
    against_native: Option<f64>,
}

/// The medians of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary {
    name: String,
    /// Medians in nanoseconds per operation.
    native: Option<f64>,
    partita: Option<f64>,
    qemu: Option<f64>,
    against_qemu: Option<f64>,
    against_native: Option<f64>,
    /// How far Partita's rounds lie apart, as a part of their median.
    partita_spread: Option<f64>,
}

const HEADINGS: [&str; 7] = [
    "program",
    "one operation",
    "native",
    "Partita",
    "QEMU TCG",
    "faster than QEMU",
    "slower than native",
];
/// How many of the columns hold text; the others hold numbers.
const TEXT_COLUMNS: usize = 2;

impl Report {
    /// Summarises results, which `command` brought about.
    pub(crate) fn new(circumstances: Circumstances, command: String, results: Results) -> Self {
        let groups = results.groups();
        let groups = groups
            .into_iter()
            .map(|name| group(&results, name))
            .collect();
        Self {
            command,
            circumstances,
            groups,
            rows: results.rows.iter().map(summary).collect(),
            rounds: results,
        }
    }

    /// What is wrong, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.rounds.problems()
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.table(), self.notes())
    }

    /// For a document.
    pub(crate) fn document(&self) -> String {
        let command = &self.command;
        format!("    {command}\n\n{}\n{}", self.notes(), self.table())
    }

    /// Sentences about how the figures came about.
    fn notes(&self) -> String {
        let mut text = self.circumstances_note();
        if let Some(part) = self.rounds.used_by_others {
            let percent = part * 100.0;
            text.push_str(&format!(
                "Other processes used {percent:.0} % of the host meanwhile.\n"
            ));
        }
        for (side, mitigations) in &self.rounds.mitigations {
            let parts: Vec<String> = mitigations
                .iter()
                .filter(|(_, state)| *state != "Not affected")
                .map(|(flaw, state)| format!("{flaw}: {state}"))
                .collect();
            let parts = if parts.is_empty() {
                "none".to_owned()
            } else {
                parts.join("; ")
            };
            let side = side.title();
            text.push_str(&format!("Mitigations in the guest of {side}: {parts}.\n"));
        }
        text
    }

    fn circumstances_note(&self) -> String {
        let c = &self.circumstances;
        let mut kernels = c.kernels.clone();
        kernels.dedup();
        kernels.sort();
        kernels.dedup();
        let mode = match &c.processor_mode {
            Some(mode) => format!(", Partita with `--processor-mode {mode}`"),
            None => String::new(),
        };
        let qemu = c.qemu.as_ref().map_or(String::new(), |version| {
            format!(" QEMU {version} with `-accel tcg -cpu max`.")
        });
        let kernels = if kernels.is_empty() {
            String::new()
        } else {
            format!(" Guest kernels: {}.", kernels.join(", "))
        };
        format!(
            "Host: {}. Medians of {} round{} of {} ms for each program{mode}.{kernels}{qemu}\n",
            c.processor,
            c.rounds,
            if c.rounds == 1 { "" } else { "s" },
            c.milliseconds,
        )
    }

    /// The table, in Markdown, its columns aligned.
    fn table(&self) -> String {
        let mut lines = Vec::new();
        for group in &self.groups {
            let mut line = vec![String::new(); HEADINGS.len()];
            line[0] = format!("**{}**", group_title(&group.name));
            line[1] = "geometric mean".into();
            line[5] = bold(&ratio(group.against_qemu));
            line[6] = bold(&ratio(group.against_native));
            lines.push(line);
            for row in self.rounds.group(&group.name) {
                lines.push(self.line(row));
            }
        }
        render(&lines)
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let time = |side| match row.median(side) {
            Some(ns) => duration(ns),
            None if row.skipped(side) => "not offered".into(),
            None => "–".into(),
        };
        vec![
            row.program.name.clone(),
            row.program.operation.clone(),
            time(Side::Native),
            time(Side::Partita),
            time(Side::Qemu),
            ratio(row.ratio(Side::Qemu, Side::Partita)),
            ratio(row.ratio(Side::Partita, Side::Native)),
        ]
    }
}

fn group(results: &Results, name: &str) -> Group {
    let mean = |of, to| {
        let ratios: Vec<f64> = results
            .group(name)
            .filter_map(|row| row.ratio(of, to))
            .collect();
        geometric_mean(&ratios)
    };
    Group {
        name: name.to_owned(),
        against_qemu: mean(Side::Qemu, Side::Partita),
        against_native: mean(Side::Partita, Side::Native),
    }
}

fn summary(row: &Row) -> Summary {
    Summary {
        name: row.program.name.clone(),
        native: row.median(Side::Native),
        partita: row.median(Side::Partita),
        qemu: row.median(Side::Qemu),
        against_qemu: row.ratio(Side::Qemu, Side::Partita),
        against_native: row.ratio(Side::Partita, Side::Native),
        partita_spread: row.spread(Side::Partita),
    }
}

/// What people call a group.
fn group_title(name: &str) -> &str {
    match name {
        "integer" => "Integer",
        "floating" => "Floating point and vector",
        "bulk" => "Memory, bulk",
        "chase" => "Memory, pointer chase",
        "system" => "System",
        "shell" => "Shell work",
        "boot" => "Boot to first process",
        "two-processors" => "Two processors",
        other => other,
    }
}

fn bold(text: &str) -> String {
    if text == "–" {
        text.to_owned()
    } else {
        format!("**{text}**")
    }
}

/// A time with three digits.
fn duration(ns: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (0.0, "ns")];
    // What would be rounded up to 1000 of a unit is 1 of the next.
    let at_least = |limit: f64| ns >= limit * 0.9995;
    let (divisor, unit) = units
        .into_iter()
        .find(|(limit, _)| at_least(*limit))
        .unwrap_or((0.0, "ns"));
    let value = if divisor > 0.0 { ns / divisor } else { ns };
    format!("{} {unit}", digits(value))
}

/// A ratio with three digits, at most two behind the point.
fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), digits)
}

fn digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn render(lines: &[Vec<String>]) -> String {
    let headings = HEADINGS.map(str::to_owned).to_vec();
    let width = |column: usize| {
        let cells = std::iter::once(&headings).chain(lines);
        cells
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| {
            let end = if column < TEXT_COLUMNS { "-" } else { ":" };
            format!("{}{end}", "-".repeat(width - 1))
        })
        .collect();
    let mut text = String::new();
    for line in [&headings, &rule].into_iter().chain(lines) {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            text.push_str(&if column < TEXT_COLUMNS {
                format!("| {cell}{padding} ")
            } else {
                format!("| {padding}{cell} ")
            });
        }
        text.push_str("|\n");
    }
    text
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use super::*;
    use crate::catalogue::tests::program;
    use crate::results::Outcome;
    use crate::results::tests::done;

    fn report() -> Report {
        let mut results = Results::new(&[
            program("crc32", "integer", 1),
            program("sieve", "integer", 1),
            program("matrix-avx", "floating", 1),
        ]);
        for (side, name, ns) in [
            (Side::Native, "crc32", 100.0),
            (Side::Partita, "crc32", 200.0),
            (Side::Qemu, "crc32", 400.0),
            (Side::Native, "sieve", 1000.0),
            (Side::Partita, "sieve", 2000.0),
            (Side::Qemu, "sieve", 16_000.0),
            (Side::Native, "matrix-avx", 5.0),
        ] {
            results.add(side, name, done(ns, "1"));
        }
        results.add(Side::Partita, "matrix-avx", Outcome::Skipped("no".into()));
        let circumstances = Circumstances {
            processor: "a processor".into(),
            kernels: vec!["linux 6".into(), "linux 6".into()],
            qemu: Some("7.2".into()),
            processor_mode: None,
            rounds: 1,
            milliseconds: 500,
            sides: Side::ALL.to_vec(),
        };
        Report::new(circumstances, "the command".into(), results)
    }

    #[test]
    fn groups_have_geometric_means() {
        let report = report();
        let mean = report.groups[0].against_qemu.unwrap();
        assert!((mean - 4.0).abs() < 1e-9, "{mean}");
        assert_eq!(report.groups[1].against_qemu, None);
        assert_eq!(report.rows[1].against_native, Some(2.0));
    }

    #[test]
    fn the_table_is_aligned_markdown() {
        let report = report();
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        let width = lines[0].chars().count();
        assert!(
            lines.iter().all(|line| line.chars().count() == width),
            "{table}"
        );
        let cells = |line: &str| -> Vec<String> {
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let expected = [
            "",
            "crc32",
            "crc32 once",
            "100 ns",
            "200 ns",
            "400 ns",
            "2.00",
            "2.00",
            "",
        ];
        assert_eq!(cells(lines[3]), expected);
        assert_eq!(cells(lines[2])[1], "**Integer**");
        assert_eq!(cells(lines[2])[6], "**4.00**");
        let last = cells(lines[6]);
        assert_eq!(last[3..6], ["5.00 ns", "not offered", "–"]);
    }

    #[test]
    fn the_document_names_its_command() {
        let report = report();
        let text = report.document();
        assert!(text.starts_with("    the command\n\nHost: a processor. Medians of 1 round of"));
        assert!(text.contains("Guest kernels: linux 6. QEMU 7.2"));
    }

    #[test]
    fn notes_tell_of_load_and_mitigations() {
        let mut report = report();
        report.rounds.used_by_others = Some(0.256);
        let flaws = [
            ("meltdown".to_owned(), "Not affected".to_owned()),
            ("spectre_v2".to_owned(), "Mitigation: Retpolines".to_owned()),
        ];
        report.rounds.mitigations.insert(Side::Qemu, flaws.into());
        let notes = report.notes();
        assert!(notes.contains("used 26 % of the host"), "{notes}");
        let expected = "Mitigations in the guest of QEMU: spectre_v2: Mitigation: Retpolines.\n";
        assert!(notes.ends_with(expected), "{notes}");
    }

    #[test]
    fn json_has_every_round() {
        let value = serde_json::to_value(report()).unwrap();
        assert_eq!(value["rows"][0]["qemu"], 400.0);
        let rows = &value["rounds"]["rows"];
        assert_eq!(rows[0]["name"], "crc32");
        assert_eq!(rows[0]["sides"]["qemu"][0]["done"]["ns"], 400.0);
        assert_eq!(rows[2]["sides"]["partita"][0]["skipped"], "no");
    }

    #[test]
    fn times_and_ratios_have_three_digits() {
        let seen = [0.5, 9.996, 123.4, 999.4, 999.6, 12_345.0, 2_500_000.0, 3e9].map(duration);
        let expected = [
            "0.50 ns", "10.0 ns", "123 ns", "999 ns", "1.00 µs", "12.3 µs", "2.50 ms", "3.00 s",
        ];
        assert_eq!(seen, expected);
        assert_eq!(ratio(Some(37.04)), "37.0");
        assert_eq!(ratio(None), "–");
    }
}
