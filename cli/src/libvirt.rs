//! Libvirt, through `virsh`: works with every distribution's libvirt and needs no library of it.

use crate::failure::Failure;
use api::v1;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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

    /// Detaches the interface with this MAC from wherever it is, and waits until the guest let go.
    pub fn detach(&self, mac: &str) -> Result<(), Failure> {
        let live = self.active && self.has_interface(mac, false)?;
        let config = self.persistent && self.has_interface(mac, true)?;
        if !live && !config {
            return Ok(());
        }
        if config {
            self.detach_interface(mac, false, true)?;
        }
        if live {
            self.detach_interface(mac, true, false)?;
            let until = Instant::now() + UNPLUG;
            while self.has_interface(mac, false)? {
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

    fn detach_interface(&self, mac: &str, live: bool, config: bool) -> Result<(), Failure> {
        let mut args = vec![
            "detach-interface",
            self.name.as_str(),
            "vhostuser",
            "--mac",
            mac,
        ];
        if live {
            args.push("--live");
        }
        if config {
            args.push("--config");
        }
        virsh(&self.uri, &args, None).map(drop)
    }

    fn has_interface(&self, mac: &str, inactive: bool) -> Result<bool, Failure> {
        let mut args = vec!["dumpxml", self.name.as_str()];
        if inactive {
            args.push("--inactive");
        }
        let xml = virsh(&self.uri, &args, None)?;
        Ok(xml
            .to_ascii_lowercase()
            .contains(&format!("<mac address='{}'/>", mac.to_ascii_lowercase())))
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

/// The interface element for a port.
///
/// It has no `<mtu>`: libvirt 9.0 looks for a network device of the host to set it on, and a vhostuser
/// interface has none ("Cannot set interface MTU"). Guests learn the MTU by DHCP and router advertisements.
/// Source: libvirt, `docs/formatdomain.rst`, "vhost-user interface".
pub fn interface_xml(port: &v1::Port) -> Result<String, Failure> {
    let status = port.status.clone().unwrap_or_default();
    if status.socket.is_empty() {
        return Err(Failure::other(format!(
            "Port \"{}\" has no socket yet: {}",
            port.name,
            if status.reason.is_empty() {
                "its host's agent has not answered"
            } else {
                &status.reason
            }
        )));
    }
    let virtio = port.virtio.unwrap_or_default();
    let source = match virtio.mode() {
        v1::SocketMode::AgentConnects => {
            format!(
                "<source type='unix' path='{}' mode='server'/>",
                escape(&status.socket)
            )
        }
        v1::SocketMode::Unspecified | v1::SocketMode::AgentListens => format!(
            "<source type='unix' path='{}' mode='client'>\n    <reconnect enabled='yes' timeout='1'/>\n  </source>",
            escape(&status.socket)
        ),
    };
    let pairs = virtio.queue_pairs.max(1);
    // libvirt refuses queues='1', and sizes beyond 1024 (QEMU's bound for the driver side).
    let queues = if pairs > 1 {
        format!(" queues='{pairs}'")
    } else {
        String::new()
    };
    let size = virtio.queue_size.clamp(256, 1024);
    Ok(format!(
        "<interface type='vhostuser'>\n  <mac address='{}'/>\n  {source}\n  <model type='virtio'/>\n  \
         <driver{queues} rx_queue_size='{size}' tx_queue_size='{size}'/>\n</interface>",
        escape(&port.mac)
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(mode: v1::SocketMode, pairs: u32) -> v1::Port {
        v1::Port {
            name: "web".into(),
            mac: "02:00:00:00:00:01".into(),
            virtio: Some(v1::VirtioOptions {
                queue_pairs: pairs,
                queue_size: 1024,
                mode: mode.into(),
            }),
            status: Some(v1::PortStatus {
                socket: "/run/x'y.sock".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_side_that_listens_decides_the_mode() {
        let xml = interface_xml(&port(v1::SocketMode::AgentListens, 1)).unwrap();
        assert!(
            xml.contains("mode='client'") && xml.contains("<reconnect enabled='yes'"),
            "{xml}"
        );
        assert!(!xml.contains("queues='"), "{xml}");
        let xml = interface_xml(&port(v1::SocketMode::AgentConnects, 4)).unwrap();
        assert!(
            xml.contains("mode='server'") && !xml.contains("reconnect"),
            "{xml}"
        );
        assert!(xml.contains("queues='4'"), "{xml}");
    }

    #[test]
    fn paths_are_escaped() {
        let xml = interface_xml(&port(v1::SocketMode::AgentListens, 1)).unwrap();
        assert!(xml.contains("path='/run/x&apos;y.sock'"), "{xml}");
    }

    #[test]
    fn a_port_that_no_agent_serves_has_no_xml() {
        let mut pending = port(v1::SocketMode::AgentListens, 1);
        pending.status = None;
        let error = interface_xml(&pending).unwrap_err().to_string();
        assert!(
            error.contains("\"web\"") && error.contains("has not answered"),
            "{error}"
        );
    }
}
