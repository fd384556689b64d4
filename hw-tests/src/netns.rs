//! Network namespaces and the underlay between them: a switch (a bridge in a namespace of its own) with one
//! veth link to each host.

use crate::run::Run;
use crate::{cleanup, command};
use anyhow::{Context, Result};
use std::net::Ipv4Addr;
use std::process::Command;

/// The interface of a host towards the underlay.
pub const UNDERLAY: &str = "ul0";

/// A network namespace, gone when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    _undo: cleanup::Guard,
}

impl Netns {
    /// Makes `<run>-<name>`, with its loopback up.
    pub fn new(run: &Run, name: &str) -> Result<Netns> {
        let _making = cleanup::making();
        let name = run.named(name);
        command::words(&["ip", "netns", "add", &name])
            .with_context(|| format!("The network namespace \"{name}\" could not be made"))?;
        let gone = name.clone();
        let undo = cleanup::on_exit(move || {
            let _ = command::words(&["ip", "netns", "del", &gone]);
        });
        let netns = Netns { name, _undo: undo };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let words = [&["ip", "-n", &self.name], args].concat();
        command::words(&words)
    }

    /// A command that will run `program` in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread that is in the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = std::fs::File::open(&path)
                    .with_context(|| format!("\"{path}\" cannot be opened"))?;
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("The namespace \"{path}\" cannot be entered"))?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|_| anyhow::bail!("The work in \"{path}\" panicked"))
        })
    }
}

/// The switch of the underlay.
#[derive(Debug)]
pub struct Underlay {
    netns: Netns,
    mtu: u16,
}

impl Underlay {
    /// Makes a switch whose links carry `mtu` bytes.
    pub fn new(run: &Run, mtu: u16) -> Result<Underlay> {
        let netns = Netns::new(run, "net")?;
        netns.ip(&["link", "add", "br0", "type", "bridge"])?;
        netns.ip(&["link", "set", "br0", "mtu", &mtu.to_string(), "up"])?;
        Ok(Underlay { netns, mtu })
    }

    /// Links `host` to the switch: `ul0` there with this address, `to-<port>` here.
    pub fn plug(&self, host: &Netns, port: &str, address: Ipv4Addr) -> Result<()> {
        let (here, mtu) = (self.port(port), self.mtu.to_string());
        self.netns.ip(&[
            "link",
            "add",
            &here,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            UNDERLAY,
            "mtu",
            &mtu,
            "netns",
            host.name(),
        ])?;
        self.netns
            .ip(&["link", "set", &here, "master", "br0", "up"])?;
        host.ip(&["addr", "add", &format!("{address}/24"), "dev", UNDERLAY])?;
        host.ip(&["link", "set", UNDERLAY, "up"])?;
        // The kernel hands packets of up to 64 KiB to a veth link unless told not to; af_packet would see them.
        let mut ethtool = host.command("ethtool");
        let _ = command::run(
            ethtool.args(["-K", UNDERLAY, "tso", "off", "gso", "off"]),
            std::time::Duration::from_secs(10),
        );
        Ok(())
    }

    /// The switch's end of the link to `port`.
    pub fn port(&self, port: &str) -> String {
        format!("to-{port}")
    }

    /// The namespace that the switch is in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Bytes of IP packet that the links carry.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}
