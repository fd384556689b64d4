//! KVM or software emulation: decided by trying, since a `/dev/kvm` that is there may still not run a guest.

use crate::image::{Image, PROBE_WORD};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How guests run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor runs them.
    Kvm,
    /// QEMU's TCG runs them; the reason why KVM does not.
    Software(String),
}

impl Accel {
    /// Boots the guest under KVM; where that does not work, says why.
    pub fn probe(image: &Image) -> Accel {
        match try_kvm(image) {
            Ok(()) => Accel::Kvm,
            Err(why) => Accel::Software(why),
        }
    }

    /// Runs a QEMU that uses KVM, whose guest says `word` on standard output; where that does not happen
    /// within `limit`, says why.
    pub fn by_trying(qemu: &mut Command, word: &str, limit: Duration) -> Accel {
        match try_with(qemu, word, limit) {
            Ok(()) => Accel::Kvm,
            Err(why) => Accel::Software(why),
        }
    }

    /// The domain type that libvirt calls it.
    pub fn domain_type(&self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Software(_) => "qemu",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accel::Kvm => f.write_str("KVM"),
            Accel::Software(why) => write!(f, "software emulation ({why})"),
        }
    }
}

fn try_kvm(image: &Image) -> Result<(), String> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,accel=kvm",
    ])
    .args(["-cpu", "host", "-m", "192", "-serial", "stdio"])
    .arg("-kernel")
    .arg(&image.kernel)
    .arg("-initrd")
    .arg(&image.initrd)
    .args(["-append", "console=ttyS0 quiet panic=-1 fv.probe"]);
    try_with(
        qemu.stdin(Stdio::null()),
        PROBE_WORD,
        Duration::from_secs(12),
    )
}

/// Runs a QEMU with KVM whose guest writes `word` to standard output.
fn try_with(qemu: &mut Command, word: &str, limit: Duration) -> Result<(), String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm".into());
    }
    if let Err(e) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Err(format!("/dev/kvm cannot be opened: {e}"));
    }
    let started = Instant::now();
    match crate::command::run(qemu, limit) {
        Ok(done) if done.stdout.contains(word) => Ok(()),
        Ok(done) => {
            let said = done
                .stderr
                .lines()
                .next()
                .unwrap_or("the guest said nothing")
                .trim();
            Err(format!("KVM was tried and failed: {said}"))
        }
        Err(_) => Err(format!(
            "KVM was tried: the guest was not up after {} s",
            started.elapsed().as_secs()
        )),
    }
}
