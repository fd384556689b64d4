//! The interface elements that give a port to a domain, and finding them again in a domain's XML.
//!
//! Source: libvirt, `docs/formatdomain.rst`, "vhost-user interface", "PCI Passthrough" and "Teaming a
//! virtio/hostdev NIC pair".

use crate::failure::Failure;
use api::v1;
use std::fmt::Write;

/// The interface elements for a port, in the order in which they are attached: a vhost-user device, a VF, or
/// the pair of them.
pub fn interfaces_xml(port: &v1::Port) -> Result<Vec<String>, Failure> {
    let status = port.status.clone().unwrap_or_default();
    // The guest pairs the two by their MAC, libvirt by the name of the one that stays.
    let alias = format!("ua-{}", port.name);
    match (port.binding(), port.standby) {
        (v1::Binding::Sriov, false) => Ok(vec![hostdev(port, &status, None)?]),
        (v1::Binding::Sriov, true) => Ok(vec![
            vhostuser(port, &status, Some(&alias))?,
            hostdev(port, &status, Some(&alias))?,
        ]),
        _ => Ok(vec![vhostuser(port, &status, None)?]),
    }
}

fn not_yet(port: &v1::Port, what: &str, status: &v1::PortStatus) -> Failure {
    let why = match status.reason.as_str() {
        "" => "its host's agent has not answered",
        reason => reason,
    };
    Failure::other(format!("Port \"{}\" has no {what} yet: {why}", port.name))
}

/// A vhost-user interface; with an alias, the one of a pair that stays when a guest moves.
///
/// It has no `<mtu>`: libvirt 9.0 looks for a network device of the host to set it on, and a vhostuser
/// interface has none ("Cannot set interface MTU"). Guests learn the MTU by DHCP and router advertisements.
fn vhostuser(
    port: &v1::Port,
    status: &v1::PortStatus,
    alias: Option<&str>,
) -> Result<String, Failure> {
    if status.socket.is_empty() {
        return Err(not_yet(port, "socket", status));
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
    let teaming = alias.map_or(String::new(), |alias| {
        format!(
            "  <teaming type='persistent'/>\n  <alias name='{}'/>\n",
            escape(alias)
        )
    });
    Ok(format!(
        "<interface type='vhostuser'>\n  <mac address='{}'/>\n  {source}\n  <model type='virtio'/>\n  \
         <driver{queues} rx_queue_size='{size}' tx_queue_size='{size}'/>\n{teaming}</interface>",
        escape(&port.mac)
    ))
}

/// A VF; with an alias, the transient one of a pair with the interface of that alias.
///
/// libvirt sets the MAC and the VLAN on the VF again when the domain starts, and takes a VLAN off that it is
/// not told of. The agent has bound the VF to vfio-pci before: libvirt leaves a device that it finds so as it
/// is, also when the domain ends (seen with libvirt 9.0). `managed` only helps where somebody has unbound it meanwhile.
fn hostdev(
    port: &v1::Port,
    status: &v1::PortStatus,
    partner: Option<&str>,
) -> Result<String, Failure> {
    if status.vf.is_empty() {
        return Err(not_yet(port, "VF", status));
    }
    let address = pci(&status.vf).ok_or_else(|| {
        Failure::other(format!(
            "The agent says that port \"{}\" has VF \"{}\", which is not a PCI address; update the agent or this command",
            port.name, status.vf
        ))
    })?;
    let mut xml = format!(
        "<interface type='hostdev' managed='yes'>\n  <mac address='{}'/>\n  <source>\n    {address}\n  </source>\n",
        escape(&port.mac)
    );
    if status.vlan != 0 {
        let _ = writeln!(xml, "  <vlan>\n    <tag id='{}'/>\n  </vlan>", status.vlan);
    }
    if let Some(partner) = partner {
        let _ = writeln!(
            xml,
            "  <teaming type='transient' persistent='{}'/>",
            escape(partner)
        );
    }
    xml.push_str("</interface>");
    Ok(xml)
}

/// The address element of `0000:3b:02.1`.
fn pci(text: &str) -> Option<String> {
    let address: sriov_mgr::PciAddress = text.parse().ok()?;
    let text = address.to_string();
    let (rest, function) = text.rsplit_once('.')?;
    let mut parts = rest.split(':');
    let (domain, bus, slot) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!(
        "<address type='pci' domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
    ))
}

