//! What is wrong with a configuration file, and where: every problem with its line and column.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong, at a place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// One sentence that names the object and the way out.
    pub text: String,
}

/// All that is wrong with one file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub file: PathBuf,
    /// In the order of the file.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let Problem { line, column, text } = problem;
            write!(f, "{}:{line}:{column}: {text}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems by byte offset while a file is read.
#[derive(Debug)]
pub struct Collector<'a> {
    text: &'a str,
    found: Vec<(usize, String)>,
}

impl<'a> Collector<'a> {
    /// Nothing found yet in `text`.
    pub fn new(text: &'a str) -> Self {
        Collector {
            text,
            found: Vec::new(),
        }
    }

    /// Adds what is wrong at `span`, in bytes of the text.
    pub fn add(&mut self, span: Range<usize>, text: impl Into<String>) {
        self.found.push((span.start, text.into()));
    }

    /// All that was found; `file` is only for the messages.
    ///
    /// # Errors
    /// When anything was found.
    pub fn finish(mut self, file: &Path) -> Result<(), Problems> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(offset, _)| *offset);
        let list = self
            .found
            .into_iter()
            .map(|(offset, text)| {
                let (line, column) = place(self.text, offset);
                Problem { line, column, text }
            })
            .collect();
        Err(Problems {
            file: file.to_owned(),
            list,
        })
    }
}

/// Line and column, both from 1, of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// The known word that `word` was probably meant to be.
pub fn suggestion<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|k| (distance(word, k), *k))
        .filter(|(d, k)| *d <= 1 + k.len() / 4)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Levenshtein distance in bytes, of words cut to 64 bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (a, b) = (&a[..a.len().min(64)], &b[..b.len().min(64)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters() {
        let text = "ä = 1\nbb = 2\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(
            place(text, 1),
            (1, 1),
            "inside a character is that character"
        );
        assert_eq!(place(text, 2), (1, 2));
        assert_eq!(place(text, 7), (2, 1));
        assert_eq!(place(text, 1000), (3, 1));
    }

    #[test]
    fn a_slip_finds_the_word_and_nonsense_finds_none() {
        let known = ["address", "gateway", "mtu"];
        assert_eq!(suggestion("adress", &known), Some("address"));
        assert_eq!(suggestion("mtuu", &known), Some("mtu"));
        assert_eq!(suggestion("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
