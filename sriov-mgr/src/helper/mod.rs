//! The helper process: does what may never return, so that the agent need not wait for it.
//!
//! A write to `sriov_numvfs`, an unbind or a reset can hang in the kernel for as long as somebody holds a
//! VF open, and a process that hangs there cannot even be killed. So each PF has helper processes: the agent
//! sends a request (one line of JSON), waits up to a deadline, and goes on without an answer if none comes.
//!
//! ```text
//!  RealKernel ── Lane (one for writes, one for reads, of each PF)
//!                  │  {"device":"0000:01:00.0","action":{"num_vfs":0},…}\n
//!                  ▼  {"Ok":"done"}\n
//!                helper process: serve() ──▶ kernel::real::act
//! ```
//!
//! A helper ends when its standard input does, that is with the agent, however that ends. It is not killed
//! then: an operation under way is finished, and it holds the lock on the PF for as long, so that the next
//! agent waits for it.

mod lane;

pub(crate) use lane::Lane;

use crate::device::Device;
use crate::kernel::KernelError;
use crate::kernel::real::act::{Action, Answer, act};
use crate::kernel::real::tree::Tree;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How to start a helper process. It must call [`serve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperCommand {
    /// The program, usually this one (`/proc/self/exe`).
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// One line to a helper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) device: Device,
    pub(crate) action: Action,
    /// How long it may wait for a change that another process is making to the device.
    pub(crate) patience: Duration,
}

/// One line back.
pub(crate) type Reply = Result<Answer, KernelError>;

/// Closes what a helper was given besides its standard streams. DPDK opens its files without `O_CLOEXEC`, and a
/// helper that keeps a VFIO group open is a user of the VF that never goes. To be called first, before anything
/// is opened.
pub fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open = entries.flatten();
    let open: Vec<i32> = open
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // That of the listing is closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Serves requests, one a line, until `requests` ends. Called by the program that [`HelperCommand`] names.
///
/// # Errors
/// When the agent can no longer be read from or answered.
pub fn serve(requests: impl BufRead, answers: impl Write) -> io::Result<()> {
    serve_in(&Tree(PathBuf::from("/")), requests, answers)
}

fn serve_in(tree: &Tree, requests: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    for line in requests.lines() {
        let reply: Reply = match serde_json::from_str::<Request>(&line?) {
            Ok(request) => act(tree, &request.device, &request.action, request.patience),
            Err(error) => Err(KernelError::Failed {
                device: "the helper process".into(),
                what: "Reading a request".into(),
                why: error.to_string(),
            }),
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        answers.write_all(&text)?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::real::testtree;

    fn ask(tree: &Tree, lines: &str) -> Vec<Reply> {
        let mut answers = Vec::new();
        serve_in(tree, lines.as_bytes(), &mut answers).unwrap();
        let text = String::from_utf8(answers).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn line(action: Action) -> String {
        let request = Request {
            device: "0000:01:00.0".parse().unwrap(),
            action,
            patience: Duration::from_millis(50),
        };
        serde_json::to_string(&request).unwrap() + "\n"
    }

    #[test]
    fn requests_are_done_and_answered_in_order() {
        let root = testtree::igb(1);
        let tree = Tree(root.path().to_owned());
        let vf = "0000:01:10.0".parse().unwrap();
        let lines = [
            line(Action::Autoprobe(false)),
            line(Action::DriverOverride(vf, Some("vfio-pci".into()))),
            "no JSON\n".to_owned(),
            line(Action::Pf { cautious: false }),
            line(Action::Reset(vf)),
        ];
        let replies = ask(&tree, &lines.concat());
        assert_eq!(replies[..2], [Ok(Answer::Done), Ok(Answer::Done)]);
        assert!(
            replies[2]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("Reading a request")
        );
        let Ok(Answer::Pf(pf)) = &replies[3] else {
            panic!("{:?}", replies[3])
        };
        assert!(!pf.autoprobe);
        assert!(
            replies[4]
                .as_ref()
                .is_err_and(|e| e.to_string().contains("bound to igbvf; unbind it")),
            "with its driver bound it must not be reset: {:?}",
            replies[4]
        );
        let written = std::fs::read_to_string(tree.function(vf).0.join("driver_override")).unwrap();
        assert!(written.starts_with("vfio-pci\n"), "{written:?}");
    }

    #[test]
    fn every_obstacle_to_vfio_is_in_the_answer() {
        let root = testtree::igb(2);
        let tree = Tree(root.path().to_owned());
        let vf = "0000:01:10.0".parse().unwrap();
        // The second VF is in the group of the first.
        let group = root.path().join("sys/kernel/iommu_groups/20/devices");
        std::fs::create_dir_all(group.join("0000:01:10.2")).unwrap();
        let answer = ask(
            &tree,
            &line(Action::VfioObstacles {
                function: vf,
                accepted: Vec::new(),
            }),
        )
        .remove(0);
        let Ok(Answer::VfioObstacles(said)) = answer else {
            panic!("{answer:?}")
        };
        let said = said.join("; ");
        for part in [
            "group 20 with 0000:01:10.2, which is still bound to igbvf",
            "cannot be reset",
            "/dev/vfio/vfio",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }

    #[test]
    fn a_change_by_another_process_is_waited_for_and_named() {
        let root = testtree::igb(0);
        let tree = Tree(root.path().to_owned());
        let device = "0000:01:00.0".parse().unwrap();
        let other = std::fs::File::open(&tree.dir(&device).0).unwrap();
        let lock = nix::fcntl::Flock::lock(other, nix::fcntl::FlockArg::LockExclusive).unwrap();
        let reply = ask(&tree, &line(Action::Autoprobe(false))).remove(0);
        assert!(
            matches!(reply, Err(KernelError::Wedged { .. })),
            "{reply:?}"
        );
        assert!(crate::kernel::real::act::is_being_changed(&tree, &device));
        drop(lock);
        assert_eq!(
            ask(&tree, &line(Action::Autoprobe(false))),
            [Ok(Answer::Done)]
        );
    }
}
