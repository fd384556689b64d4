//! The kernel module netdevsim, which Debian does not build: made from Debian's own source of the emulated
//! machine's kernel, with the headers of that kernel, and put beside its other modules.

use crate::deps;
use crate::kernel::{MACHINE, depmod, download, extract, make, names};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that says for which kernel the module is complete.
const FOLDER: &str = "netdevsim";

/// True when the machine's kernel has the module.
pub fn is_there(cache: &Path) -> bool {
    let of = |path: PathBuf| fs::read_to_string(path).ok();
    let home = MACHINE.home(cache);
    match of(home.join("complete")) {
        Some(release) => {
            of(cache.join(FOLDER).join("release")).as_ref() == Some(&release)
                && place(&home, &release).exists()
        }
        None => false,
    }
}

/// Where the module belongs.
fn place(home: &Path, release: &str) -> PathBuf {
    let modules = home.join("lib/modules").join(release);
    modules.join("extra/netdevsim.ko")
}

/// Builds it when it is not there; says whether it did. The kernel must be there.
pub fn ensure(cache: &Path) -> Result<bool> {
    if is_there(cache) {
        return Ok(false);
    }
    let home = MACHINE.home(cache).canonicalize()?;
    let release = fs::read_to_string(home.join("complete"))?;
    let version = match fs::read_to_string(home.join("version")) {
        Ok(version) => version,
        Err(_) => bail!(
            "\"{}\" does not say its version; remove it and try again",
            home.display()
        ),
    };
    let what = "netdevsim's source and building it";
    make(cache, &cache.join(FOLDER), what, |note| {
        // The kernel's makefiles know no folder with a space in its name, as the cache's may be.
        let dir = tempfile::Builder::new()
            .prefix("ferrovia-netdevsim.")
            .tempdir_in("/var/tmp")?;
        let module = build(dir.path(), &release, &version)?;
        let to = place(&home, &release);
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(&module, to)?;
        depmod(&home, &release)?;
        Ok(fs::write(note.join("release"), &release)?)
    })
    .context("The module netdevsim could not be built; `cargo xtask deps` tries again")?;
    Ok(true)
}

fn build(dir: &Path, release: &str, version: &str) -> Result<PathBuf> {
    let headers = unpack_headers(dir, release, version)?;
    let source = unpack_source(dir, release, version)?;
    // The headers are made to be installed; here they lie elsewhere.
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile)?;
    let there = dir.join("usr/src");
    fs::write(
        &makefile,
        text.replace("/usr/src", &there.display().to_string()),
    )?;
    // Without it no type information is made of the module, which takes one more tool and serves only tracing.
    let _ = fs::remove_file(headers.join("vmlinux"));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.arg("-C").arg(&headers).arg(format!("-j{jobs}"));
    make.arg(format!("M={}", source.display()));
    // Any compiler will do that builds the rest; the package names one version.
    make.args(["CONFIG_NETDEVSIM=m", "CC=gcc", "CROSS_COMPILE=", "modules"]);
    deps::output(&mut make)?;
    let module = source.join("netdevsim.ko");
    // Debug information is most of the file.
    deps::output(Command::new("strip").arg("-g").arg(&module))?;
    Ok(module)
}

/// The headers of this kernel, with what they depend on of the same source; returns their folder.
fn unpack_headers(dir: &Path, release: &str, version: &str) -> Result<PathBuf> {
    let name = format!("linux-headers-{release}");
    let first = fetch(dir, &format!("{name}={version}"), version)?;
    let depends = deps::output(
        Command::new("dpkg-deb")
            .arg("-f")
            .arg(&first)
            .arg("Depends"),
    )?;
    extract(&first, dir)?;
    fs::remove_file(first)?;
    for needed in names(&depends) {
        let common = needed.starts_with("linux-headers-") && needed.ends_with("-common");
        if common || needed.starts_with("linux-kbuild-") {
            let package = fetch(dir, &format!("{needed}={version}"), version)?;
            extract(&package, dir)?;
            fs::remove_file(package)?;
        }
    }
    Ok(dir.join("usr/src").join(name))
}

/// netdevsim's folder out of the kernel's source; returns where it is.
fn unpack_source(dir: &Path, release: &str, version: &str) -> Result<PathBuf> {
    let mut numbers = release.split(['.', '-', '+']);
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("\"{release}\" is no kernel release");
    };
    let name = format!("linux-source-{major}.{minor}");
    let package = fetch(dir, &format!("{name}={version}"), version)?;
    extract(&package, dir)?;
    fs::remove_file(package)?;
    let archive = dir.join(format!("usr/src/{name}.tar.xz"));
    let wanted = format!("{name}/drivers/net/netdevsim");
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(dir)
        .arg("-xJf")
        .arg(&archive)
        .arg(&wanted);
    deps::output(&mut tar)?;
    Ok(dir.join(wanted))
}

fn fetch(dir: &Path, package: &str, version: &str) -> Result<PathBuf> {
    if let Ok(file) = download(dir, package) {
        return Ok(file);
    }
    deps::update_lists()?;
    download(dir, package).with_context(|| {
        format!(
            "The archive may not have version {version} any more; remove the cache's folder \"{}\" to take \
             the newest kernel",
            MACHINE.folder
        )
    })
}
