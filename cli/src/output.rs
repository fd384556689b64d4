//! Printing: tables that fit the terminal, or JSON for scripts.

use crate::failure::Failure;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write, stdout};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// JSON for scripts: field names and meanings are stable.
    Json,
}

/// Something with columns.
pub trait Row: Serialize {
    /// The titles, in capitals.
    const TITLES: &'static [&'static str];
    /// The cells, as many as titles.
    fn cells(&self) -> Vec<String>;
    /// Field name and text for each line of the view of one object.
    fn details(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}

impl Format {
    /// Prints many.
    pub fn list<R: Row>(self, rows: &[R]) -> Result<(), Failure> {
        match self {
            Format::Json => json(&rows),
            Format::Table => {
                let mut table = plain_table();
                table.set_header(R::TITLES);
                for row in rows {
                    table.add_row(row.cells());
                }
                for column in table.column_iter_mut() {
                    column.set_padding((0, 2));
                }
                print(&table.trim_fmt())
            }
        }
    }

    /// Prints one, a line a field.
    pub fn one<R: Row>(self, row: &R) -> Result<(), Failure> {
        match self {
            Format::Json => json(row),
            Format::Table => {
                let details = row.details();
                let width = details
                    .iter()
                    .map(|(title, _)| title.len())
                    .max()
                    .unwrap_or(0);
                let lines: Vec<String> = details
                    .iter()
                    .filter(|(_, text)| !text.is_empty())
                    .map(|(title, text)| {
                        let indented = text.replace('\n', &format!("\n{:width$}  ", ""));
                        format!("{:width$}  {indented}", title.to_lowercase())
                    })
                    .collect();
                print(&lines.join("\n"))
            }
        }
    }

    /// Says what was done; nothing on JSON.
    pub fn said(self, text: &str) -> Result<(), Failure> {
        if self == Format::Table {
            print(text)
        } else {
            Ok(())
        }
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        Failure::other(format!("The answer cannot be written as JSON: {error}"))
    })?;
    print(&text)
}

/// Prints a value as JSON on one line, for streams.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| {
        Failure::other(format!("The answer cannot be written as JSON: {error}"))
    })?;
    print(&text)
}

/// Prints a line; a closed pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// `-` for nothing, for table cells.
pub fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// Milliseconds as people say them: `850ms`, `12s`, `3m05s`, `2h10m`.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}
