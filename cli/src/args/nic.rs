//! `ferrovia nic` and `ferrovia vf`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum Nic {
    /// Every PCI network function: PFs, VFs and NICs without SR-IOV. With an agent, who made the VFs and how
    /// each PF is.
    #[command(after_help = "Examples:\n  ferrovia nic list\n  ferrovia nic list -o json")]
    List,
    /// One NIC, by PCI address or interface.
    #[command(
        after_help = "Examples:\n  ferrovia nic show 0000:3b:00.0\n  ferrovia nic show enp59s0f0 -o json"
    )]
    Show { nic: String },
    /// What `nic apply` would do, and whom it would disturb. Nothing is changed.
    #[command(after_help = "Example:\n  ferrovia nic plan")]
    Plan,
    /// Make the NICs as the policies want them. What would disturb somebody is not done without --force.
    #[command(after_help = "Examples:\n  ferrovia nic apply\n  ferrovia nic apply --force")]
    Apply {
        /// Also take VFs away from who uses them.
        #[arg(long)]
        force: bool,
    },
    /// Put a PF back to how it was before it was partitioned, and give it up.
    #[command(after_help = "Examples:
  ferrovia nic reset enp59s0f0
  ferrovia nic reset 0000:3b:00.0 --force")]
    Reset {
        nic: String,
        /// Also take VFs away from who uses them.
        #[arg(long)]
        force: bool,
    },
    /// Show what happens to NICs, until Ctrl-C.
    #[command(after_help = "Examples:
  ferrovia nic watch
  ferrovia nic watch -o json         one JSON object a line")]
    Watch,
    /// Take over a PF whose VFs somebody else made. Nothing is changed on it.
    #[command(after_help = "Example:\n  ferrovia nic adopt enp59s0f0")]
    Adopt { nic: String },
    /// Give a PF up and leave it as it is.
    #[command(after_help = "Example:\n  ferrovia nic disown enp59s0f0")]
    Disown { nic: String },
    /// Policies of agent.toml and of the API; or replace those of the API.
    #[command(after_help = "Examples:
  ferrovia nic policies
  ferrovia nic policies -o json > policies.json
  ferrovia nic policies --set policies.json && ferrovia nic plan")]
    Policies {
        /// A file as `-o json` prints it, or - for standard input. Policies of agent.toml in it are passed over.
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
    },
}

#[derive(Subcommand, Debug)]
pub enum Vf {
    /// Every VF. With an agent, its settings, its pool and who has it.
    #[command(after_help = "Examples:
  ferrovia vf list
  ferrovia vf list --nic enp59s0f0
  ferrovia vf list --pool tenants -o json")]
    List {
        /// Only of this PF.
        #[arg(long)]
        nic: Option<String>,
        /// Only of this pool.
        #[arg(long)]
        pool: Option<String>,
    },
    /// One VF, by PCI address or by PF and number.
    #[command(after_help = "Examples:
  ferrovia vf show 0000:3b:02.1
  ferrovia vf show enp59s0f0#1")]
    Show { vf: String },
    /// Whether a VF can be given to a VM, and why not. One that is bound to vfio-pci and free is tried: DMA,
    /// reset, interrupt.
    #[command(after_help = "Examples:
  ferrovia vf check 0000:3b:02.1
  ferrovia vf check enp59s0f0#1 --force unsafe-interrupts")]
    Check {
        vf: String,
        /// A danger to accept, by its name.
        #[arg(long, value_name = "DANGER")]
        force: Vec<String>,
    },
    /// Take a VF for yourself: a container, DPDK, a VM that `vm attach` does not know.
    #[command(after_help = "Examples:
  ferrovia vf allocate cli/testpmd --driver vfio
  ferrovia vf allocate cli/probe --vf enp59s0f0#2 --vlan 42 --mac 02:00:00:00:00:07")]
    Allocate(Allocate),
    /// Give a VF back. It is clean when this returns.
    #[command(after_help = "Examples:
  ferrovia vf release cli/testpmd
  ferrovia vf release 0000:3b:02.1 --force")]
    Release {
        /// Its owner, or the VF.
        owner: String,
        /// Also while somebody has it open.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args, Debug)]
pub struct Allocate {
    /// cli/NAME or vm/DOMAIN. The same owner gets the same VF again.
    pub owner: String,
    /// Pool to take it from [default: any].
    #[arg(long)]
    pub pool: Option<String>,
    /// This VF and no other.
    #[arg(long)]
    pub vf: Option<String>,
    /// MAC [default: made from the owner's name].
    #[arg(long)]
    pub mac: Option<String>,
    /// VLAN; 0: none, whatever the policy says.
    #[arg(long)]
    pub vlan: Option<u32>,
    /// Driver to hand it out with [default: the policy's].
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
    /// NUMA node to be near to.
    #[arg(long, value_name = "NODE")]
    pub numa_node: Option<u32>,
    /// PF to stay away from, if there is another.
    #[arg(long = "avoid", value_name = "NIC")]
    pub avoid: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// The one that the kernel has for it.
    Kernel,
    /// vfio-pci, for a VM or DPDK.
    Vfio,
}

impl Driver {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Kernel => "kernel",
            Driver::Vfio => "vfio",
        }
    }
}
