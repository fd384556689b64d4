//! What a target is: kernel, NICs with driver and firmware, and what it can do. Read once, by one script, when
//! the target answers; every report carries it.

use super::inventory::{Flavour, Kind, Platform, TargetSpec};
use serde::{Deserialize, Serialize};

/// Programs that this machine, and so an emulated one, has after `cargo xtask deps`.
const EXPECTED: [&str; 6] = [
    "ferrovia",
    "ferrovia-agent",
    "ferrovia-controller",
    "dpdk-testpmd",
    "devlink",
    "ethtool",
];

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether its NICs are hardware.
    pub platform: Platform,
    /// Its own host name.
    pub host: String,
    /// Kernel release and architecture.
    pub kernel: String,
    /// The distribution's name for itself.
    pub os: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mb: u64,
    /// How it is emulated; empty for hosts.
    pub machine: String,
    /// Commands run as root.
    pub root: bool,
    /// IOMMU groups; 0: the IOMMU is off.
    pub iommu_groups: u32,
    /// vfio-pci is there or can be loaded.
    pub vfio: bool,
    /// netdevsim is there or can be loaded.
    pub netdevsim: bool,
    /// A NIC has an eswitch mode, or netdevsim is there.
    pub switchdev: bool,
    /// Programs of ours and of the tests that are installed.
    pub programs: Vec<String>,
    /// NICs that tests may use.
    pub nics: Vec<Nic>,
}

/// A PCI NIC of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// PCI address, such as `0000:3b:00.0`.
    pub address: String,
    /// Vendor and device number, such as `8086:10c9`.
    pub id: String,
    /// What they are called.
    pub model: String,
    /// Driver; empty when none is bound.
    pub driver: String,
    /// The driver's version as ethtool says it.
    pub driver_version: String,
    /// Firmware as ethtool says it.
    pub firmware: String,
    /// First network interface; empty when there is none.
    pub interface: String,
    /// VFs it can have; 0 without SR-IOV.
    pub total_vfs: u32,
    /// IOMMU group when the target was reached.
    pub iommu_group: Option<u32>,
}

impl Nic {
    /// Its folder in sysfs.
    pub fn sysfs(&self) -> String {
        format!("/sys/bus/pci/devices/{}", self.address)
    }
}

impl Facts {
    /// NICs with SR-IOV.
    pub fn pfs(&self) -> impl Iterator<Item = &Nic> {
        self.nics.iter().filter(|nic| nic.total_vfs > 0)
    }

    /// What a machine of ours will have, before it is booted; `None` for hosts.
    pub fn expected(spec: &TargetSpec) -> Option<Facts> {
        let Kind::Emulated(machine) = &spec.kind else {
            return None;
        };
        let pfs = match machine.flavour {
            Flavour::Igb { pfs } => pfs,
            Flavour::Netdevsim => 0,
        };
        let pf = Nic {
            driver: "igb".into(),
            total_vfs: 7,
            ..Nic::default()
        };
        Some(Facts {
            platform: spec.platform.unwrap_or_default(),
            root: true,
            iommu_groups: 1,
            vfio: true,
            netdevsim: true,
            switchdev: true,
            programs: EXPECTED.map(str::to_owned).to_vec(),
            nics: vec![pf; usize::from(pfs)],
            ..Facts::default()
        })
    }

    /// Reads what [`SCRIPT`] printed. `only`: the NICs that tests may use; `None`: all but VFs.
    ///
    /// # Errors
    /// When `only` names a NIC that is not there; the sentence lists those that are.
    pub fn read(
        printed: &str,
        platform: Option<Platform>,
        machine: &str,
        only: Option<&[String]>,
    ) -> Result<Facts, String> {
        let lines: Vec<Vec<&str>> = printed.lines().map(|l| l.split('\t').collect()).collect();
        let value = |key: &str| {
            lines
                .iter()
                .find(|l| l[0] == key)
                .and_then(|l| l.get(1))
                .map(|v| v.trim().to_owned())
                .unwrap_or_default()
        };
        let number = |key: &str| value(key).parse::<u64>().unwrap_or(0);
        let all: Vec<Nic> = lines
            .iter()
            .filter(|l| l[0] == "nic")
            .map(|l| nic(l))
            .collect();
        let nics = match only {
            None => all,
            Some(only) => chosen(all, only)?,
        };
        let netdevsim = value("netdevsim") == "yes";
        let guessed = if value("hypervisor") == "yes" {
            Platform::Emulated
        } else {
            Platform::Physical
        };
        Ok(Facts {
            platform: platform.unwrap_or(guessed),
            host: value("host"),
            kernel: value("kernel"),
            os: value("os"),
            cpus: number("cpus") as u32,
            memory_mb: number("memory_kb") / 1024,
            machine: machine.to_owned(),
            root: value("uid") == "0",
            iommu_groups: number("iommu_groups") as u32,
            vfio: value("vfio") == "yes",
            netdevsim,
            switchdev: netdevsim || has_eswitch(&value("eswitch"), &nics),
            programs: value("programs")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            nics,
        })
    }
}

fn has_eswitch(listed: &str, nics: &[Nic]) -> bool {
    listed
        .split_whitespace()
        .any(|address| nics.iter().any(|nic| nic.address == address))
}

