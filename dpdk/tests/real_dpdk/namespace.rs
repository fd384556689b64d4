//! A network namespace of a test, gone again when it is dropped.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use crate::{spawn, unique};

pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Namespace {
        let namespace = Namespace {
            name: format!("fvdpdk{}-{}", std::process::id(), unique()),
        };
        ip(&["netns", "add", &namespace.name]);
        namespace
    }

    /// Two interfaces, `a` and `b`, that are the ends of one wire.
    pub fn veth(&self, a: &str, b: &str, mtu: u16) {
        let mtu = mtu.to_string();
        ip(&[
            "-n", &self.name, "link", "add", a, "mtu", &mtu, "type", "veth", "peer", "name", b,
            "mtu", &mtu,
        ]);
        for iface in [a, b] {
            // No router solicitations between our frames.
            self.run(|| {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{iface}/disable_ipv6"), "1")
                    .unwrap()
            });
            ip(&["-n", &self.name, "link", "set", iface, "up"]);
        }
        // The kernel gives an interface its queue when it sees the carrier, a little later; until
        // then it drops what is sent.
        for iface in [a, b] {
            crate::wait_for("the veth pair to come up", || {
                ip(&["-n", &self.name, "-o", "link", "show", iface]).contains("state UP")
            });
        }
    }

    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Runs `body` in a thread that is in the namespace.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
                // SAFETY: setns changes only this thread, which ends with `body`.
                let status = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(status, 0, "setns to {}", self.name);
                body()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut command = Command::new("ip");
        let _ = spawn(command.args(["netns", "delete", &self.name])).wait();
    }
}

fn ip(arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = spawn(&mut command).wait_with_output().expect("ip ends");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
