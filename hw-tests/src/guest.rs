//! A virtual machine: defined in libvirt, started, driven through its console, gone when dropped.

use crate::accel::Accel;
use crate::console::{Console, Output};
use crate::image::Image;
use crate::libvirt::{self, virsh};
use crate::run::Run;
use crate::{cleanup, command, process};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// How long a guest may take to boot. Emulated on a busy machine it is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// MiB of memory.
    pub memory_mb: u32,
    /// Virtual processors.
    pub cpus: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            memory_mb: 160,
            cpus: 1,
        }
    }
}

/// A guest. Commands in it run one after the other.
#[derive(Debug)]
pub struct Guest {
    name: String,
    domain: String,
    kernel_log: PathBuf,
    socket: PathBuf,
    console: Mutex<Option<Console>>,
    _undo: cleanup::Guard,
}

impl Guest {
    /// Defines a domain `<run>-<name>` without any network interface, shut off.
    pub fn define(
        run: &Run,
        name: &str,
        image: &Image,
        accel: &Accel,
        shape: &Shape,
    ) -> Result<Guest> {
        let _making = cleanup::making();
        let dir = run.subdir("guests")?;
        if let Some((user, group)) = libvirt::qemu_account() {
            nix::unistd::chown(&dir, Some(user.into()), Some(group.into()))
                .context("The folder of the guests could not be given to QEMU's account")?;
        }
        let domain = run.named(name);
        let kernel_log = dir.join(format!("{name}.kernel"));
        let socket = dir.join(format!("{name}.sock"));
        let xml = domain_xml(&domain, name, image, accel, shape, &kernel_log, &socket);
        let file = dir.join(format!("{name}.xml"));
        fs::write(&file, xml)?;
        let gone = domain.clone();
        let undo = cleanup::on_exit(move || libvirt::remove_domain(&gone));
        virsh(&["define", &file.to_string_lossy()])
            .with_context(|| format!("libvirt refuses the domain \"{domain}\""))?;
        Ok(Guest {
            name: name.into(),
            domain,
            kernel_log,
            socket,
            console: Mutex::new(None),
            _undo: undo,
        })
    }

    /// Starts it, without waiting for it to boot.
    pub fn start(&self) -> Result<()> {
        let mut console = self.lock();
        *console = None;
        virsh(&["start", &self.domain])
            .with_context(|| format!("The guest \"{}\" could not be started", self.name))?;
        *console = Some(Console::connect(&self.socket)?);
        Ok(())
    }

    /// Waits until its shell answers. Once for each start.
    pub fn wait_until_up(&self) -> Result<()> {
        let mut console = self.lock();
        let console = console
            .as_mut()
            .with_context(|| format!("The guest \"{}\" was not started", self.name))?;
        console.wait_until_ready(BOOT_LIMIT).with_context(|| {
            format!(
                "The guest \"{}\" did not boot; its kernel said:\n{}",
                self.name,
                self.kernel_tail()
            )
        })
    }

    /// Switches it off, as pulling the plug would.
    pub fn stop(&self) -> Result<()> {
        *self.lock() = None;
        virsh(&["destroy", &self.domain]).map(drop)
    }

    /// Its name in the test, such as `blue-a`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name in libvirt.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Runs a shell command in the guest.
    pub fn run_for(&self, command: &str, limit: Duration) -> Result<Output> {
        let mut console = self.lock();
        let console = console
            .as_mut()
            .with_context(|| format!("The guest \"{}\" is not up", self.name))?;
        console
            .run(command, limit)
            .with_context(|| format!("In the guest \"{}\"{}", self.name, self.qemu_words()))
    }

