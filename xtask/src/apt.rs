//! Debian's packages: which are installed, and where this machine gets them from.
//!
//! No mirror is named here. Where backports are needed, their address and key are those of the release's own
//! entry in the machine's apt sources, in either of apt's two formats (sources.list(5)).

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// A package that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether it must come from the release's backports.
    pub backports: bool,
    /// What for.
    pub purpose: String,
}

/// Reads the list: one package a line, with a word on what it is for after '#'.
pub fn parse_list(text: &str) -> Vec<Wanted> {
    text.lines()
        .filter_map(|line| {
            let (entry, purpose) = line.split_once('#').unwrap_or((line, ""));
            let entry = entry.trim();
            let (name, backports) = match entry.strip_suffix("@backports") {
                Some(name) => (name, true),
                None => (entry, false),
            };
            (!name.is_empty()).then(|| Wanted {
                name: name.into(),
                backports,
                purpose: purpose.trim().into(),
            })
        })
        .collect()
}

/// Versions of the installed packages among `names`.
pub fn installed(names: &[&str]) -> Result<HashMap<String, String>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n"])
        .args(names)
        .output()
        .context("dpkg-query could not be started; Ferrovia's tools are for Debian 12 and later")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, status, version) = (words.next()?, words.next()?, words.next()?);
            (status == "installed").then(|| (name.to_owned(), version.to_owned()))
        })
        .collect())
}

/// An entry of the machine's apt sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Where the archive is.
    pub uris: Vec<String>,
    /// `bookworm`, `bookworm-updates` …
    pub suites: Vec<String>,
    /// `main` …
    pub components: Vec<String>,
    /// The keyring, where one is named.
    pub signed_by: Option<String>,
}

/// Reads `/etc/apt/sources.list` and `sources.list.d`.
pub fn sources(etc_apt: &Path) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => all.extend(text.lines().filter_map(one_line)),
            Some("sources") => all.extend(deb822(&text)),
            _ => {}
        }
    }
    all
}

fn one_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim();
    let mut source = Source::default();
    let rest = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((options, rest)) => {
            let signed = options
                .split_whitespace()
                .find_map(|o| o.strip_prefix("signed-by="));
            source.signed_by = signed.map(str::to_owned);
            rest
        }
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris = vec![words.next()?];
    source.suites = vec![words.next()?];
    source.components = words.collect();
    Some(source)
}

fn deb822(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let mut fields: HashMap<String, String> = HashMap::new();
        let mut last = String::new();
        for line in paragraph {
            if line.starts_with([' ', '\t']) {
                let value = fields.entry(last.clone()).or_default();
                value.push('\n');
                value.push_str(line.trim());
            } else if let Some((name, value)) = line.split_once(':') {
                last = name.trim().to_ascii_lowercase();
                fields.insert(last.clone(), value.trim().to_owned());
            }
        }
        let words = |name: &str| -> Vec<String> {
            fields.get(name).map_or(Vec::new(), |v| {
                v.split_whitespace().map(str::to_owned).collect()
            })
        };
        let disabled = fields
            .get("enabled")
            .is_some_and(|v| v.eq_ignore_ascii_case("no"));
        if words("types").iter().any(|t| t == "deb") && !disabled {
            all.push(Source {
                uris: words("uris"),
                suites: words("suites"),
                components: words("components"),
                signed_by: fields.get("signed-by").cloned(),
            });
        }
    }
    all
}

/// The release's name, from os-release.
pub fn release() -> Result<String> {
    let text =
        std::fs::read_to_string("/etc/os-release").context("\"/etc/os-release\" cannot be read")?;
    let value = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    if value("ID").as_deref() != Some("debian") {
        bail!("This machine is not Debian; install what xtask/debian-packages.txt lists by hand");
    }
    value("VERSION_CODENAME").context("\"/etc/os-release\" does not name the Debian release")
}

/// The apt source to add for the release's backports; none when the machine has them already.
///
/// # Errors
/// When the sources have no entry of the release that its address could be taken from.
pub fn backports(sources: &[Source], release: &str) -> Result<Option<String>> {
    let suite = format!("{release}-backports");
    if sources.iter().any(|s| s.suites.contains(&suite)) {
        return Ok(None);
    }
    let base = sources
        .iter()
        .filter(|s| s.suites.iter().any(|x| x == release) && s.components.iter().any(|c| c == "main"))
        .max_by_key(|s| s.suites.contains(&format!("{release}-updates")))
        .with_context(|| {
            format!("No apt source of {release} main was found in /etc/apt; add one for {suite} by hand and try again")
        })?;
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
        base.uris.join(" ")
    );
    if let Some(key) = &base.signed_by {
        let value = key.replace('\n', "\n ");
        text.push_str(&format!("Signed-By: {value}\n"));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_has_a_purpose_for_every_package() {
        let list = parse_list(include_str!("../debian-packages.txt"));
        assert!(list.len() > 10);
        for package in list {
            assert!(!package.purpose.is_empty(), "{} has none", package.name);
            assert!(!package.name.contains(char::is_whitespace), "{package:?}");
        }
    }

    #[test]
    fn backports_come_from_where_the_release_does() {
        let old =
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib # x";
        let text = backports(&[one_line(old).unwrap()], "bookworm")
            .unwrap()
            .unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n"
        );
        let new = "Types: deb deb-src\n# note\nURIs: http://a.test/d\nSuites: bookworm bookworm-updates\nComponents: main\n\
                   \nTypes: deb\nURIs: http://b.test/d\nSuites: nodistro\nComponents: main\nEnabled: no\n";
        let parsed = deb822(new);
        assert_eq!(parsed.len(), 1);
        assert!(
            backports(&parsed, "bookworm")
                .unwrap()
                .unwrap()
                .contains("http://a.test/d")
        );
    }

    #[test]
    fn backports_that_are_there_are_not_added_again() {
        let there = one_line("deb http://mirror.test/debian bookworm-backports main").unwrap();
        assert_eq!(backports(&[there], "bookworm").unwrap(), None);
        assert!(backports(&[], "bookworm").is_err());
    }
}
