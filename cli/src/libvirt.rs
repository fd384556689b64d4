//! Libvirt, through `virsh`: works with every distribution's libvirt and needs no library of it.

use crate::failure::Failure;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

mod xml;

use xml::has_interface;
pub use xml::interfaces_xml;

/// How long the guest may take to give up a device that is unplugged.
const UNPLUG: Duration = Duration::from_secs(20);

/// A domain of one libvirt.
pub struct Domain {
    uri: String,
    /// The name, even where a UUID was given.
    pub name: String,
    /// Whether it runs now.
    pub active: bool,
    /// Whether it is defined, and not only running.
    persistent: bool,
}

impl Domain {
    /// Looks the domain up.
    pub fn find(uri: &str, domain: &str) -> Result<Domain, Failure> {
        if domain.starts_with('-') {
            return Err(Failure::usage(format!(
                "\"{domain}\" is not a domain's name"
            )));
        }
        let info = virsh(uri, &["dominfo", domain], None)?;
        let field = |title: &str| {
            let line = info.lines().find(|line| line.starts_with(title))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Ok(Domain {
            uri: uri.to_owned(),
            name: field("Name").unwrap_or_else(|| domain.to_owned()),
            active: field("State").is_some_and(|state| state != "shut off"),
            persistent: field("Persistent").is_none_or(|persistent| persistent == "yes"),
        })
    }

    /// Refuses a domain whose memory cannot be shared with us: vhost-user works on the guest's memory.
    pub fn check_shared_memory(&self) -> Result<(), Failure> {
        let xml = virsh(&self.uri, &["dumpxml", &self.name], None)?;
        if xml.contains("<access mode='shared'/>") || xml.contains("memAccess='shared'") {
            return Ok(());
        }
        Err(Failure::other(format!(
            "Domain \"{name}\" does not share its memory, which vhost-user needs; add \
             <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking> with `virsh edit {name}` \
             and start the domain anew",
            name = self.name
        )))
    }

    /// Attaches an interface, now if the domain runs and for its next starts if it is defined.
    pub fn attach(&self, xml: &str) -> Result<(), Failure> {
        let mut args = vec!["attach-device", self.name.as_str(), "/dev/stdin"];
        if self.active {
            args.push("--live");
        }
        if self.persistent {
            args.push("--config");
        }
        virsh(&self.uri, &args, Some(xml)).map(drop)
    }

    /// Attaches the interfaces of one port, all or none.
    pub fn attach_all(&self, mac: &str, interfaces: &[String]) -> Result<(), Failure> {
        for (done, xml) in interfaces.iter().enumerate() {
            let Err(failure) = self.attach(xml) else {
                continue;
            };
            if done == 0 {
                return Err(failure);
            }
            return Err(match self.detach(mac) {
                Ok(()) => failure,
                Err(left) => failure.then(&format!("what was attached before stays: {left}")),
            });
        }
        Ok(())
    }

    /// Detaches the interfaces with this MAC from wherever they are, the VF before its standby, and waits
    /// until the guest let go.
    pub fn detach(&self, mac: &str) -> Result<(), Failure> {
        for kind in ["hostdev", "vhostuser"] {
            self.detach_kind(kind, mac)?;
        }
        Ok(())
    }

    fn detach_kind(&self, kind: &str, mac: &str) -> Result<(), Failure> {
        let live = self.active && self.has_interface(kind, mac, false)?;
        let config = self.persistent && self.has_interface(kind, mac, true)?;
        if !live && !config {
            return Ok(());
        }
        if config {
            self.detach_interface(kind, mac, "--config")?;
        }
        if live {
            self.detach_interface(kind, mac, "--live")?;
            let until = Instant::now() + UNPLUG;
            while self.has_interface(kind, mac, false)? {
                if Instant::now() > until {
                    return Err(Failure::unreachable(format!(
                        "The guest of domain \"{}\" did not give up interface {mac} within {} s; its port is kept. \
                         Try again when the guest has booted, or after it is shut down",
                        self.name,
                        UNPLUG.as_secs()
                    )));
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    }

    fn detach_interface(&self, kind: &str, mac: &str, which: &str) -> Result<(), Failure> {
        let name = self.name.as_str();
        let args = ["detach-interface", name, kind, "--mac", mac, which];
        virsh(&self.uri, &args, None).map(drop)
    }

    fn has_interface(&self, kind: &str, mac: &str, inactive: bool) -> Result<bool, Failure> {
        let mut args = vec!["dumpxml", self.name.as_str()];
        if inactive {
            args.push("--inactive");
        }
        let xml = virsh(&self.uri, &args, None)?;
        Ok(has_interface(&xml, kind, mac))
    }
}

/// Runs `virsh` and gives its output.
fn virsh(uri: &str, args: &[&str], stdin: Option<&str>) -> Result<String, Failure> {
    let mut child = Command::new("virsh")
        .args(["--quiet", "--connect", uri])
        .args(args)
        .env("LC_ALL", "C")
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            Failure::unreachable(format!(
                "virsh cannot be started ({error}); install libvirt's clients (Debian: libvirt-clients)"
            ))
        })?;
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        // A virsh that ends early closes the pipe; its own message says why.
        let _ = pipe.write_all(text.as_bytes());
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let said = said
        .trim()
        .trim_start_matches("error: ")
        .replace("\nerror: ", ": ");
    if said.contains("failed to get domain") || said.contains("Domain not found") {
        return Err(Failure::not_found(format!(
            "Libvirt at {uri} has no domain \"{}\"; `virsh list --all` shows those it has",
            args.get(1).unwrap_or(&"")
        )));
    }
    if said.contains("failed to connect") {
        return Err(Failure::unreachable(format!(
            "Libvirt at {uri} cannot be reached: {said}"
        )));
    }
    Err(Failure::other(format!(
        "virsh {} failed: {said}",
        args.first().unwrap_or(&"")
    )))
}