    /// [`run_for`](Self::run_for) with 30 seconds.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_for(command, Duration::from_secs(30))
    }

    /// Runs a command that must succeed, and returns what it wrote.
    pub fn expect(&self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        if !output.ok() {
            bail!(
                "\"{command}\" in the guest \"{}\" ended with {output}",
                self.name
            );
        }
        Ok(output.text)
    }

    /// Starts a command in the background; its output goes to a file in the guest.
    pub fn spawn(&self, command: &str, file: &str) -> Result<()> {
        // In a session of its own: the time limit of the foreground command does not reach it.
        let quoted = command.replace('\'', r"'\''");
        self.expect(&format!(
            "setsid sh -c '{quoted}' >{file} 2>&1 </dev/null &"
        ))
        .map(drop)
    }

    /// Waits for the interface `eth0` (it may just be plugged in) and returns its MAC address.
    pub fn wait_for_nic(&self) -> Result<String> {
        command::wait_for(
            &format!("an interface in the guest \"{}\"", self.name),
            Duration::from_secs(30),
            || {
                Ok(self
                    .expect("cat /sys/class/net/eth0/address")?
                    .trim()
                    .to_owned())
            },
        )
    }

    /// Gets an address by DHCP, and returns the lease as `name=value` lines.
    pub fn dhcp(&self) -> Result<Lease> {
        self.expect("ip link set eth0 up")?;
        let command = "udhcpc -i eth0 -f -n -q -t 8 -T 2 -s /etc/lease -O mtu -O staticroutes -O hostname -O dns";
        let output = self.run_for(command, Duration::from_secs(40))?;
        if !output.ok() {
            bail!("The guest \"{}\" got no lease: {output}", self.name);
        }
        Ok(Lease(self.expect("cat /tmp/lease.eth0")?))
    }

    /// The global IPv6 addresses of `eth0`, once there is one that is not tentative any more.
    pub fn ipv6_addresses(&self) -> Result<Vec<String>> {
        command::wait_for(
            &format!("an IPv6 address in the guest \"{}\"", self.name),
            Duration::from_secs(30),
            || {
                let text = self.expect("ip -6 addr show dev eth0 scope global")?;
                let ready: Vec<String> = text
                    .lines()
                    .map(str::trim)
                    .filter(|l| l.starts_with("inet6") && !l.contains("tentative"))
                    .filter_map(|l| {
                        l.split_whitespace()
                            .nth(1)?
                            .split('/')
                            .next()
                            .map(str::to_owned)
                    })
                    .collect();
                if ready.is_empty() {
                    bail!("\"ip addr\" shows none: {}", text.trim())
                } else {
                    Ok(ready)
                }
            },
        )
    }

    /// Pings `count` times; true when an answer came to each.
    pub fn ping(&self, address: &str, count: u32) -> Result<bool> {
        let output = self.run_for(
            &ping_command(address, count, 56),
            Duration::from_secs(u64::from(count) + 10),
        )?;
        Ok(output.ok() && output.text.contains(" 0% packet loss"))
    }

    /// What QEMU said last, when it is not running any more.
    fn qemu_words(&self) -> String {
        if virsh(&["domstate", &self.domain]).is_ok_and(|state| state.trim() == "running") {
            return String::new();
        }
        let log = process::tail(
            std::path::Path::new(&format!("/var/log/libvirt/qemu/{}.log", self.domain)),
            4,
        );
        format!(", which is not running any more; QEMU said: {}", log.trim())
    }

    /// The last lines of its kernel's console.
    pub fn kernel_tail(&self) -> String {
        process::tail(&self.kernel_log, 15)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Console>> {
        self.console
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// busybox's ping in the family of `address`.
pub fn ping_command(address: &str, count: u32, size: u32) -> String {
    let family = if address.contains(':') {
        "ping -6"
    } else {
        "ping -4"
    };
    format!("{family} -c {count} -W 3 -s {size} {address}")
}

/// A DHCP lease as the client saw it.
#[derive(Clone, Debug)]
pub struct Lease(String);

impl Lease {
    /// A field: `ip`, `mask`, `router`, `mtu`, `dns`, `staticroutes`, `serverid`, `hostname`. Empty when not sent.
    pub fn field(&self, name: &str) -> &str {
        self.0
            .lines()
            .filter_map(|l| l.split_once('='))
            .find(|(n, _)| *n == name)
            .map_or("", |(_, v)| v.trim())
    }
}

fn domain_xml(
    domain: &str,
    name: &str,
    image: &Image,
    accel: &Accel,
    shape: &Shape,
    kernel_log: &std::path::Path,
    socket: &std::path::Path,
) -> String {
    let cpu = match accel {
        Accel::Kvm => "<cpu mode='host-passthrough'/>",
        Accel::Software(_) => "",
    };
    // Root ports with nothing in them: interfaces are plugged in while the guest runs.
    let ports: String = (1..=4)
        .map(|i| format!("<controller type='pci' index='{i}' model='pcie-root-port'/>"))
        .collect();
    format!(
        "<domain type='{kind}'>
  <name>{domain}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{cpus}</vcpu>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on fv.name={name}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    {ports}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{kernel_log}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{socket}'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
        kind = accel.domain_type(),
        memory = shape.memory_mb,
        cpus = shape.cpus,
        kernel = image.kernel.display(),
        initrd = image.initrd.display(),
        kernel_log = kernel_log.display(),
        socket = socket.display(),
    )
}
