//! The guest: an unmodified `dpdk-testpmd` with the virtio driver, on a core of its own.

use crate::Layout;
use std::error::Error;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PROMPT: &str = "testpmd> ";

/// A running testpmd; killed when dropped.
pub struct Guest {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    started: bool,
}

impl Guest {
    /// With one port on each socket.
    pub fn start(sockets: &[PathBuf], layout: Layout) -> Result<Guest, Box<dyn Error>> {
        let mut command = Command::new("stdbuf");
        command.args([
            "-oL",
            "dpdk-testpmd",
            "--no-huge",
            "--no-shconf",
            "--no-telemetry",
        ]);
        command.args([
            "--no-pci",
            "--single-file-segments",
            "-m",
            "128",
            "-l",
            "0,1",
        ]);
        command.args(["--file-prefix", &format!("bench{}", std::process::id())]);
        for (n, socket) in sockets.iter().enumerate() {
            command.arg("--vdev").arg(format!(
                "net_virtio_user{n},path={},mac=02:00:00:00:00:0{n},queue_size=256,packed_vq={},mrg_rxbuf={},in_order={}",
                socket.display(),
                u8::from(layout.packed),
                u8::from(layout.mergeable),
                u8::from(layout.in_order),
            ));
        }
        command.args([
            "--",
            "-i",
            "--no-mlockall",
            "--total-num-mbufs=4096",
            "--nb-cores=1",
        ]);
        command.args(["--txd=256", "--rxd=256"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!("dpdk-testpmd does not start: {error}; `cargo xtask deps` installs it")
            })?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut guest = Guest {
            child,
            stdin: stdin.ok_or("no pipe")?,
            stdout: stdout.ok_or("no pipe")?,
            started: false,
        };
        guest.answer()?;
        Ok(guest)
    }

    /// Forwards in this mode, with packets of this size where it makes them.
    pub fn forward(&mut self, mode: &str, size: usize) -> Result<(), Box<dyn Error>> {
        if std::mem::replace(&mut self.started, true) {
            self.say("stop")?;
        }
        self.say(&format!("set fwd {mode}"))?;
        self.say(&format!("set txpkts {size}"))?;
        self.say("start")?;
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<String, Box<dyn Error>> {
        writeln!(self.stdin, "{line}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String, Box<dyn Error>> {
        let (mut said, mut bytes) = (String::new(), [0; 4096]);
        while !said.ends_with(PROMPT) {
            match self.stdout.read(&mut bytes)? {
                0 => return Err(format!("dpdk-testpmd ended: {said}").into()),
                n => said.push_str(&String::from_utf8_lossy(&bytes[..n])),
            }
        }
        Ok(said)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
