//! A TOML file that a person wrote, checked whole: every problem is reported with its line and column, in a
//! sentence that says what to do.
//!
//! [`parse`] hands the file's top [`Table`] to a reader, which asks for the keys that it knows and puts what
//! else is wrong into the [`Collector`]. Pure, apart from [`load`]. The agent's configuration and the lab's
//! inventory are read this way.
#![forbid(unsafe_code)]

mod problem;
mod table;

pub use problem::{Collector, Problem, Problems, suggestion};
pub use table::{At, Table};

use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The largest file that [`load`] reads, in bytes.
pub const MAX_FILE: usize = 16 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{path} cannot be read; create it, or give another file on the command line")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is far too large or not text.
    #[error("{path} is not a configuration file: {why}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads a file's text: UTF-8, at most [`MAX_FILE`].
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn load(path: &Path) -> Result<String, LoadError> {
    let read = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let not_text = |why| LoadError::NotText {
        path: path.to_owned(),
        why,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_FILE as u64 {
        return Err(not_text("it is over 16 MiB"));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    String::from_utf8(bytes).map_err(|_| not_text("it is not UTF-8 text"))
}

/// Checks the text of a file with `read`, which gets the top table. `file` is only for the messages.
///
/// # Errors
/// When the text is no TOML (then `read` is not asked: what could be made of it is a guess, and problems found
/// in a guess mislead), or when `read` found something wrong.
pub fn parse<T>(
    text: &str,
    file: &Path,
    read: impl FnOnce(Table<'_, '_>, &mut Collector<'_>) -> T,
) -> Result<T, Problems> {
    let mut out = Collector::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let well_formed = errors.is_empty();
    for error in errors {
        let mut message = error.message().replace('\n', ", ");
        if let Some(first) = message.get(..1) {
            message = format!("{}{}", first.to_uppercase(), &message[1..]);
        }
        out.add(
            error.span().unwrap_or(0..0),
            format!("{message}; this is not valid TOML"),
        );
    }
    let value = well_formed.then(|| read(Table::new("", 0..0, document.get_ref()), &mut out));
    out.finish(file)?;
    value.ok_or_else(|| Problems {
        file: file.to_owned(),
        list: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Option<String>, Option<u64>), Problems> {
        parse(text, Path::new("f.toml"), |mut top, out| {
            let name = top.required("name", "\"a\"", out).map(|at| at.value);
            let size = top.number("size", 1..=9, out).map(|at| at.value);
            top.finish(out);
            (name, size)
        })
    }

    #[test]
    fn all_problems_are_found_at_once_with_their_places() {
        assert_eq!(
            read("name = \"x\"\nsize = 3").unwrap(),
            (Some("x".into()), Some(3))
        );
        let said = read("sise = 3\nname = 4\nsize = 10\n")
            .unwrap_err()
            .to_string();
        for part in [
            "f.toml:1:1: \"sise\" is not known here; did you mean \"size\"?",
            "f.toml:2:8: \"name\" must be a string",
            "f.toml:3:8: \"size\" is 10, which is not within 1 to 9",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn malformed_text_is_not_guessed_at() {
        let problems = read("name = \"x\nunknown = 1").unwrap_err();
        assert!(
            problems
                .list
                .iter()
                .all(|p| p.text.contains("not valid TOML")),
            "{problems}"
        );
    }

    #[test]
    fn a_file_that_is_no_text_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
        let error = load(file.path()).unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{error}");
    }
}
