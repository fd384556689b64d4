//! libvirt, as it is found: the system's daemon where one answers, otherwise one started by hand for as long
//! as a run needs it (containers and other machines without systemd).

use crate::{cleanup, command, process, run::Run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The connection that everything here and the `ferrovia` command use.
pub const URI: &str = "qemu:///system";
/// What is noted about a daemon that was started by hand.
const STATE: &str = "/run/fv-libvirt";
/// How long an answer may take. A daemon that was just started first asks QEMU what it can do, which takes
/// seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The device of KVM.
const KVM: &str = "/dev/kvm";

/// A working connection to libvirt. Dropping it ends the daemon if a run started it and no other uses it.
#[derive(Debug)]
pub struct Libvirt {
    /// Version line of the daemon and QEMU.
    pub version: String,
    /// True when the daemon was started by a run.
    pub by_hand: bool,
    _undo: cleanup::Guard,
}

impl Libvirt {
    /// Connects, and starts the daemons where nothing answers.
    pub fn connect(run: &Run) -> Result<Libvirt> {
        // Registered first and so dropped last: leaving takes the lock, too.
        let name = run.name().to_owned();
        let undo = cleanup::on_exit(move || leave(&name));
        let _making = cleanup::making();
        let _lock = lock()?;
        fs::create_dir_all(Path::new(STATE).join("users"))?;
        fs::write(
            Path::new(STATE).join("users").join(run.name()),
            process::identity(std::process::id()),
        )?;
        if version().is_err() {
            start_by_hand(run)
                .context("libvirt does not answer, and its daemons could not be started either")?;
        }
        let by_hand = started_by_hand();
        Ok(Libvirt {
            version: version()?,
            by_hand,
            _undo: undo,
        })
    }
}

/// Runs `virsh` and returns what it printed.
pub fn virsh(args: &[&str]) -> Result<String> {
    command::output(
        Command::new("virsh").args(["-q", "-c", URI]).args(args),
        LIMIT,
    )
}

fn version() -> Result<String> {
    let text = command::output(
        Command::new("virsh").args(["-c", URI, "version"]),
        Duration::from_secs(15),
    )?;
    let of = |what: &str| {
        text.lines()
            .find_map(|l| l.split_once(what))
            .map_or("?", |(_, v)| v.trim())
    };
    Ok(format!(
        "libvirt {}, QEMU {}",
        of("Using library: libvirt"),
        of("Running hypervisor: QEMU")
    ))
}

/// Gives `/dev/kvm` to the group `kvm`, as udev does where it runs (50-udev-default.rules), and notes how it was.
///
/// libvirt asks QEMU, which it starts with root's powers for that, whether it has KVM, and itself whether QEMU's
/// account may open the device. Where the answers differ it forgets what it learned and asks again, dozens of
/// times for one guest.
fn share_kvm() -> Result<()> {
    let Ok(now) = fs::metadata(KVM) else {
        return Ok(());
    };
    let Some(group) = nix::unistd::Group::from_name("kvm")? else {
        return Ok(());
    };
    let open_to_group = now.gid() == group.gid.as_raw() && now.mode() & 0o060 == 0o060;
    if open_to_group || now.mode() & 0o006 == 0o006 {
        return Ok(());
    }
    fs::write(
        Path::new(STATE).join("kvm"),
        format!("{} {} {}", now.uid(), now.gid(), now.mode() & 0o7777),
    )?;
    std::os::unix::fs::chown(KVM, None, Some(group.gid.as_raw()))?;
    fs::set_permissions(KVM, fs::Permissions::from_mode(0o660))?;
    Ok(())
}

/// Undoes [`share_kvm`].
fn take_kvm_back() {
    let note = Path::new(STATE).join("kvm");
    let Ok(text) = fs::read_to_string(&note) else {
        return;
    };
    let numbers: Vec<u32> = text.split(' ').flat_map(str::parse).collect();
    if let [uid, gid, mode] = numbers[..] {
        let _ = std::os::unix::fs::chown(KVM, Some(uid), Some(gid));
        let _ = fs::set_permissions(KVM, fs::Permissions::from_mode(mode));
    }
    let _ = fs::remove_file(note);
}

fn start_by_hand(run: &Run) -> Result<()> {
    share_kvm().context("/dev/kvm could not be given to the group kvm")?;
    for daemon in ["virtlogd", "libvirtd"] {
        let note = Path::new(STATE).join(daemon);
        let socket = format!(
            "/run/libvirt/{}",
            if daemon == "virtlogd" {
                "virtlogd-sock"
            } else {
                "libvirt-sock"
            }
        );
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            continue;
        }
        let program = ["/usr/sbin", "/sbin", "/usr/bin"]
            .iter()
            .map(|dir| Path::new(dir).join(daemon))
            .find(|path| path.exists())
            .with_context(|| {
                format!("{daemon} is not installed; `cargo xtask deps` installs it")
            })?;
        let pid_file = Path::new(STATE).join(format!("{daemon}.pid"));
        let log = run.subdir("logs")?.join(format!("{daemon}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        // With -d it returns once it listens. It must outlive this run where others use it, so it is no child.
        // Its output goes to a file: a pipe would be held open by the daemon for ever.
        let mut start = Command::new(&program);
        start
            .arg("-d")
            .arg("-p")
            .arg(&pid_file)
            .stdin(std::process::Stdio::null());
        let status = start
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("{daemon} could not be started"))?;
        if !status.success() {
            bail!(
                "{daemon} did not start ({status}): {}",
                process::tail(&log, 5)
            );
        }
        let pid: u32 = command::wait_for(
            &format!("{daemon} writing its process id"),
            Duration::from_secs(10),
            || Ok(fs::read_to_string(&pid_file)?.trim().parse()?),
        )?;
        fs::write(note, process::identity(pid))?;
    }
    command::wait_for("libvirt answering", Duration::from_secs(30), version)?;
    Ok(())
}

fn started_by_hand() -> bool {
    ["libvirtd", "virtlogd"]
        .iter()
        .any(|daemon| Path::new(STATE).join(daemon).exists())
}

/// The run does not use libvirt any more; the last one ends what was started by hand.
pub fn leave(run: &str) {
    let Ok(_lock) = lock() else { return };
    let users = Path::new(STATE).join("users");
    let _ = fs::remove_file(users.join(run));
    let others = fs::read_dir(&users)
        .map(|list| list.flatten().any(|user| is_used_by(&user.path())))
        .unwrap_or(false);
    if others || !started_by_hand() {
        return;
    }
    // Somebody else may have come to like our daemon.
    if virsh(&["list", "--name"]).is_ok_and(|list| list.lines().any(|name| !name.trim().is_empty()))
    {
        return;
    }
    for daemon in ["libvirtd", "virtlogd"] {
        let note = Path::new(STATE).join(daemon);
        let identity = fs::read_to_string(&note).unwrap_or_default();
        if process::identity_lives(&identity)
            && let Some(pid) = identity
                .split_whitespace()
                .next()
                .and_then(|p| p.parse().ok())
        {
            process::end(pid, Duration::from_secs(5));
        }
        let _ = fs::remove_file(&note);
    }
    take_kvm_back();
    let _ = fs::remove_dir_all(STATE);
}

/// A run uses libvirt while its process lives, or while it was kept.
fn is_used_by(note: &Path) -> bool {
    let name = note.file_name().unwrap_or_default();
    fs::read_to_string(note).is_ok_and(|owner| process::identity_lives(&owner))
        || Path::new("/var/tmp").join(name).join("kept").exists()
}

/// Ends and forgets the domains whose names start with `prefix`.
pub fn remove_domains(prefix: &str) {
    let Ok(list) = virsh(&["list", "--all", "--name"]) else {
        return;
    };
    for name in list
        .lines()
        .map(str::trim)
        .filter(|name| name.starts_with(prefix))
    {
        remove_domain(name);
    }
}

/// Ends and forgets one domain, and removes its log. A start that is still under way in the daemon makes it
/// come up again after it was ended, so libvirt is asked until it does not know the domain any more.
pub fn remove_domain(name: &str) {
    let known = || {
        virsh(&["list", "--all", "--name"])
            .is_ok_and(|list| list.lines().any(|line| line.trim() == name))
    };
    let until = Instant::now() + Duration::from_secs(30);
    while known() && Instant::now() < until {
        let _ = virsh(&["destroy", name]);
        let _ = virsh(&["undefine", name]);
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = fs::remove_file(format!("/var/log/libvirt/qemu/{name}.log"));
}

/// The account that QEMU runs as, as a user and a group id: from qemu.conf, or Debian's.
pub fn qemu_account() -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_name("libvirt-qemu").ok()??;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn lock() -> Result<nix::fcntl::Flock<fs::File>> {
    let path = PathBuf::from("/run/fv-libvirt.lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("\"{}\" could not be locked", path.display()))
}
