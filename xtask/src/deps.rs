//! `cargo xtask deps`: what Debian must provide. Says what is missing and what each is for, installs it, and
//! fetches the kernels. Where all is there it only looks.

use crate::apt::{self, Wanted};
use crate::kernel::{GUEST, MACHINE};
use crate::{netdevsim, paths, sudo};
use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};

const LIST: &str = include_str!("../debian-packages.txt");

/// Options of `deps`.
#[derive(clap::Args)]
pub struct Args {
    /// Only say what is missing (exit code 1 when something is)
    #[arg(long)]
    check: bool,
    /// Folder for the kernels [default: target/lab-cache]
    #[arg(long)]
    cache: Option<std::path::PathBuf>,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<ExitCode> {
    let cache = args.cache.clone().unwrap_or_else(paths::cache);
    if args.check {
        let missing = missing()?;
        for package in &missing {
            println!("missing: {:<22} {}", package.name, package.purpose);
        }
        let cached = [
            (GUEST.what, GUEST.is_there(&cache)),
            (MACHINE.what, MACHINE.is_there(&cache)),
            ("the module netdevsim", netdevsim::is_there(&cache)),
        ];
        for (what, _) in cached.iter().filter(|(_, there)| !there) {
            println!("missing: {what} in \"{}\"", cache.display());
        }
        return Ok(
            if missing.is_empty() && cached.iter().all(|(_, there)| *there) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            },
        );
    }
    let note = ensure_in(&cache)?;
    println!("{note}");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything is there; says what it did.
pub fn ensure() -> Result<String> {
    ensure_in(&paths::cache())
}

fn ensure_in(cache: &std::path::Path) -> Result<String> {
    let missing = missing()?;
    let mut did = Vec::new();
    if !missing.is_empty() {
        println!("These Debian packages are missing and will be installed:");
        for package in &missing {
            println!("  {:<22} {}", package.name, package.purpose);
        }
        install(&missing)?;
        did.push(format!("{} packages installed", missing.len()));
    }
    for kernel in [&GUEST, &MACHINE] {
        if kernel.fetch(cache)? {
            did.push(format!("{} fetched", kernel.what));
        }
    }
    if netdevsim::ensure(cache)? {
        did.push("netdevsim built".into());
    }
    Ok(if did.is_empty() {
        "Everything is there.".into()
    } else {
        did.join(", ")
    })
}

fn missing() -> Result<Vec<Wanted>> {
    let list = apt::parse_list(LIST);
    let names: Vec<&str> = list.iter().map(|p| p.name.as_str()).collect();
    let there = apt::installed(&names)?;
    Ok(list
        .into_iter()
        .filter(|p| match there.get(&p.name) {
            // A package from backports carries "~bpo" in its version; a later release has what was backported.
            Some(version) => {
                p.backports
                    && !version.contains("~bpo")
                    && apt::release().is_ok_and(|r| r == "bookworm")
            }
            None => true,
        })
        .collect())
}

fn install(missing: &[Wanted]) -> Result<()> {
    sudo::check()?;
    let release = apt::release()?;
    let mut script = String::from("set -e\nexport DEBIAN_FRONTEND=noninteractive\n");
    let from_backports: Vec<&str> = missing
        .iter()
        .filter(|p| p.backports)
        .map(|p| p.name.as_str())
        .collect();
    if !from_backports.is_empty()
        && let Some(source) =
            apt::backports(&apt::sources(std::path::Path::new("/etc/apt")), &release)?
    {
        let file = "/etc/apt/sources.list.d/ferrovia-backports.sources";
        println!(
            "{} needs {release}-backports, which \"{file}\" adds.",
            from_backports.join(", ")
        );
        script.push_str(&format!("cat > {file} <<'END'\n{source}END\n"));
    }
    let install = "apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0";
    script.push_str("apt-get update -q\n");
    let plain: Vec<&str> = missing
        .iter()
        .filter(|p| !p.backports)
        .map(|p| p.name.as_str())
        .collect();
    if !plain.is_empty() {
        script.push_str(&format!("{install} {}\n", plain.join(" ")));
    }
    if !from_backports.is_empty() {
        script.push_str(&format!(
            "{install} -t {release}-backports {}\n",
            from_backports.join(" ")
        ));
    }
    let status = sudo::as_root("sh")?
        .args(["-c", &script])
        .status()
        .context("sudo could not be started")?;
    if !status.success() {
        bail!(
            "The packages could not be installed ({status}); apt's own message above says why. \
             `sudo apt-get -f install` repairs a half-installed package"
        );
    }
    Ok(())
}

/// Updates the package lists, as root.
pub fn update_lists() -> Result<()> {
    let status = sudo::as_root("apt-get")?.args(["update", "-q"]).status()?;
    if !status.success() {
        bail!(
            "The package lists could not be updated ({status}); apt's own message above says why"
        );
    }
    Ok(())
}

/// A program's output, or an error with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command
        .output()
        .with_context(|| format!("{name} could not be started"))?;
    if !done.status.success() {
        bail!(
            "{name} failed ({}): {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
