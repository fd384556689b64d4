//! One run of the demo or of the tests: its name, its folder, and the sweep that removes what a dead run left.
//!
//! Everything that a run makes carries its name: network namespaces and domains are called `fv<run>-…`, its
//! files lie in `/var/tmp/fv<run>/`. The folder says who owns the run (process id and start time, so that a
//! reused id is not taken for the owner) and which processes it started. QEMU runs under an account of its
//! own, so the folder can be entered by all.

use crate::{cleanup, command, process};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the folders of runs are.
const HOME: &str = "/var/tmp";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A run. Clones are the same run; the last one dropped removes the folder.
#[derive(Clone, Debug)]
pub struct Run(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    dir: PathBuf,
    _undo: cleanup::Guard,
}

impl Run {
    /// Starts a run: sweeps what dead runs left, and makes this one's folder.
    pub fn start() -> Result<Run> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "Network namespaces and libvirt need root; run this as root or through `cargo xtask`, which uses sudo"
            );
        }
        sweep();
        let _making = cleanup::making();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.subsec_nanos());
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "fv{:x}{:02x}",
            std::process::id(),
            (now / 1000 + counter) & 0xff
        );
        let dir = Path::new(HOME).join(&name);
        fs::create_dir(&dir)
            .with_context(|| format!("The folder \"{}\" could not be made", dir.display()))?;
        set_mode(&dir, 0o755)?;
        fs::write(dir.join("owner"), process::identity(std::process::id()))?;
        let gone = dir.clone();
        let undo = cleanup::on_exit(move || {
            let _ = fs::remove_dir_all(&gone);
        });
        Ok(Run(Arc::new(Inner {
            name,
            dir,
            _undo: undo,
        })))
    }

    /// The run's name, such as `fv1a2b3c`: at most 11 characters.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A folder of the run, made when it is not there.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir().join(name);
        fs::create_dir_all(&dir)
            .with_context(|| format!("The folder \"{}\" could not be made", dir.display()))?;
        set_mode(&dir, 0o755)?;
        Ok(dir)
    }

    /// The name of something that belongs to this run: `fv1a2b3c-h1`.
    pub fn named(&self, thing: &str) -> String {
        format!("{}-{thing}", self.0.name)
    }

    /// Notes a process that the sweep must end when this run dies without a word.
    pub fn note_process(&self, pid: u32) {
        use std::io::Write;
        let line = format!("{}\n", process::identity(pid));
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("processes"));
        let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
    }

    /// Leaves the run as it is when this process ends; [`sweep`] passes it by until [`remove_kept`].
    pub fn keep(&self) -> Result<()> {
        fs::write(self.dir().join("kept"), "")?;
        cleanup::keep_everything();
        Ok(())
    }
}

/// Sets permission bits, whatever the umask.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("The mode of \"{}\" could not be set", path.display()))
}

/// Removes what runs left whose process is gone. Kept runs stay.
pub fn sweep() {
    for (name, dir) in runs() {
        if !dir.join("kept").exists() && !owner_lives(&dir) {
            remove(&name, &dir);
        }
    }
}

/// Removes the runs that `--keep` left, and says which.
pub fn remove_kept() -> Vec<String> {
    let mut gone = Vec::new();
    for (name, dir) in runs() {
        if dir.join("kept").exists() {
            remove(&name, &dir);
            gone.push(name);
        }
    }
    gone
}

fn runs() -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(HOME) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let hex = name.strip_prefix("fv")?;
            let ours = hex.len() >= 3 && hex.chars().all(|c| c.is_ascii_hexdigit());
            // Anyone may write to /var/tmp: only a folder that root made is a run.
            use std::os::unix::fs::MetadataExt;
            let root = entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == 0);
            (ours && root && entry.path().join("owner").exists())
                .then(|| (name.clone(), entry.path()))
        })
        .collect()
}

fn owner_lives(dir: &Path) -> bool {
    fs::read_to_string(dir.join("owner")).is_ok_and(|owner| process::identity_lives(&owner))
}

fn remove(name: &str, dir: &Path) {
    for line in fs::read_to_string(dir.join("processes"))
        .unwrap_or_default()
        .lines()
    {
        if process::identity_lives(line)
            && let Some(pid) = line.split_whitespace().next().and_then(|p| p.parse().ok())
        {
            process::end(pid, Duration::from_secs(2));
        }
    }
    let prefix = format!("{name}-");
    crate::libvirt::remove_domains(&prefix);
    if let Ok(list) = command::words(&["ip", "netns", "list"]) {
        for namespace in list
            .lines()
            .filter_map(|l| l.split_whitespace().next())
            .filter(|n| n.starts_with(&prefix))
        {
            let _ = command::words(&["ip", "netns", "del", namespace]);
        }
    }
    crate::libvirt::leave(name);
    let _ = fs::remove_dir_all(dir);
}
