//! Debian's `dpdk-testpmd` as a guest: DPDK's own virtio driver (`net_virtio_user`) at the other end of a
//! vhost-user socket, with no virtual machine around it.
//!
//! What it needs: the package `dpdk-dev`, and **no hugepages**. The backend has to map the driver's memory,
//! so that memory has to be in files; with `--no-huge` DPDK 22.11 takes all of it (`-m`) from one memfd, which
//! the driver sends as the one region of its memory table. (With hugepages it would be `--in-memory
//! --single-file-segments`: the driver can send 8 regions at most.) `--no-shconf` and `--no-telemetry` keep
//! several of them apart and leave nothing behind.
//!
//! The program is driven as a person would, over its prompt; `stdbuf` makes it write line by line into a pipe.
//!
//! What the driver can and cannot do, which decides how tests are written:
//! - As a **client** of the socket it never reconnects: when the agent dies, it has to be started again.
//! - As a **server** it accepts a new connection, and then goes on with its rings where they are.
//! - A server that was killed leaves its socket, and the next one refuses to bind it.
//! - `start tx_first N` sends exactly N bursts of 32 on each queue, then receives: 64 packets a queue and
//!   fewer than the 256 descriptors of a ring, so that a test can ask for every single one of them.

use crate::cleanup;
use crate::command::{self, shown};
use crate::process::tail;
use crate::run::Run;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer of the program may take; it shares two cores with everything else.
const LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "testpmd> ";
/// Packets of one burst.
pub const BURST: u64 = 32;

/// One end of the traffic: who it is, and whom it sends to.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of its log.
    pub name: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// True when it makes the socket and the agent connects; false when it connects.
    pub server: bool,
    /// Queue pairs.
    pub queues: u16,
    /// Packed rings, not split ones.
    pub packed: bool,
    /// Its MAC address, which has to be the port's: others are dropped as spoofed.
    pub mac: String,
    /// Its address, likewise.
    pub address: Ipv4Addr,
    /// The MAC address that it sends to.
    pub peer_mac: String,
    /// The address that it sends to.
    pub peer_address: Ipv4Addr,
    /// The UDP port that it sends from and to: another port is another flow.
    pub udp_port: u16,
}

/// What the port counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets lost on reception, for whatever reason.
    pub rx_lost: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
}

/// A running testpmd that forwards nothing yet. Dropped, it is killed.
#[derive(Debug)]
pub struct Testpmd {
    config: Config,
    child: Arc<Mutex<Child>>,
    stdin: ChildStdin,
    said: Arc<Said>,
    log: PathBuf,
    forwarding: bool,
    _undo: cleanup::Guard,
}

#[derive(Debug, Default)]
struct Said {
    text: Mutex<Output>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Output {
    text: String,
    ended: bool,
}

impl Testpmd {
    /// Starts it and waits for its prompt. As a client it needs the agent's socket to be there; as a server
    /// it removes a socket that a killed one left.
    pub fn start(run: &Run, config: Config) -> Result<Testpmd> {
        let server = if config.server { ",server=1" } else { "" };
        let device = format!(
            "net_virtio_user0,path={},queues={},packed_vq={},mac={}{server}",
            config.socket.display(),
            config.queues,
            u8::from(config.packed),
            config.mac
        );
        if config.server {
            let _ = std::fs::remove_file(&config.socket);
        }
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd"])
            .args([
                "--no-huge",
                "--no-shconf",
                "--no-telemetry",
                "--no-pci",
                "-m",
                "64",
            ])
            .args(["--lcores", &lcores(), "--vdev", &device, "--", "-i"])
            .args(["--no-mlockall", "--total-num-mbufs=2048", "--nb-cores=1"])
            .arg(format!("--rxq={}", config.queues))
            .arg(format!("--txq={}", config.queues))
            .arg("--forward-mode=rxonly")
            .arg(format!(
                "--tx-ip={},{}",
                config.address, config.peer_address
            ))
            .arg(format!("--tx-udp={},{}", config.udp_port, config.udp_port))
            .arg(format!("--eth-peer=0,{}", config.peer_mac));
        let log = run.subdir("logs")?.join(format!("{}.log", config.name));
        let mut file = File::options().create(true).append(true).open(&log)?;
        writeln!(file, "$ {}", shown(&command))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file.try_clone()?)
            .process_group(0)
            .spawn()
            .context("\"stdbuf dpdk-testpmd\" could not be started; the package dpdk-dev has it, `cargo xtask deps` installs it")?;
        run.note_process(child.id());
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("testpmd has no pipes");
        };
        let said = Arc::new(Said::default());
        let heard = said.clone();
        std::thread::spawn(move || listen(stdout, file, &heard));
        let child = Arc::new(Mutex::new(child));
        let undone = child.clone();
        let undo = cleanup::on_exit(move || kill(&undone));
        let testpmd = Testpmd {
            config,
            child,
            stdin,
            said,
            log,
            forwarding: false,
            _undo: undo,
        };
        testpmd.answer(0).context("testpmd did not start")?;
        Ok(testpmd)
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Types a command and returns what was printed until the next prompt.
    pub fn command(&mut self, line: &str) -> Result<String> {
        let before = self.said.lock().text.len();
        writeln!(self.stdin, "{line}")
            .and_then(|()| self.stdin.flush())
            .with_context(|| {
                format!("testpmd does not take \"{line}\": {}", tail(&self.log, 20))
            })?;
        self.answer(before)
            .with_context(|| format!("testpmd did not answer \"{line}\""))
    }

