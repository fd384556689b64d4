//! The kernels that guests and the emulated machine boot: Debian's, unpacked into a cache folder and not installed.

use crate::{deps, steps, sudo};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One of the kernels.
#[derive(Debug)]
pub struct Kernel {
    /// Its folder in the cache.
    pub folder: &'static str,
    /// What it is for.
    pub what: &'static str,
    /// Debian's packages that depend on the newest kernel of a kind: of those that there are, the newest counts.
    metas: &'static [&'static str],
}

/// The small kernel of the tests' guests.
pub const GUEST: Kernel = Kernel {
    folder: "kernel",
    what: "the guest's kernel",
    metas: &["linux-image-cloud-amd64"],
};

/// The stock kernel of the emulated NIC machine. Debian 12 has 6.12 under its own name, or as a backport.
pub const MACHINE: Kernel = Kernel {
    folder: "lab-kernel",
    what: "the emulated machine's kernel",
    metas: &["linux-image-6.12-amd64", "linux-image-amd64"],
};

impl Kernel {
    /// Where it is, or will be.
    pub fn home(&self, cache: &Path) -> PathBuf {
        cache.join(self.folder)
    }

    /// True when it is in the cache.
    pub fn is_there(&self, cache: &Path) -> bool {
        self.home(cache).join("complete").exists()
    }

    /// Fetches it when it is not there; says whether it did.
    pub fn fetch(&self, cache: &Path) -> Result<bool> {
        if self.is_there(cache) {
            uncompress(&self.home(cache));
            return Ok(false);
        }
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "{} is for x86_64, and this machine is {}",
                self.what,
                std::env::consts::ARCH
            );
        }
        make(cache, &self.home(cache), self.what, |unfinished| {
            unpack(self.metas, unfinished)
        })
        .with_context(|| {
            format!(
                "Fetching {} failed; `cargo xtask deps` tries again",
                self.what
            )
        })?;
        uncompress(&self.home(cache));
        Ok(true)
    }
}

/// Puts the kernel itself beside Debian's compressed file, which unpacks itself at each boot: under software
/// emulation that takes over a second. Where it cannot be done, the compressed file is booted as before.
fn uncompress(home: &Path) {
    let Ok(release) = fs::read_to_string(home.join("complete")) else {
        return;
    };
    let boot = home.join("boot");
    let to = boot.join(format!("vmlinux-{release}"));
    // QEMU starts an uncompressed kernel by its PVH entry.
    let config = fs::read_to_string(boot.join(format!("config-{release}"))).unwrap_or_default();
    if to.exists() || !config.lines().any(|line| line == "CONFIG_PVH=y") {
        return;
    }
    let packed = boot.join(format!("vmlinuz-{release}"));
    let Some(packed) = fs::read(packed)
        .ok()
        .and_then(|file| payload(&file).map(<[u8]>::to_vec))
    else {
        return;
    };
    let unfinished = to.with_extension(format!("{}", std::process::id()));
    if decompress(&packed, &unfinished).is_err() || fs::rename(&unfinished, &to).is_err() {
        let _ = fs::remove_file(unfinished);
    }
}

/// The compressed kernel in a bzImage: `setup_sects`, `payload_offset` and `payload_length` of the kernel's
/// Documentation/arch/x86/boot.rst. What follows the zstd stream, the length of what comes out, is left off.
fn payload(file: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if file.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match file.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let from = (sectors + 1) * 512 + word(0x248)?;
    let whole = file.get(from..from.checked_add(word(0x24c)?)?)?;
    whole.get(..whole.len().checked_sub(4)?)
}

fn decompress(packed: &[u8], to: &Path) -> Result<()> {
    let tool = match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => bail!("The kernel is compressed in a way that is not known"),
    };
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(to)?)
        .stderr(Stdio::null())
        .spawn()?;
    let fed = child.stdin.take().map(|mut stdin| stdin.write_all(packed));
    let status = child.wait()?;
    let mut start = [0; 4];
    fs::File::open(to)?.read_exact(&mut start)?;
    if !status.success() || !matches!(fed, Some(Ok(()))) || start != *b"\x7fELF" {
        bail!("The kernel could not be decompressed ({status})");
    }
    Ok(())
}

/// Makes the folder `place` of the cache. It is filled beside its place and renamed: an interrupted run leaves
/// nothing that looks complete.
pub fn make(
    cache: &Path,
    place: &Path,
    what: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let spinner = steps::interactive().then(|| steps::spin(&format!("fetching {what}")));
    fs::create_dir_all(cache)
        .with_context(|| format!("The folder \"{}\" could not be made", cache.display()))?;
    let unfinished = place.with_extension(std::process::id().to_string());
    let done = fs::create_dir_all(&unfinished)
        .map_err(anyhow::Error::from)
        .and_then(|()| fill(&unfinished));
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if let Err(e) = done {
        let _ = fs::remove_dir_all(&unfinished);
        return Err(e);
    }
    let _ = fs::remove_dir_all(place);
    fs::rename(&unfinished, place)?;
    Ok(())
}

