//! Function-level reset through sysfs, for the release of a VF.
//!
//! A VF that was on vfio-pci keeps the queues of its last user until it is reset. Done with the VF's
//! own driver bound and the link down, the write has hung its caller: so it is refused while any driver is
//! bound, and belongs in a helper process with a deadline all the same.

use crate::address::PciAddress;
use crate::kernel::KernelError;
use crate::sysfs::Dir;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Attempts where the kernel says that something else has the device at the moment.
const ATTEMPTS: u32 = 5;
/// Pause between them.
const PAUSE: Duration = Duration::from_millis(50);

/// A function was not reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// Nothing there.
    #[error("{0} is not there (any more)")]
    Gone(PciAddress),
    /// A driver is bound.
    #[error("{function} is bound to {driver}; unbind it before it is reset")]
    Bound {
        /// The function.
        function: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// There is no way to reset it.
    #[error(
        "{0} cannot be reset: the kernel knows no method for it; re-create the VFs of its PF before it gets another owner"
    )]
    NoMethod(PciAddress),
    /// The kernel refused.
    #[error("The reset of {function} was refused: {}", io::Error::from_raw_os_error(*errno))]
    Refused {
        /// The function.
        function: PciAddress,
        /// The error number.
        errno: i32,
    },
    /// The kernel says that it was reset, and it does not answer.
    #[error("{0} was reset and does not answer: its configuration space reads as all ones")]
    Dead(PciAddress),
}

impl ResetError {
    /// As an error of the kernel's part in partitioning; `what` says what was asked.
    pub(crate) fn of_kernel(self, function: PciAddress, what: &str) -> KernelError {
        let device = function.to_string();
        let what = what.to_owned();
        match self {
            ResetError::Gone(_) => KernelError::Gone { device, what },
            ResetError::Refused { errno, .. } => KernelError::Refused {
                device,
                what,
                errno,
                hint: None,
            },
            ResetError::Bound { .. } | ResetError::NoMethod(_) | ResetError::Dead(_) => {
                KernelError::Failed {
                    device,
                    what,
                    why: self.to_string(),
                }
            }
        }
    }
}

/// Resets `function` and sees that it answers afterwards. `root` is `/`, or a made-up tree.
///
/// # Errors
/// Each of [`ResetError`]. Blocks for as long as the device takes, at worst for ever.
pub fn reset(root: &Path, function: PciAddress) -> Result<(), ResetError> {
    let dir = Dir(root.join(format!("sys/bus/pci/devices/{function}")));
    if dir.number("vendor").is_none() {
        return Err(ResetError::Gone(function));
    }
    if let Some(driver) = dir.link_name("driver") {
        return Err(ResetError::Bound { function, driver });
    }
    // An empty attribute: all methods were taken out. A kernel before 5.15 has no such attribute.
    let none_left = dir.0.join("reset_method").exists() && dir.text("reset_method").is_none();
    if none_left || !dir.0.join("reset").exists() {
        return Err(ResetError::NoMethod(function));
    }
    write(&dir, function)?;
    if dead(&dir) {
        return Err(ResetError::Dead(function));
    }
    Ok(())
}

fn write(dir: &Dir, function: PciAddress) -> Result<(), ResetError> {
    let mut attempt = 1;
    loop {
        let Err(error) = fs::write(dir.0.join("reset"), "1") else {
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY) if attempt < ATTEMPTS => {}
            Some(libc::ENOENT) => return Err(ResetError::Gone(function)),
            Some(libc::ENOTTY) => return Err(ResetError::NoMethod(function)),
            errno => {
                let errno = errno.unwrap_or(libc::EIO);
                return Err(ResetError::Refused { function, errno });
            }
        }
        attempt += 1;
        thread::sleep(PAUSE);
    }
}

/// Whether the class in configuration space reads as all ones. (A VF's vendor always does.)
fn dead(dir: &Dir) -> bool {
    const CLASS: usize = 8;
    let config = fs::read(dir.0.join("config")).unwrap_or_default();
    config
        .get(CLASS..CLASS + 4)
        .is_some_and(|class| class == [0xff; 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const VF: &str = "0000:3b:10.0";

    /// A VF with every attribute that a reset looks at.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = device(&root);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("vendor"), "0x8086\n").unwrap();
        fs::write(dir.join("reset_method"), "flr\n").unwrap();
        fs::write(dir.join("reset"), "").unwrap();
        fs::write(dir.join("config"), [0; 64]).unwrap();
        root
    }

    fn device(root: &tempfile::TempDir) -> std::path::PathBuf {
        root.path().join(format!("sys/bus/pci/devices/{VF}"))
    }

    fn tried(root: &tempfile::TempDir) -> Result<(), ResetError> {
        reset(root.path(), VF.parse().unwrap())
    }

    #[test]
    fn an_unbound_function_is_reset() {
        let root = tree();
        tried(&root).unwrap();
        assert_eq!(fs::read(device(&root).join("reset")).unwrap(), b"1");
    }

    #[test]
    fn a_bound_function_is_not_touched() {
        let root = tree();
        symlink("../../drivers/igbvf", device(&root).join("driver")).unwrap();
        let error = tried(&root).unwrap_err().to_string();
        assert!(error.contains("bound to igbvf; unbind it"), "{error}");
        assert!(fs::read(device(&root).join("reset")).unwrap().is_empty());
    }

    #[test]
    fn without_a_method_nothing_is_written() {
        let root = tree();
        fs::write(device(&root).join("reset_method"), "\n").unwrap();
        let error = tried(&root).unwrap_err();
        assert!(matches!(error, ResetError::NoMethod(_)), "{error}");
        assert!(fs::read(device(&root).join("reset")).unwrap().is_empty());
    }

    #[test]
    fn a_refusal_comes_through() {
        let root = tree();
        fs::remove_file(device(&root).join("reset")).unwrap();
        fs::create_dir(device(&root).join("reset")).unwrap();
        let errno = libc::EISDIR;
        let function = VF.parse().unwrap();
        assert_eq!(tried(&root), Err(ResetError::Refused { function, errno }));
    }

    #[test]
    fn a_function_that_does_not_answer_afterwards_is_dead() {
        let root = tree();
        fs::write(device(&root).join("config"), [0xff; 64]).unwrap();
        assert!(matches!(tried(&root), Err(ResetError::Dead(_))));
    }

    #[test]
    fn a_function_that_is_not_there_is_gone() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(tried(&root), Err(ResetError::Gone(_))));
    }
}
