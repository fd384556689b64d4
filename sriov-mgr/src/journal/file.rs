//! Lines and checksums of the journal's file. See the module above for the format.

use super::record::Record;
use super::{JournalError, Ledger};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

const HEADER: &str = "ferrovia-sriov-journal 1\n";

/// The first line.
pub(super) fn header() -> &'static str {
    HEADER
}

/// One commit as a line.
pub(super) fn line(number: u64, records: &[Record]) -> Result<String, String> {
    let json = serde_json::to_string(records).map_err(|error| error.to_string())?;
    let body = format!("{number} {json}");
    Ok(format!("{} {body}\n", checksum(&body)))
}

fn checksum(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    digest.iter().take(8).fold(String::new(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The state that a file's content makes. A torn last line is as if it were not there, but for the first: that
/// came with the file, which was whole before it had its name.
pub(super) fn read(content: &[u8], path: &Path) -> Result<Ledger, JournalError> {
    let mut ledger = Ledger::default();
    let cut = |line| JournalError::Damaged {
        path: path.to_owned(),
        line,
        why: "it is cut off".into(),
    };
    let Some(body) = content.strip_prefix(HEADER.as_bytes()) else {
        return Err(match HEADER.as_bytes().starts_with(content) {
            true => cut(1),
            false => foreign(content, path),
        });
    };
    let lines: Vec<&[u8]> = body.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.is_empty() {
        return Err(cut(2));
    }
    for (at, line) in lines.iter().enumerate() {
        match parse(line, at as u64 + 1) {
            Ok(records) => records.iter().for_each(|record| ledger.apply(record)),
            Err(_) if at > 0 && at + 1 == lines.len() => break,
            Err(why) => {
                return Err(JournalError::Damaged {
                    path: path.to_owned(),
                    line: at + 2,
                    why,
                });
            }
        }
    }
    Ok(ledger)
}

fn parse(line: &[u8], number: u64) -> Result<Vec<Record>, String> {
    let line = line.strip_suffix(b"\n").ok_or("it has no end")?;
    let line = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    let (sum, body) = line.split_once(' ').ok_or("it has no checksum")?;
    if sum != checksum(body) {
        return Err("its checksum is wrong".into());
    }
    let (at, json) = body.split_once(' ').ok_or("it has no number")?;
    if at.parse() != Ok(number) {
        return Err(format!("its number is {at} and not {number}"));
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn foreign(content: &[u8], path: &Path) -> JournalError {
    let first = content.split(|byte| *byte == b'\n').next().unwrap_or(b"");
    let first = String::from_utf8_lossy(&first[..first.len().min(64)]).into_owned();
    match first.strip_prefix("ferrovia-sriov-journal ") {
        Some(version) => JournalError::Version {
            path: path.to_owned(),
            version: version.to_owned(),
        },
        None => JournalError::Damaged {
            path: path.to_owned(),
            line: 1,
            why: "it does not begin as a journal does".into(),
        },
    }
}