fn chosen(all: Vec<Nic>, only: &[String]) -> Result<Vec<Nic>, String> {
    let mut nics = Vec::new();
    for address in only {
        match all.iter().find(|nic| nic.address == *address) {
            Some(nic) => nics.push(nic.clone()),
            None => {
                let there: Vec<&str> = all.iter().map(|nic| nic.address.as_str()).collect();
                let there = if there.is_empty() {
                    "it has no PCI NIC".to_owned()
                } else {
                    format!("it has {}", there.join(", "))
                };
                return Err(format!(
                    "The NIC {address} of the inventory is not on the target; {there}"
                ));
            }
        }
    }
    Ok(nics)
}

fn nic(fields: &[&str]) -> Nic {
    let field = |at: usize| fields.get(at).map(|f| f.trim()).unwrap_or_default();
    let hex = |at: usize| u16::from_str_radix(field(at).trim_start_matches("0x"), 16).unwrap_or(0);
    let (vendor, device) = (hex(2), hex(3));
    let model = pci_ids::Device::from_vid_pid(vendor, device)
        .map(|known| format!("{} {}", known.vendor().name(), known.name()));
    let id = format!("{vendor:04x}:{device:04x}");
    Nic {
        address: field(1).to_owned(),
        model: model.unwrap_or_else(|| format!("unknown NIC {id}")),
        id,
        driver: field(4).to_owned(),
        total_vfs: field(5).parse().unwrap_or(0),
        iommu_group: field(6).parse().ok(),
        interface: field(7).to_owned(),
        driver_version: field(8).to_owned(),
        firmware: field(9).to_owned(),
    }
}

/// Prints the facts, a line each, fields apart by tabs. Changes nothing.
pub const SCRIPT: &str = r#"
say() { printf '%s\t%s\n' "$1" "$2"; }
can() { if [ -e "$2" ] || modprobe -nq "$1" 2>/dev/null; then say "$3" yes; fi; }
say host "$(uname -n)"
say kernel "$(uname -r) $(uname -m)"
say os "$(. /etc/os-release 2>/dev/null; printf %s "$PRETTY_NAME")"
say uid "$(id -u)"
say cpus "$(nproc)"
say memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
if grep -qw hypervisor /proc/cpuinfo; then say hypervisor yes; fi
say iommu_groups "$(ls /sys/kernel/iommu_groups 2>/dev/null | wc -l)"
can vfio-pci /sys/bus/pci/drivers/vfio-pci vfio
can netdevsim /sys/bus/netdevsim netdevsim
say eswitch "$(for p in $(devlink dev 2>/dev/null); do
  case $p in pci/*) devlink dev eswitch show $p >/dev/null 2>&1 && printf '%s ' "${p#pci/}";; esac; done)"
say programs "$(for p in ferrovia ferrovia-agent ferrovia-controller dpdk-testpmd devlink ethtool tcpdump ping; do
  command -v $p >/dev/null && printf '%s ' $p; done)"
link() { l=$(readlink "$1") && printf %s "${l##*/}"; }
for d in /sys/bus/pci/devices/*; do
  [ -e "$d/class" ] && [ ! -e "$d/physfn" ] || continue
  case $(cat "$d/class") in 0x02*) ;; *) continue;; esac
  i=$(ls "$d/net" "$d"/virtio*/net 2>/dev/null | grep -v : | head -n 1)
  v=; f=
  if [ -n "$i" ]; then
    e=$(ethtool -i "$i" 2>/dev/null)
    v=$(printf '%s\n' "$e" | sed -n 's/^version: //p'); f=$(printf '%s\n' "$e" | sed -n 's/^firmware-version: //p')
  fi
  printf 'nic\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "${d##*/}" "$(cat $d/vendor)" "$(cat $d/device)" \
    "$(link $d/driver)" "$(cat $d/sriov_totalvfs 2>/dev/null)" "$(link $d/iommu_group)" "$i" "$v" "$f"
done
exit 0
"#;

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "host\tigb\nkernel\t6.12.0 x86_64\nuid\t0\ncpus\t2\nmemory_kb\t1572864\nhypervisor\tyes\n\
        iommu_groups\t3\nvfio\tyes\n\
        nic\t0000:01:00.0\t0x8086\t0x10c9\tigb\t7\t2\tenp1s0\t6.12.0\t1.4, 0x1\n\
        nic\t0000:00:02.0\t0x1af4\t0x1041\tvirtio-pci\t\t\teth0\t\t\n";

    #[test]
    fn facts_are_read() {
        let facts = Facts::read(PRINTED, None, "QEMU", None).unwrap();
        assert_eq!(facts.platform, Platform::Emulated);
        assert!(facts.root && facts.vfio && !facts.netdevsim && !facts.switchdev);
        assert_eq!((facts.memory_mb, facts.iommu_groups), (1536, 3));
        let pf = facts.pfs().next().unwrap();
        assert_eq!((pf.total_vfs, pf.firmware.as_str()), (7, "1.4, 0x1"));
        assert!(pf.model.contains("82576"), "{}", pf.model);
        assert_eq!(facts.pfs().count(), 1);
    }

    #[test]
    fn a_nic_that_is_not_there_is_named_with_those_that_are() {
        let only = ["0000:3b:00.0".to_owned()];
        let error = Facts::read(PRINTED, None, "", Some(&only)).unwrap_err();
        assert!(
            error.contains("0000:3b:00.0") && error.contains("0000:01:00.0, 0000:00:02.0"),
            "{error}"
        );
    }

    #[test]
    fn noise_is_no_fact() {
        let facts = Facts::read(
            "\n\t\nnic\nnic\t\t\t\nwelcome to \u{1b}[31mthis host\n",
            None,
            "",
            Some(&[]),
        )
        .unwrap();
        assert!(facts.nics.is_empty() && !facts.root);
    }
}
