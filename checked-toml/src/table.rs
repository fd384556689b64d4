//! Reads one TOML table key by key, with types and positions. Whatever is wrong is collected, so that
//! one look at the file finds all; a value that could not be read is as if it were not there.

use crate::problem::{Collector, suggestion};
use std::ops::Range;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Bytes of the file.
    pub span: Range<usize>,
}

/// One table of the file. [`finish`](Table::finish) refuses the keys that nobody asked for.
#[derive(Debug)]
pub struct Table<'t, 'i> {
    /// As the file writes it, such as `[underlay]` or `[[port]]`; empty at the top.
    pub title: String,
    /// Where the table begins.
    pub span: Range<usize>,
    table: &'t DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'t, 'i> Table<'t, 'i> {
    /// A table called `title`.
    pub fn new(title: &str, span: Range<usize>, table: &'t DeTable<'i>) -> Self {
        Table {
            title: title.to_owned(),
            span,
            table,
            known: Vec::new(),
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Whether the key is there, of whatever type.
    pub fn contains(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn name(&self, key: &str) -> String {
        if self.title.is_empty() {
            key.to_owned()
        } else {
            format!("{key} of {}", self.title)
        }
    }

    /// A string.
    pub fn string(&mut self, key: &'static str, out: &mut Collector<'_>) -> Option<At<String>> {
        let item = self.get(key)?;
        match item.get_ref().as_str() {
            Some(text) => Some(At {
                value: text.to_owned(),
                span: item.span(),
            }),
            None => {
                out.add(
                    item.span(),
                    wrong_type(&self.name(key), "a string in quotes", item),
                );
                None
            }
        }
    }

    /// A string that must be there.
    pub fn required(
        &mut self,
        key: &'static str,
        example: &str,
        out: &mut Collector<'_>,
    ) -> Option<At<String>> {
        if self.table.get(key).is_none() {
            self.known.push(key);
            out.add(
                self.span.clone(),
                format!(
                    "{} is missing; add {key} = {example}",
                    capital(&self.name(key))
                ),
            );
            return None;
        }
        self.string(key, out)
    }

    /// A string that is parsed further; the parser's error says what is wrong.
    pub fn parsed<T: FromStr>(
        &mut self,
        key: &'static str,
        what: &str,
        out: &mut Collector<'_>,
    ) -> Option<At<T>> {
        let text = self.string(key, out)?;
        parse(text, what, out)
    }

    /// A list of strings that are parsed further; empty when the key is not there.
    pub fn parsed_list<T: FromStr>(
        &mut self,
        key: &'static str,
        what: &str,
        out: &mut Collector<'_>,
    ) -> Vec<At<T>> {
        let mut list = Vec::new();
        let Some(item) = self.get(key) else {
            return list;
        };
        let Some(array) = item.get_ref().as_array() else {
            out.add(
                item.span(),
                wrong_type(&self.name(key), "a list in [ ]", item),
            );
            return list;
        };
        for element in array.iter() {
            match element.get_ref().as_str() {
                Some(text) => {
                    let text = At {
                        value: text.to_owned(),
                        span: element.span(),
                    };
                    list.extend(parse(text, what, out));
                }
                None => out.add(
                    element.span(),
                    wrong_type(&self.name(key), "a list of strings in quotes", element),
                ),
            }
        }
        list
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, out: &mut Collector<'_>) -> Option<At<bool>> {
        let item = self.get(key)?;
        let value = item.get_ref().as_bool();
        if value.is_none() {
            out.add(
                item.span(),
                wrong_type(&self.name(key), "true or false", item),
            );
        }
        value.map(|value| At {
            value,
            span: item.span(),
        })
    }

    /// A whole number within `range`.
    pub fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        out: &mut Collector<'_>,
    ) -> Option<At<u64>> {
        let name = self.name(key);
        let item = self.get(key)?;
        number(item, &name, &range, out)
    }

    /// A list of whole numbers within `range`.
    pub fn number_list(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        out: &mut Collector<'_>,
    ) -> Option<At<Vec<u64>>> {
        let name = self.name(key);
        let item = self.get(key)?;
        let Some(array) = item.get_ref().as_array() else {
            out.add(item.span(), wrong_type(&name, "a list in [ ]", item));
            return None;
        };
        let value = array
            .iter()
            .filter_map(|element| number(element, &name, &range, out))
            .map(|at| at.value)
            .collect();
        Some(At {
            value,
            span: item.span(),
        })
    }

    /// A table below this one.
    pub fn table(&mut self, key: &'static str, out: &mut Collector<'_>) -> Option<Table<'t, 'i>> {
        let item = self.get(key)?;
        match item.get_ref().as_table() {
            Some(table) => Some(Table::new(&format!("[{key}]"), item.span(), table)),
            None => {
                out.add(
                    item.span(),
                    format!("{key} must be a table; write [{key}] on its own line"),
                );
                None
            }
        }
    }

    /// `[[key]]` tables, or a list of inline tables.
    pub fn tables(&mut self, key: &'static str, out: &mut Collector<'_>) -> Vec<Table<'t, 'i>> {
        let title = if self.title.is_empty() {
            format!("[[{key}]]")
        } else {
            format!("{key} of {}", self.title)
        };
        let Some(item) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = item.get_ref().as_array() else {
            let way_out = if title.starts_with("[[") {
                title.as_str()
            } else {
                "a list of { }"
            };
            out.add(
                item.span(),
                format!("{key} may be there several times; write {way_out}"),
            );
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in array.iter() {
            match element.get_ref().as_table() {
                Some(table) => tables.push(Table::new(&title, element.span(), table)),
                None => out.add(
                    element.span(),
                    wrong_type(&title, "a table in { }", element),
                ),
            }
        }
        tables
    }

    /// Refuses every key that was not asked for.
    pub fn finish(self, out: &mut Collector<'_>) {
        for (key, _) in self.table.iter() {
            let word: &str = key.get_ref();
            if self.known.contains(&word) {
                continue;
            }
            let place = if self.title.is_empty() {
                "here".to_owned()
            } else {
                format!("in {}", self.title)
            };
            let way_out = match suggestion(word, &self.known) {
                Some(known) => format!("did you mean \"{known}\"?"),
                None => format!("known are {}", self.known.join(", ")),
            };
            let shown: String = word.chars().take(64).collect();
            out.add(
                key.span(),
                format!("\"{shown}\" is not known {place}; {way_out}"),
            );
        }
    }
}

fn parse<T: FromStr>(text: At<String>, what: &str, out: &mut Collector<'_>) -> Option<At<T>> {
    match text.value.parse() {
        Ok(value) => Some(At {
            value,
            span: text.span,
        }),
        Err(_) => {
            let shown: String = text.value.chars().take(64).collect();
            out.add(text.span, format!("\"{shown}\" is not {what}"));
            None
        }
    }
}

fn number(
    item: &Spanned<DeValue<'_>>,
    name: &str,
    range: &std::ops::RangeInclusive<u64>,
    out: &mut Collector<'_>,
) -> Option<At<u64>> {
    let Some(integer) = item.get_ref().as_integer() else {
        out.add(item.span(), wrong_type(name, "a whole number", item));
        return None;
    };
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(value) if range.contains(&value) => Some(At {
            value,
            span: item.span(),
        }),
        _ => {
            let (low, high) = (range.start(), range.end());
            let text = format!(
                "{} is {}, which is not within {low} to {high}",
                capital(name),
                integer.as_str()
            );
            out.add(item.span(), text);
            None
        }
    }
}

fn wrong_type(name: &str, wanted: &str, got: &Spanned<DeValue<'_>>) -> String {
    let kind = got.get_ref().type_str();
    let article = if kind.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    format!("{} must be {wanted}, not {article} {kind}", capital(name))
}

/// A sentence begins with a capital letter or with the object's own spelling in quotes.
fn capital(name: &str) -> String {
    let mut words = name.splitn(2, ' ');
    let key = words.next().unwrap_or_default();
    match words.next() {
        Some(rest) => format!("\"{key}\" {rest}"),
        None => format!("\"{key}\""),
    }
}
