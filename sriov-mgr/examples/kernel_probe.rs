//! Every operation of the real kernel, on the NIC of the emulated machine:
//!
//! ```sh
//! cargo build -p sriov-mgr --bin sriov-helper --example kernel_probe
//! cargo xtask lab run -- $PWD/target/debug/examples/kernel_probe igb $PWD/target/debug/sriov-helper
//! cargo xtask lab run --flavour netdevsim -- $PWD/target/debug/examples/kernel_probe netdevsim …
//! ```
//!
//! It changes the first PF that it finds and must not be run on a host in use. It ends with an error at the
//! first thing that is not as it should be.

use sriov_mgr::helper::HelperCommand;
use sriov_mgr::kernel::real::RealKernel;
use sriov_mgr::kernel::{
    EswitchMode, Kernel, KernelError, Rate, VfChange, VfLinkState, Vlan, VlanProtocol,
};
use sriov_mgr::{Device, PciAddress};
use std::fs;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

type Checked = Result<(), String>;

/// Fails with what was found.
macro_rules! must {
    ($holds:expr, $($found:tt)*) => {
        if !$holds {
            return Err(format!("line {}: {}: {}", line!(), stringify!($holds), format!($($found)*)));
        }
    };
}

struct Probe {
    kernel: RealKernel,
    helper: String,
    pf: Device,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [flavour, helper] = words.as_slice() else {
        eprintln!("kernel_probe igb|netdevsim|wedge HELPER");
        return ExitCode::FAILURE;
    };
    let result = run(flavour, helper);
    match result {
        Ok(()) => {
            println!("all as it should be");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("kernel_probe: {why}");
            ExitCode::FAILURE
        }
    }
}

fn kernel(helper: &str, deadline: Duration) -> RealKernel {
    let command = HelperCommand {
        program: helper.into(),
        args: Vec::new(),
    };
    RealKernel::new(command, deadline)
}

