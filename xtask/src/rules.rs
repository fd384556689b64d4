//! The house rules that no compiler checks: every source file says what it is for and stays short, nothing is
//! left for later in silence, and nothing names the machine that it was written on.

use crate::{deps, paths};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The longest source file, in lines.
const LONGEST: usize = 600;

/// Checks every file that git knows.
pub fn check() -> Result<String> {
    let files = files()?;
    let machine = machine_words();
    let mut found = Vec::new();
    for file in &files {
        let name = file
            .strip_prefix(paths::root())
            .unwrap_or(file)
            .display()
            .to_string();
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        judge(&name, &text, &machine, &mut found);
    }
    if !found.is_empty() {
        bail!(
            "{} findings:\n        {}",
            found.len(),
            found.join("\n        ")
        );
    }
    Ok(format!("{} files", files.len()))
}

fn files() -> Result<Vec<PathBuf>> {
    let root = paths::root();
    let list = deps::output(Command::new("git").current_dir(&root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("The files to check are those that git knows")?;
    Ok(list
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| root.join(name))
        .filter(|p| p.is_file())
        .collect())
}

/// Paths that would only mean something on this machine. `/root` is on every one.
fn machine_words() -> Vec<String> {
    let root = paths::root().display().to_string();
    let home = std::env::var("HOME").unwrap_or_default();
    [root, home]
        .into_iter()
        .filter(|path| path.matches('/').count() >= 2)
        .collect()
}

fn judge(name: &str, text: &str, machine: &[String], found: &mut Vec<String>) {
    for word in machine {
        let path = |line: &str| {
            line.match_indices(word.as_str()).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-$}\"".contains(c))
                    && line[at + word.len()..].starts_with(['/', ' ', '"', '\''])
            })
        };
        if let Some(at) = text.lines().position(path) {
            found.push(format!(
                "{name}:{}: \"{word}\" is a path of this machine",
                at + 1
            ));
        }
    }
    if !name.ends_with(".rs") {
        return;
    }
    let first = text
        .lines()
        .find(|l| !l.trim().is_empty() && !l.starts_with("#!"))
        .unwrap_or("");
    if !first.starts_with("//!") {
        found.push(format!(
            "{name}:1: it does not begin with a `//!` line that says what it is for"
        ));
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        found.push(format!(
            "{name}: {lines} lines are more than {LONGEST}; cut it where its subject changes"
        ));
    }
    // Written apart, so that this file passes its own check.
    let words = [
        concat!("#[ig", "nore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    for (number, line) in text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(**word)) {
            found.push(format!(
                "{name}:{}: \"{word}\" leaves something for later; do it, or make it an issue",
                number + 1
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        judge(name, text, &["/home/someone".into()], &mut found);
        found
    }

    #[test]
    fn a_good_file_passes() {
        assert!(findings("a.rs", "//! A file.\nfn main() {}\n").is_empty());
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert!(findings("a.rs", "fn main() {}\n")[0].contains("//!"));
        assert!(findings("a.rs", &"//! x\n".repeat(601))[0].contains("601 lines"));
        assert!(findings("a.rs", concat!("//! x\n// TO", "DO: y\n"))[0].contains("a.rs:2"));
        assert!(findings("b.md", "see /home/someone/x\n")[0].contains("this machine"));
    }
}