    fn answer(&self, from: usize) -> Result<String> {
        let end = Instant::now() + LIMIT;
        let mut output = self.said.lock();
        loop {
            if let Some(at) = output.text[from..].find(PROMPT) {
                return Ok(output.text[from..from + at].to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if output.ended || left.is_zero() {
                let how = if output.ended {
                    "It ended"
                } else {
                    "It said nothing for 30 s"
                };
                bail!("{how}; its last words:\n{}", tail(&self.log, 20));
            }
            let waited = self.said.more.wait_timeout(output, left);
            output = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(output, _)| output);
        }
    }

    /// Begins to receive and count.
    pub fn receive(&mut self) -> Result<()> {
        self.restart("start")
    }

    /// Sends `bursts` bursts of 32 packets on each queue, then receives. Returns how many were sent.
    pub fn send(&mut self, bursts: u64) -> Result<u64> {
        let before = self.stats()?;
        self.restart(&format!("start tx_first {bursts}"))?;
        let wanted = bursts * BURST * u64::from(self.config.queues);
        let sent = self.stats()?.tx_packets - before.tx_packets;
        if sent != wanted {
            bail!("testpmd sent {sent} packets of {wanted}");
        }
        Ok(sent)
    }

    fn restart(&mut self, start: &str) -> Result<()> {
        if self.forwarding {
            self.command("stop")?;
        }
        let said = self.command(start)?;
        if !said.contains("packet forwarding") {
            bail!("testpmd does not forward: {}", said.trim());
        }
        self.forwarding = true;
        Ok(())
    }

    /// What its port counted.
    pub fn stats(&mut self) -> Result<Stats> {
        let said = self.command("show port stats 0")?;
        stats(&said)
            .with_context(|| format!("testpmd's statistics are not understood: {}", said.trim()))
    }

    /// Packets received on one queue.
    pub fn received_on(&mut self, queue: u16) -> Result<u64> {
        let said = self.command("show port xstats 0")?;
        let name = format!("rx_q{queue}_good_packets:");
        number_after(&said, &name)
            .with_context(|| format!("testpmd's port has no counter \"{name}\""))
    }

    /// Whether its port has a link, which is to say a connection to the agent.
    pub fn link(&mut self) -> Result<bool> {
        Ok(self
            .command("show port info 0")?
            .contains("Link status: up"))
    }

    /// Waits until its port has a link.
    pub fn wait_link(&mut self) -> Result<()> {
        command::wait_for("the link of testpmd", LIMIT, || {
            if self.link()? {
                Ok(())
            } else {
                bail!("it is down")
            }
        })
    }

    /// Waits until its port received `packets` in all.
    pub fn wait_received(&mut self, packets: u64) -> Result<()> {
        command::wait_for(
            &format!("reception of {packets} packets by {}", self.config.name),
            LIMIT,
            || {
                let stats = self.stats()?;
                if stats.rx_packets == packets {
                    Ok(())
                } else {
                    bail!("{stats:?}")
                }
            },
        )
    }

    /// Kills it without warning, as the kernel would, and waits until it is gone.
    pub fn kill(self) -> Config {
        kill(&self.child);
        self.config.clone()
    }

    /// Asks it to end, as a person would.
    pub fn quit(mut self) -> Result<Config> {
        writeln!(self.stdin, "quit")?;
        command::wait_for("the end of testpmd", LIMIT, || {
            match lock(&self.child).try_wait()? {
                Some(status) if status.success() => Ok(self.config.clone()),
                Some(status) => bail!("it ended with {status}"),
                None => bail!("it is running"),
            }
        })
    }
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(child: &Mutex<Child>) {
    let mut child = lock(child);
    let _ = child.kill();
    let _ = child.wait();
}

fn listen(mut stdout: impl Read, mut log: File, said: &Said) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = stdout.read(&mut buffer) {
        let _ = log.write_all(&buffer[..len]);
        said.lock()
            .text
            .push_str(&String::from_utf8_lossy(&buffer[..len]));
        said.more.notify_all();
    }
    said.lock().ended = true;
    said.more.notify_all();
}

/// Two DPDK cores, both floating over all CPUs: testpmd wants one for its prompt and one to forward.
fn lcores() -> String {
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let cpus = if last == 0 {
        "0".to_owned()
    } else {
        format!("0-{last}")
    };
    format!("0@({cpus}),1@({cpus})")
}

fn stats(said: &str) -> Option<Stats> {
    let number = |name| number_after(said, name);
    Some(Stats {
        rx_packets: number("RX-packets:")?,
        rx_bytes: number("RX-bytes:")?,
        rx_lost: number("RX-missed:")? + number("RX-errors:")? + number("RX-nombuf:")?,
        tx_packets: number("TX-packets:")?,
        tx_bytes: number("TX-bytes:")?,
        tx_errors: number("TX-errors:")?,
    })
}

fn number_after(said: &str, name: &str) -> Option<u64> {
    said.split_once(name)?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_as_testpmd_22_11_prints_them() {
        let said = "show port stats 0\n\n  ######################## NIC statistics for port 0  ########################\n  \
            RX-packets: 128        RX-missed: 1          RX-bytes:  8192\n  RX-errors: 2\n  RX-nombuf:  3         \n  \
            TX-packets: 64         TX-errors: 4          TX-bytes:  4096\n\n  Throughput (since last show)\n";
        let expected = Stats {
            rx_packets: 128,
            rx_bytes: 8192,
            rx_lost: 6,
            tx_packets: 64,
            tx_bytes: 4096,
            tx_errors: 4,
        };
        assert_eq!(stats(said), Some(expected));
        assert_eq!(stats("Invalid port 0"), None);
        assert_eq!(
            number_after("rx_q1_good_packets: 17\n", "rx_q1_good_packets:"),
            Some(17)
        );
    }
}