/// Whether a domain's XML has an interface of this type with this MAC.
pub(super) fn has_interface(xml: &str, kind: &str, mac: &str) -> bool {
    let xml = xml.to_ascii_lowercase();
    let mac = format!("<mac address='{}'/>", mac.to_ascii_lowercase());
    let start = format!("type='{kind}'");
    xml.split("<interface ")
        .skip(1)
        .map(|rest| rest.split("</interface>").next().unwrap_or(rest))
        .any(|element| {
            let opening = element.split('>').next().unwrap_or_default();
            opening.contains(&start) && element.contains(&mac)
        })
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

    fn vf_port(vlan: u32, standby: bool) -> v1::Port {
        let mut port = port(v1::SocketMode::AgentConnects, 1);
        port.binding = v1::Binding::Sriov.into();
        port.standby = standby;
        let status = port.status.as_mut().unwrap();
        status.vf = "0000:3b:02.1".into();
        status.vlan = vlan;
        port
    }

    fn only(port: &v1::Port) -> String {
        let mut all = interfaces_xml(port).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn the_side_that_listens_decides_the_mode() {
        let xml = only(&port(v1::SocketMode::AgentListens, 1));
        assert!(
            xml.contains("mode='client'") && xml.contains("<reconnect enabled='yes'"),
            "{xml}"
        );
        assert!(!xml.contains("queues='"), "{xml}");
        let xml = only(&port(v1::SocketMode::AgentConnects, 4));
        assert!(
            xml.contains("mode='server'") && !xml.contains("reconnect"),
            "{xml}"
        );
        assert!(xml.contains("queues='4'"), "{xml}");
    }

    #[test]
    fn paths_are_escaped() {
        let xml = only(&port(v1::SocketMode::AgentListens, 1));
        assert!(xml.contains("path='/run/x&apos;y.sock'"), "{xml}");
    }

    #[test]
    fn a_port_that_no_agent_serves_has_no_xml() {
        let mut pending = port(v1::SocketMode::AgentListens, 1);
        pending.status = None;
        let error = interfaces_xml(&pending).unwrap_err().to_string();
        assert!(
            error.contains("\"web\"") && error.contains("has not answered"),
            "{error}"
        );
        let mut failed = vf_port(0, false);
        failed.status = Some(v1::PortStatus {
            reason: "Pool tenants has no free VF".into(),
            ..Default::default()
        });
        let error = interfaces_xml(&failed).unwrap_err().to_string();
        assert!(error.contains("has no VF yet: Pool tenants"), "{error}");
    }

    #[test]
    fn a_vf_comes_with_its_mac_and_vlan() {
        let xml = only(&vf_port(42, false));
        for part in [
            "<interface type='hostdev' managed='yes'>",
            "<mac address='02:00:00:00:00:01'/>",
            "<address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>",
            "<tag id='42'/>",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
        assert!(!xml.contains("teaming"), "{xml}");
        assert!(!only(&vf_port(0, false)).contains("vlan"));
    }

    #[test]
    fn a_pair_has_one_mac_and_the_vf_names_its_standby() {
        let pair = interfaces_xml(&vf_port(42, true)).unwrap();
        let [stays, goes] = pair.as_slice() else {
            panic!("{pair:?}")
        };
        assert!(stays.contains("<teaming type='persistent'/>"), "{stays}");
        assert!(stays.contains("<alias name='ua-web'/>"), "{stays}");
        assert!(
            goes.contains("<teaming type='transient' persistent='ua-web'/>"),
            "{goes}"
        );
        for xml in &pair {
            assert!(xml.contains("<mac address='02:00:00:00:00:01'/>"), "{xml}");
        }
    }

    #[test]
    fn a_vf_that_is_no_pci_function_cannot_be_given_to_a_guest() {
        let mut simulated = vf_port(0, false);
        simulated.status.as_mut().unwrap().vf = "netdevsim/netdevsim1#0".into();
        let error = interfaces_xml(&simulated).unwrap_err().to_string();
        assert!(error.contains("\"netdevsim/netdevsim1#0\""), "{error}");
    }

    #[test]
    fn interfaces_are_found_by_type_and_mac() {
        let domain = "<domain>\n<interface type='vhostuser'>\n<mac address='02:00:00:00:00:0A'/></interface>\n\
                      <interface type='hostdev' managed='yes'><mac address='02:00:00:00:00:0b'/></interface></domain>";
        assert!(has_interface(domain, "vhostuser", "02:00:00:00:00:0a"));
        assert!(has_interface(domain, "hostdev", "02:00:00:00:00:0B"));
        assert!(!has_interface(domain, "hostdev", "02:00:00:00:00:0a"));
        assert!(!has_interface("<domain/>", "hostdev", "02:00:00:00:00:0a"));
    }
}
