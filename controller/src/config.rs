//! `/etc/ferrovia/controller.toml`, which need not exist. Flags win over it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::refusal::Refusal;

/// What the file can say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// The controller's name in its certificate.
    pub name: Option<String>,
    /// More names and addresses in its certificate.
    pub san: Vec<String>,
    /// Without TLS.
    pub plain: bool,
    /// Plain mode on an address that other machines reach.
    pub plain_anywhere: bool,
    /// Log as JSON.
    pub log_json: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    san: Option<Vec<String>>,
    plain: Option<bool>,
    plain_anywhere: Option<Spanned<bool>>,
    log_format: Option<Spanned<String>>,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("The configuration '{}' cannot be read; check its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// Reads the file; the defaults without one.
///
/// # Errors
/// [`ConfigError`], with the line.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(source) => Err(ConfigError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// Reads the file's text.
///
/// # Errors
/// [`ConfigError::Line`].
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let at = |offset: usize, what: String| {
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        ConfigError::Line {
            path: path.into(),
            line,
            what,
        }
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        at(
            offset,
            format!(
                "{}; correct the line or remove it",
                error.message().replace('\n', ", ")
            ),
        )
    })?;
    let mut config = Config {
        plain: file.plain.unwrap_or_default(),
        san: file.san.unwrap_or_default(),
        ..Config::default()
    };
    if let Some(listen) = file.listen {
        let address = listen.get_ref().parse().map_err(|_| {
            at(
                listen.span().start,
                format!(
                    "'{}' is not an address to listen on; write it like \"127.0.0.1:6640\"",
                    listen.get_ref()
                ),
            )
        })?;
        config.listen = Some(address);
    }
    if let Some(name) = file.name {
        crate::plan::fields::name("controller", name.get_ref())
            .map_err(|Refusal { message, .. }| at(name.span().start, message))?;
        config.name = Some(name.into_inner());
    }
    if let Some(anywhere) = file.plain_anywhere {
        if *anywhere.get_ref() && !config.plain {
            return Err(at(
                anywhere.span().start,
                "plain_anywhere means nothing without plain = true; add that or remove this".into(),
            ));
        }
        config.plain_anywhere = anywhere.into_inner();
    }
    if let Some(format) = file.log_format {
        config.log_json = match format.get_ref().as_str() {
            "json" => true,
            "text" => false,
            other => {
                return Err(at(
                    format.span().start,
                    format!("'{other}' is not a log format; use \"text\" or \"json\""),
                ));
            }
        };
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        parse(Path::new("controller.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_file_is_understood() {
        let text = "listen = \"[::1]:7000\"\nname = \"ctl\"\nsan = [\"ctl.example\"]\nplain = true\nplain_anywhere = true\nlog_format = \"json\"\n";
        let config = read(text).unwrap();
        assert_eq!(config.listen, Some("[::1]:7000".parse().unwrap()));
        assert!(config.plain && config.plain_anywhere && config.log_json);
        assert_eq!(read("").unwrap(), Config::default());
    }

    #[test]
    fn malformed_toml_names_the_file_and_the_line() {
        for (text, line, word) in [
            ("plain = true\nlisten = \n", 2, "string"),
            ("plain = true\n\nlissten = \"x\"\n", 3, "lissten"),
            ("\nlisten = \"nowhere\"\n", 2, "127.0.0.1:6640"),
            ("plain = \"yes\"\n", 1, "boolean"),
            ("\n\nlog_format = \"xml\"\n", 3, "xml"),
            ("name = \"CTL\"\n", 1, "CTL"),
            ("plain_anywhere = true\n", 1, "plain = true"),
        ] {
            let error = read(text).unwrap_err();
            assert!(
                error.starts_with(&format!("controller.toml:{line}: ")),
                "{text:?}: {error}"
            );
            assert!(error.contains(word), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