fn unpack(metas: &[&str], to: &Path) -> Result<()> {
    let newest = || newest(metas).and_then(|name| download(to, &name));
    let package = match newest() {
        Ok(package) => package,
        // The lists are older than the archive, or there are none yet.
        Err(_) => {
            deps::update_lists()?;
            newest()?
        }
    };
    extract(&package, to)?;
    let version = deps::output(
        Command::new("dpkg-deb")
            .arg("-f")
            .arg(&package)
            .arg("Version"),
    )?;
    fs::write(to.join("version"), version.trim())?;
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
    depmod(to, &release)?;
    fs::write(to.join("complete"), &release)?;
    Ok(())
}

/// Unpacks a package's files.
pub fn extract(package: &Path, to: &Path) -> Result<()> {
    deps::output(Command::new("dpkg").arg("-x").arg(package).arg(to)).map(drop)
}

/// Lists the modules below `home` and what they need of each other.
pub fn depmod(home: &Path, release: &str) -> Result<()> {
    let depmod = ["/sbin/depmod", "/usr/sbin/depmod"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("depmod");
    deps::output(Command::new(depmod).arg("-b").arg(home).arg(release)).map(drop)
}

/// The name of the newest kernel's package among what `metas` stand for.
fn newest(metas: &[&str]) -> Result<String> {
    let mut best: Option<(String, String)> = None;
    for meta in metas {
        // A name that the lists do not know is an error of apt-cache's, and none of ours while another is known.
        let text = deps::output(Command::new("apt-cache").args(["show", meta])).unwrap_or_default();
        for (version, name) in images(&text) {
            let newer = match &best {
                None => true,
                Some((than, _)) => Command::new("dpkg")
                    .args(["--compare-versions", &version, "gt", than])
                    .status()?
                    .success(),
            };
            if newer {
                best = Some((version, name));
            }
        }
    }
    best.map(|(_, name)| name).with_context(|| {
        format!(
            "The package lists do not say which kernel {} stands for",
            metas.join(" or ")
        )
    })
}

/// Version and kernel package of each paragraph of what `apt-cache show` says of a meta package.
fn images(text: &str) -> Vec<(String, String)> {
    let field = |paragraph: &str, name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    text.split("\n\n")
        .filter_map(|paragraph| {
            let version = field(paragraph, "Version:")?;
            let depends = field(paragraph, "Depends:")?;
            let image = names(&depends).find(|name| name.starts_with("linux-image-"))?;
            Some((version, image.to_owned()))
        })
        .collect()
}

/// The first name of each alternative of a `Depends:` field.
pub fn names(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .split(',')
        .filter_map(|one| one.split_whitespace().next())
}

/// Downloads a package (`name`, or `name=version`) into a folder that holds no other.
pub fn download(to: &Path, name: &str) -> Result<PathBuf> {
    let mut get = Command::new("apt-get");
    get.current_dir(to).args(["download", "-q"]);
    if sudo::is_root() {
        // apt's own account cannot write here.
        get.args(["-o", "APT::Sandbox::User=root"]);
    }
    deps::output(get.arg(name))?;
    let file = fs::read_dir(to)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"));
    file.with_context(|| format!("apt-get downloaded no file for {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_in_a_bzimage_is_found_and_what_is_none_is_refused() {
        let mut file = vec![0; 2048];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x248] = 8;
        file[0x24c] = 12;
        file[1032..1044].copy_from_slice(b"compressed!!");
        assert_eq!(payload(&file), Some(&b"compress"[..]));
        file[0x24f] = 0xff;
        assert_eq!(payload(&file), None, "longer than the file");
        assert_eq!(payload(b"short"), None);
        assert_eq!(payload(&[0; 2048]), None);
    }

    #[test]
    fn every_version_of_a_meta_package_names_its_kernel() {
        let text = "Package: linux-image-amd64\nVersion: 6.12.95-1~bpo12+1\n\
                    Depends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)\n\n\
                    Package: linux-image-amd64\nVersion: 6.1.176-1\nDepends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)\n";
        let found = images(text);
        assert_eq!(
            found[0].1, "linux-image-6.12.95+deb12-amd64",
            "the backport is among them: {found:?}"
        );
        assert_eq!(found[1].0, "6.1.176-1");
    }
}
