//! Which tests of which suites run on which targets, as the command line asks.

use super::inventory::{Inventory, TargetSpec};
use super::on_target::Chosen;
use super::suite::Suite;
use anyhow::{Context, Result, bail};
use globset::{Glob, GlobMatcher};

/// The suites of these names, in the order asked for; all when none is named.
///
/// # Errors
/// When a name is not known; says which are.
pub fn suites(all: &'static [Suite], names: &[String]) -> Result<Vec<&'static Suite>> {
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let mut chosen: Vec<&'static Suite> = Vec::new();
    for name in names {
        let Some(suite) = all.iter().find(|suite| suite.name == name) else {
            let known: Vec<&str> = all.iter().map(|suite| suite.name).collect();
            bail!(
                "There is no suite \"{name}\"; known are {}",
                known.join(", ")
            );
        };
        if !chosen.iter().any(|other| other.name == suite.name) {
            chosen.push(suite);
        }
    }
    Ok(chosen)
}

/// The tests of `suites` whose name, or `suite/name`, matches one of `globs`; all without globs.
///
/// # Errors
/// When a glob is malformed, or matches nothing.
pub fn tests(suites: &[&'static Suite], globs: &[String]) -> Result<Vec<Chosen>> {
    let all = suites
        .iter()
        .flat_map(|suite| suite.tests.iter().map(|test| (*suite, test)));
    if globs.is_empty() {
        return Ok(all.collect());
    }
    let matchers = globs
        .iter()
        .map(|glob| {
            let matcher =
                Glob::new(glob).with_context(|| format!("\"{glob}\" is not a pattern"))?;
            Ok(matcher.compile_matcher())
        })
        .collect::<Result<Vec<GlobMatcher>>>()?;
    let hit = |matcher: &GlobMatcher, (suite, test): &Chosen| {
        matcher.is_match(test.name) || matcher.is_match(format!("{}/{}", suite.name, test.name))
    };
    let chosen: Vec<Chosen> = all
        .filter(|test| matchers.iter().any(|matcher| hit(matcher, test)))
        .collect();
    for (glob, matcher) in globs.iter().zip(&matchers) {
        if !chosen.iter().any(|test| hit(matcher, test)) {
            bail!("No test matches \"{glob}\"; `ferrovia-lab list` shows all");
        }
    }
    Ok(chosen)
}

/// The targets of these names, in the order of the inventory; all when none is named.
///
/// # Errors
/// When a name is not in the inventory; says which are.
pub fn targets(inventory: &Inventory, names: &[String]) -> Result<Vec<TargetSpec>> {
    for name in names {
        if !inventory.targets.iter().any(|target| target.name == *name) {
            let known: Vec<&str> = inventory.targets.iter().map(|t| t.name.as_str()).collect();
            bail!(
                "There is no target \"{name}\" in the inventory; it has {}",
                known.join(", ")
            );
        }
    }
    let wanted = |target: &&TargetSpec| names.is_empty() || names.contains(&target.name);
    Ok(inventory.targets.iter().filter(wanted).cloned().collect())
}
