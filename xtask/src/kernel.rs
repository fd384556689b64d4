//! The guest's kernel: Debian's, unpacked into a cache folder and not installed.

use crate::{deps, steps, sudo};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's package that depends on the newest kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";

/// True when a kernel is in the cache.
pub fn is_there(cache: &Path) -> bool {
    cache.join("kernel/complete").exists()
}

/// Fetches it when it is not there; says whether it did.
pub fn fetch(cache: &Path) -> Result<bool> {
    if is_there(cache) {
        return Ok(false);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "The guest's kernel is for x86_64, and this machine is {}",
            std::env::consts::ARCH
        );
    }
    let spinner = steps::interactive().then(|| steps::spin("fetching the guest's kernel"));
    fs::create_dir_all(cache)
        .with_context(|| format!("The folder \"{}\" could not be made", cache.display()))?;
    // Unpacked beside its place and renamed: an interrupted run leaves nothing that looks complete.
    let unfinished = cache.join(format!("kernel.{}", std::process::id()));
    let done = unpack(&unfinished);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if let Err(e) = done {
        let _ = fs::remove_dir_all(&unfinished);
        return Err(
            e.context("The guest's kernel could not be fetched; `cargo xtask deps` tries again")
        );
    }
    let place = cache.join("kernel");
    let _ = fs::remove_dir_all(&place);
    fs::rename(&unfinished, &place)?;
    Ok(true)
}

fn unpack(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let package = match download(to) {
        Ok(package) => package,
        // The lists are older than the archive, or there are none yet.
        Err(_) => {
            deps::update_lists()?;
            download(to)?
        }
    };
    deps::output(Command::new("dpkg").arg("-x").arg(&package).arg(to))?;
    fs::remove_file(&package)?;
    // Debian 13 has its modules below /usr.
    let merged = to.join("usr/lib/modules");
    if !to.join("lib").exists() && merged.is_dir() {
        fs::create_dir_all(to.join("lib"))?;
        fs::rename(&merged, to.join("lib/modules"))?;
    }
    let modules = to.join("lib/modules");
    let release = fs::read_dir(&modules)?
        .flatten()
        .find_map(|e| e.file_name().into_string().ok());
    let release = release.with_context(|| {
        format!(
            "The kernel package has nothing in \"{}\"",
            modules.display()
        )
    })?;
    let depmod = ["/sbin/depmod", "/usr/sbin/depmod"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("depmod");
    deps::output(Command::new(depmod).arg("-b").arg(to).arg(&release))?;
    fs::write(to.join("complete"), &release)?;
    Ok(())
}

fn download(to: &Path) -> Result<PathBuf> {
    let show = deps::output(Command::new("apt-cache").args(["show", "--no-all-versions", META]))?;
    let name = show
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))
        .into_iter()
        .flat_map(|depends| depends.split(','))
        .filter_map(|one| one.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("The package lists do not say which kernel {META} stands for"))?
        .to_owned();
    let mut get = Command::new("apt-get");
    get.current_dir(to).args(["download", "-q"]);
    if sudo::is_root() {
        // apt's own account cannot write here.
        get.args(["-o", "APT::Sandbox::User=root"]);
    }
    deps::output(get.arg(&name))?;
    let file = fs::read_dir(to)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"));
    file.with_context(|| format!("apt-get downloaded no file for {name}"))
}