fn run(flavour: &str, helper: &str) -> Checked {
    let long = Duration::from_secs(60);
    if flavour == "netdevsim"
        && !fs::exists("/sys/bus/netdevsim/devices/netdevsim1").unwrap_or(false)
    {
        fs::write("/sys/bus/netdevsim/new_device", "1 1 1")
            .map_err(|e| format!("new_device: {e}"))?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let found = kernel(helper, long).pfs().map_err(|e| e.to_string())?;
    println!("PFs: {found:?}");
    let of_bus = |pf: &&Device| (flavour == "netdevsim") == pf.pci().is_none();
    let pf = found.iter().find(of_bus).ok_or("no such PF here")?.clone();
    let probe = Probe {
        kernel: kernel(helper, long),
        helper: helper.to_owned(),
        pf,
    };
    match flavour {
        "igb" => {
            probe.counts(libc_errno::ERANGE)?;
            probe.igb_settings()?;
            probe.drivers()?;
            probe.holders()?;
            probe.pf_changes()
        }
        "netdevsim" => {
            probe.counts(libc_errno::ENOMEM)?;
            probe.all_settings()?;
            probe.switchdev()?;
            probe.many_vfs()?;
            probe.pf_changes()
        }
        "wedge" => probe.wedge(),
        other => Err(format!("no flavour {other}")),
    }
}

/// The error numbers that the probe expects (errno.h).
mod libc_errno {
    pub const EINVAL: i32 = 22;
    pub const EBUSY: i32 = 16;
    pub const ENOMEM: i32 = 12;
    pub const ERANGE: i32 = 34;
    pub const EPROTONOSUPPORT: i32 = 93;
    pub const EOPNOTSUPP: i32 = 95;
}
use libc_errno::*;

fn text<T>(result: Result<T, KernelError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn refused_with(errno: i32, result: Result<(), KernelError>) -> Checked {
    match result {
        Err(error) if error.errno() == Some(errno) => {
            println!("  refused as it should be: {error}");
            Ok(())
        }
        other => Err(format!("errno {errno} was due: {other:?}")),
    }
}

impl Probe {
    fn counts(&self, too_many: i32) -> Checked {
        println!("counts");
        let (kernel, pf) = (&self.kernel, &self.pf);
        text(kernel.set_num_vfs(pf, 0))?;
        let state = text(kernel.pf(pf))?;
        println!("  {state:?}");
        must!(
            state.total_vfs >= 4 && state.num_vfs == 0 && state.interface.is_some(),
            "{state:?}"
        );
        refused_with(too_many, kernel.set_num_vfs(pf, state.total_vfs + 1))?;
        text(kernel.set_autoprobe(pf, false))?;
        text(kernel.set_num_vfs(pf, 2))?;
        let vfs = text(kernel.vfs(pf))?;
        must!(vfs.len() == 2, "{vfs:?}");
        must!(
            vfs.iter()
                .all(|vf| vf.address.is_some() == pf.pci().is_some()),
            "{vfs:?}"
        );
        must!(
            pf.pci().is_none() || vfs.iter().all(|vf| vf.driver.is_none()),
            "{vfs:?}"
        );
        refused_with(EBUSY, kernel.set_num_vfs(pf, 3))?;
        must!(kernel.vf(pf, 2).is_err(), "VF 2 of 2");
        text(kernel.set_num_vfs(pf, 0))?;
        must!(text(kernel.vfs(pf))?.is_empty(), "VFs left");
        text(kernel.set_autoprobe(pf, true))?;
        text(kernel.set_num_vfs(pf, 3))
    }

    fn igb_settings(&self) -> Checked {
        println!("settings of igb");
        let (kernel, pf) = (&self.kernel, &self.pf);
        let set = |change: VfChange| kernel.set_vf(pf, 1, &change);
        let mac = [0x02, 0, 0, 0, 0, 0x42];
        let vlan = Vlan {
            id: 42,
            qos: 3,
            protocol: VlanProtocol::Dot1q,
        };
        text(set(VfChange {
            mac: Some(mac),
            vlan: Some(vlan),
            ..VfChange::default()
        }))?;
        text(set(VfChange {
            spoofchk: Some(true),
            trust: Some(true),
            ..VfChange::default()
        }))?;
        let settings = text(kernel.vf(pf, 1))?.settings;
        println!("  {settings:?}");
        must!(
            settings.mac == Some(mac) && settings.vlan == vlan,
            "{settings:?}"
        );
        must!(
            settings.spoofchk == Some(true) && settings.trust == Some(true),
            "{settings:?}"
        );
        let ad = Vlan {
            protocol: VlanProtocol::Dot1ad,
            ..vlan
        };
        refused_with(
            EPROTONOSUPPORT,
            set(VfChange {
                vlan: Some(ad),
                ..VfChange::default()
            }),
        )?;
        let rate = Rate { min: 10, max: 100 };
        refused_with(
            EINVAL,
            set(VfChange {
                rate: Some(rate),
                ..VfChange::default()
            }),
        )?;
        let link = Some(VfLinkState::Enable);
        refused_with(
            EOPNOTSUPP,
            set(VfChange {
                link_state: link,
                ..VfChange::default()
            }),
        )?;
        refused_with(EOPNOTSUPP, kernel.set_eswitch(pf, EswitchMode::Switchdev))?;
        let none = Vlan::default();
        text(set(VfChange {
            vlan: Some(none),
            trust: Some(false),
            ..VfChange::default()
        }))?;
        let settings = text(kernel.vf(pf, 1))?.settings;
        must!(
            settings.vlan == none && settings.trust == Some(false),
            "{settings:?}"
        );
        refused_with(
            EINVAL,
            kernel.set_vf(
                pf,
                99,
                &VfChange {
                    mac: Some(mac),
                    ..VfChange::default()
                },
            ),
        )
    }

    fn all_settings(&self) -> Checked {
        println!("settings of netdevsim");
        let (kernel, pf) = (&self.kernel, &self.pf);
        let change = VfChange {
            mac: Some([2, 0, 0, 0, 0, 0x43]),
            vlan: Some(Vlan {
                id: 7,
                qos: 2,
                protocol: VlanProtocol::Dot1ad,
            }),
            rate: Some(Rate { min: 10, max: 100 }),
            spoofchk: Some(true),
            trust: Some(true),
            link_state: Some(VfLinkState::Disable),
        };
        text(kernel.set_vf(pf, 2, &change))?;
        let settings = text(kernel.vf(pf, 2))?.settings;
        println!("  {settings:?}");
        must!(
            settings.mac == change.mac && Some(settings.vlan) == change.vlan,
            "{settings:?}"
        );
        must!(
            Some(settings.rate) == change.rate && settings.spoofchk == change.spoofchk,
            "{settings:?}"
        );
        must!(
            settings.trust == change.trust && settings.link_state == change.link_state,
            "{settings:?}"
        );
        Ok(())
    }

    fn switchdev(&self) -> Checked {
        println!("switchdev");
        let (kernel, pf) = (&self.kernel, &self.pf);
        text(kernel.set_eswitch(pf, EswitchMode::Switchdev))?;
        let state = text(kernel.pf(pf))?;
        must!(state.eswitch == Some(EswitchMode::Switchdev), "{state:?}");
        must!(state.interface.is_some(), "{state:?}");
        let vfs = text(kernel.vfs(pf))?;
        println!(
            "  representors: {:?}",
            vfs.iter().map(|vf| &vf.representor).collect::<Vec<_>>()
        );
        must!(vfs.iter().all(|vf| vf.representor.is_some()), "{vfs:?}");
        must!(
            vfs.iter().all(|vf| vf.representor != state.interface),
            "{vfs:?}"
        );
        let rate = Rate { min: 20, max: 200 };
        text(kernel.set_vf(
            pf,
            0,
            &VfChange {
                rate: Some(rate),
                ..VfChange::default()
            },
        ))?;
        let read = text(kernel.vf(pf, 0))?.settings.rate;
        must!(read == rate, "{read:?}");
        text(kernel.set_eswitch(pf, EswitchMode::Legacy))?;
        must!(
            text(kernel.pf(pf))?.eswitch == Some(EswitchMode::Legacy),
            "legacy"
        );
        let vfs = text(kernel.vfs(pf))?;
        must!(vfs.iter().all(|vf| vf.representor.is_none()), "{vfs:?}");
        Ok(())
    }

    fn many_vfs(&self) -> Checked {
        let (kernel, pf) = (&self.kernel, &self.pf);
        text(kernel.set_num_vfs(pf, 0))?;
        let limit = format!("/sys/kernel/debug/netdevsim/{}/max_vfs", pf.name());
        fs::write(&limit, "1024").map_err(|e| format!("{limit}: {e}"))?;
        for count in [16, 256, 333, 334, 1024] {
            text(kernel.set_num_vfs(pf, count))?;
            let mac = |index: u32| Some([2, 0, 0, 1, (index >> 8) as u8, index as u8]);
            for index in [0, count / 2, count - 1] {
                text(kernel.set_vf(
                    pf,
                    index,
                    &VfChange {
                        mac: mac(index),
                        ..VfChange::default()
                    },
                ))?;
            }
            let began = Instant::now();
            let vfs = text(kernel.vfs(pf))?;
            println!("  {count} VFs listed in {:?}", began.elapsed());
            must!(vfs.len() == count as usize, "{} VFs", vfs.len());
            for index in [0, count / 2, count - 1] {
                let found = vfs[index as usize].settings.mac;
                must!(found == mac(index), "VF {index} of {count}: {found:?}");
            }
            text(kernel.set_num_vfs(pf, 0))?;
        }
        Ok(())
    }

    fn address(&self, index: u32) -> Result<PciAddress, String> {
        text(self.kernel.vf(&self.pf, index))?
            .address
            .ok_or_else(|| format!("VF {index} has no address"))
    }

    fn driver(&self, index: u32) -> Result<Option<String>, String> {
        Ok(text(self.kernel.vf(&self.pf, index))?.driver)
    }

    fn bind(&self, index: u32, driver: Option<&str>) -> Checked {
        let vf = self.address(index)?;
        text(self.kernel.unbind(vf))?;
        text(self.kernel.set_driver_override(vf, driver))?;
        text(self.kernel.probe(vf))
    }

    fn drivers(&self) -> Checked {
        println!("drivers");
        let vf = self.address(0)?;
        let own = self.driver(0)?;
        println!(
            "  own driver: {own:?}, group {:?}",
            text(self.kernel.vf(&self.pf, 0))?.iommu_group
        );
        text(self.kernel.unbind(vf))?;
        must!(self.driver(0)?.is_none(), "still bound");
        text(self.kernel.unbind(vf))?;
        text(self.kernel.reset(vf))?;
        text(self.kernel.set_driver_override(vf, Some("vfio-pci")))?;
        let state = text(self.kernel.vf(&self.pf, 0))?;
        must!(
            state.driver_override.as_deref() == Some("vfio-pci"),
            "{state:?}"
        );
        text(self.kernel.probe(vf))?;
        must!(
            self.driver(0)?.as_deref() == Some("vfio-pci"),
            "{:?}",
            self.driver(0)?
        );
        self.bind(0, None)?;
        let state = text(self.kernel.vf(&self.pf, 0))?;
        must!(
            state.driver == own && state.driver_override.is_none(),
            "{state:?}"
        );
        let nowhere: PciAddress = "0000:7f:1f.7".parse().map_err(|_| "address")?;
        must!(
            matches!(self.kernel.unbind(nowhere), Err(KernelError::Gone { .. })),
            "unbind of nothing"
        );
        must!(
            matches!(self.kernel.probe(nowhere), Err(KernelError::Gone { .. })),
            "probe of nothing"
        );
        Ok(())
    }

    fn interface(&self, index: u32) -> Result<String, String> {
        let began = Instant::now();
        loop {
            if let Some(name) = text(self.kernel.vf(&self.pf, index))?.interface {
                return Ok(name);
            }
            if began.elapsed() > Duration::from_secs(20) {
                return Err(format!("VF {index} has no interface"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn holders(&self) -> Checked {
        println!("holders");
        let name = self.interface(1)?;
        ip(&["link", "set", &name, "down"])?;
        let holders = || text(self.kernel.holders(&self.pf, 1));
        must!(holders()?.is_empty(), "{:?}", holders()?);
        text(self.kernel.set_up(&self.pf, true))?;
        ip(&["link", "set", &name, "up"])?;
        println!("  {:?}", holders()?);
        must!(
            holders()?.len() == 1 && holders()?[0].contains(&name),
            "{:?}",
            holders()?
        );
        ip(&["link", "set", &name, "down"])?;
        ip(&["netns", "add", "fvblue"])?;
        ip(&["link", "set", &name, "netns", "fvblue"])?;
        println!("  {:?}", holders()?);
        must!(
            holders()? == [format!("interface {name} in network namespace fvblue")],
            "{:?}",
            holders()?
        );
        must!(
            text(self.kernel.vf(&self.pf, 1))?.interface.is_none(),
            "it is elsewhere"
        );
        ip(&["-n", "fvblue", "link", "set", &name, "netns", "1"])?;
        ip(&["netns", "del", "fvblue"])?;
        self.bind(1, Some("vfio-pci"))?;
        let mut holder = self.hold(1)?;
        println!("  {:?}", holders()?);
        must!(
            holders()?.len() == 1 && holders()?[0].contains("pid"),
            "{:?}",
            holders()?
        );
        end(&mut holder);
        must!(holders()?.is_empty(), "{:?}", holders()?);
        Ok(())
    }

    fn pf_changes(&self) -> Checked {
        println!("the PF itself");
        let (kernel, pf) = (&self.kernel, &self.pf);
        for (up, mtu) in [(false, 1400), (true, 1500)] {
            text(kernel.set_mtu(pf, mtu))?;
            text(kernel.set_up(pf, up))?;
            let state = text(kernel.pf(pf))?;
            must!(state.up == up && state.mtu == Some(mtu), "{state:?}");
        }
        refused_with(EINVAL, kernel.set_mtu(pf, 10))?;
        text(kernel.set_num_vfs(pf, 0))?;
        must!(kernel.wedged(pf).is_none(), "{:?}", kernel.wedged(pf));
        Ok(())
    }

    /// A process that has the VF open through VFIO, as a virtual machine has.
    fn hold(&self, index: u32) -> Result<Child, String> {
        let state = text(self.kernel.vf(&self.pf, index))?;
        let group = state.iommu_group.ok_or("no IOMMU group")?;
        let address = state.address.ok_or("no address")?;
        let program = format!(
            "import fcntl,os,struct,time\n\
             c=os.open('/dev/vfio/vfio',os.O_RDWR)\n\
             g=os.open('/dev/vfio/{group}',os.O_RDWR)\n\
             fcntl.ioctl(g,0x3b68,struct.pack('i',c))\n\
             fcntl.ioctl(c,0x3b66,1)\n\
             d=fcntl.ioctl(g,0x3b6a,b'{address}\\0')\n\
             open('/tmp/held','w').write(str(d))\n\
             time.sleep(1000)\n"
        );
        let _from_before = fs::remove_file("/tmp/held");
        let mut child = Command::new("python3")
            .args(["-c", &program])
            .spawn()
            .map_err(|e| e.to_string())?;
        let began = Instant::now();
        while !fs::exists("/tmp/held").unwrap_or(false) {
            if began.elapsed() > Duration::from_secs(30) || !matches!(child.try_wait(), Ok(None)) {
                end(&mut child);
                return Err("the VF could not be opened through VFIO".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(child)
    }

    /// R1: numvfs=0 while somebody has a VF open.
    fn wedge(&self) -> Checked {
        let pf = &self.pf;
        text(self.kernel.set_num_vfs(pf, 0))?;
        text(self.kernel.set_num_vfs(pf, 2))?;
        self.bind(1, Some("vfio-pci"))?;
        let mut holder = self.hold(1)?;
        let done = self.wedge_while_held();
        end(&mut holder);
        done?;
        let short = &self.kernel;
        let began = Instant::now();
        while let Some(why) = short.wedged(pf) {
            must!(began.elapsed() < Duration::from_secs(60), "still {why}");
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("  free again {:?} after the holder ended", began.elapsed());
        let state = text(short.pf(pf))?;
        must!(state.num_vfs == 0, "{state:?}");
        text(short.set_num_vfs(pf, 2))?;
        text(short.set_num_vfs(pf, 0))
    }

    fn wedge_while_held(&self) -> Checked {
        let pf = &self.pf;
        println!("  held by {:?}", text(self.kernel.holders(pf, 1))?);
        let agent = kernel(&self.helper, Duration::from_secs(3));
        let began = Instant::now();
        let error = agent.set_num_vfs(pf, 0).unwrap_err();
        println!("  after {:?}: {error}", began.elapsed());
        must!(matches!(error, KernelError::Wedged { .. }), "{error}");
        must!(agent.wedged(pf).is_some(), "not fenced");
        let began = Instant::now();
        let error = agent.set_mtu(pf, 1400).unwrap_err();
        must!(matches!(error, KernelError::Wedged { .. }), "{error}");
        must!(
            began.elapsed() < Duration::from_secs(1),
            "a fenced PF refuses at once: {:?}",
            began.elapsed()
        );
        let state = text(agent.pf(pf))?;
        println!("  meanwhile: {state:?}");
        for other in text(agent.pfs())?.iter().filter(|other| *other != pf) {
            text(agent.pf(other))?;
            text(agent.set_mtu(other, 1400))?;
            println!("  {other} works");
        }
        // Another agent, after this one was killed.
        let next = kernel(&self.helper, Duration::from_secs(3));
        println!("  the next agent: {:?}", next.wedged(pf));
        must!(next.wedged(pf).is_some(), "the lock is not seen");
        let error = next.set_mtu(pf, 1400).unwrap_err();
        println!("  the next agent: {error}");
        must!(matches!(error, KernelError::Wedged { .. }), "{error}");
        Ok(())
    }
}

fn end(child: &mut Child) {
    let _gone_is_fine = child.kill();
    let _reaped = child.wait();
}

fn ip(words: &[&str]) -> Checked {
    let status = Command::new("ip")
        .args(words)
        .status()
        .map_err(|e| e.to_string())?;
    must!(status.success(), "ip {}", words.join(" "));
    Ok(())
}
