//! What can be typed.

mod nic;
mod xvio;

pub use nic::{Allocate, Nic, Vf};
pub use xvio::{AddRelay, Xvio};

use crate::failure::EXIT_CODES;
use crate::output::Format;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;

/// Virtual networks for VMs, with their flows in the NIC, the kernel or a DPDK path.
#[derive(Parser, Debug)]
#[command(name = "ferrovia", version, after_help = format!("\
Examples:
  ferrovia network create blue --subnet 10.1.0.0/24 --subnet fd00:1::/64,slaac
  ferrovia vm attach web-1 --network blue
  ferrovia port list -o json
  ferrovia flow trace web-1-blue --dst 10.1.0.3

{EXIT_CODES}"), propagate_version = true, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(ClapArgs, Debug, Clone)]
pub struct Global {
    /// Controller's address; http:// is plain and meant for loopback.
    #[arg(long, global = true, env = "FERROVIA_CONTROLLER", value_name = "URL")]
    pub controller: Option<String>,
    /// Folder of this operator's certificate (see `ferrovia login`).
    #[arg(long, global = true, env = "FERROVIA_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// The agent's unix socket [default: <root>/run/ferrovia/agent.sock].
    #[arg(long, global = true, env = "FERROVIA_AGENT", value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
    /// Where /etc/ferrovia, /var/lib/ferrovia and /run/ferrovia are looked for.
    #[arg(long, global = true, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// How results are printed.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// The hidden verb behind which a VF is tested.
pub const VFIO_CHECK: &str = "vfio-check";

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Hosts that run an agent.
    #[command(subcommand)]
    Host(Host),
    /// Virtual networks.
    #[command(subcommand, visible_alias = "net")]
    Network(Network),
    /// Ports of virtual networks.
    #[command(subcommand)]
    Port(Port),
    /// Virtual machines of this host's libvirt.
    #[command(subcommand)]
    Vm(Vm),
    /// Flows of this host.
    #[command(subcommand)]
    Flow(Flow),
    /// Packet counters of this host: uplink and ports.
    #[command(after_help = "Example:\n  ferrovia counters --root /srv/h1")]
    Counters,
    /// Dropped packets of this host, by port and reason.
    #[command(after_help = "Example:\n  ferrovia drops -o json")]
    Drops,
    /// What this host's agent is doing, and which homes its flows can have.
    #[command(after_help = "Example:\n  ferrovia status")]
    Status,
    /// NICs of this machine, and how they are partitioned into VFs.
    #[command(subcommand)]
    Nic(Nic),
    /// VFs of this machine's NICs.
    #[command(subcommand)]
    Vf(Vf),
    /// Relays of this host: vhost-user sockets whose packets go to a VF or another device.
    #[command(subcommand)]
    Xvio(Xvio),
    /// The self-test of a VF, in a process that can be given up: a request on standard input, steps on standard
    /// output.
    #[command(hide = true, name = VFIO_CHECK)]
    VfioCheck,
    /// Join tokens for hosts and operators.
    #[command(subcommand)]
    Token(Token),
    /// Get an operator's certificate with a join token.
    #[command(
        after_help = "Example:\n  ferrovia login --controller https://ctl:6640 --token frv1.eyJz…"
    )]
    Login {
        /// The token, from `ferrovia-controller init` or `ferrovia token create --operator`.
        #[arg(long, env = "FERROVIA_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Shell completion, to be sourced by your shell.
    #[command(
        after_help = "Example:\n  ferrovia completion bash > /etc/bash_completion.d/ferrovia"
    )]
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand, Debug)]
pub enum Host {
    /// Every host with its state.
    #[command(after_help = "Example:\n  ferrovia host list")]
    List,
    /// One host.
    #[command(after_help = "Example:\n  ferrovia host show h1")]
    Show { host: String },
    /// Make a host known before its agent connects.
    #[command(after_help = "Example:\n  ferrovia host create h1 --vtep 192.0.2.1")]
    Create {
        name: String,
        /// Its VXLAN address; the agent reports it otherwise.
        #[arg(long)]
        vtep: Option<IpAddr>,
    },
    /// Change a host.
    #[command(after_help = "Example:\n  ferrovia host update h1 --vtep 192.0.2.9")]
    Update {
        host: String,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        vtep: Option<IpAddr>,
        #[command(flatten)]
        seen: Seen,
    },
    /// Forget a host that has no ports.
    #[command(after_help = "Example:\n  ferrovia host delete h1")]
    Delete {
        host: String,
        #[command(flatten)]
        seen: Seen,
    },
}

/// Optimistic concurrency.
#[derive(ClapArgs, Debug, Clone, Copy)]
pub struct Seen {
    /// Only if the object is still at this revision.
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub revision: u64,
}

#[derive(Subcommand, Debug)]
pub enum Network {
    /// Every network.
    #[command(after_help = "Example:\n  ferrovia network list")]
    List,
    /// One network.
    #[command(after_help = "Example:\n  ferrovia network show blue")]
    Show { network: String },
    /// Create a network.
    #[command(after_help = "Examples:
  ferrovia network create blue --subnet 10.1.0.0/24 --subnet fd00:1::/64,slaac --dns 10.1.0.53
  ferrovia network create red --subnet 10.1.0.0/24,gateway=10.1.0.254 --mtu 1400 --route 10.9.0.0/16=10.1.0.7
  ferrovia network create green --subnet 10.2.0.0/24 --vlan 42")]
    Create {
        name: String,
        /// Prefix, with `,gateway=ADDRESS` and `,slaac` (IPv6 guests form their own address).
        #[arg(long = "subnet", value_name = "CIDR[,…]")]
        subnets: Vec<String>,
        /// DNS server for guests.
        #[arg(long)]
        dns: Vec<IpAddr>,
        /// Static route for guests.
        #[arg(long = "route", value_name = "CIDR=NEXTHOP")]
        routes: Vec<String>,
        /// MTU of the guests' interfaces; 0: the largest that the underlay carries.
        #[arg(long, default_value_t = 0)]
        mtu: u32,
        /// VXLAN network identifier; 0: any free one.
        #[arg(long, default_value_t = 0)]
        vni: u32,
        /// Provider VLAN that VFs of the network's ports are put into; 0: none.
        #[arg(long, default_value_t = 0)]
        vlan: u32,
    },
    /// Change a network. Lists given replace the present ones.
    #[command(after_help = "Example:\n  ferrovia network update blue --mtu 1400")]
    Update {
        network: String,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        mtu: Option<u32>,
        #[arg(long = "subnet", value_name = "CIDR[,…]")]
        subnets: Option<Vec<String>>,
        #[arg(long)]
        dns: Option<Vec<IpAddr>>,
        #[arg(long = "route", value_name = "CIDR=NEXTHOP")]
        routes: Option<Vec<String>>,
        /// Provider VLAN of VFs; 0: none. Stays while a port has a VF.
        #[arg(long)]
        vlan: Option<u32>,
        #[command(flatten)]
        seen: Seen,
    },
    /// Delete a network that has no ports.
    #[command(after_help = "Example:\n  ferrovia network delete blue")]
    Delete {
        network: String,
        #[command(flatten)]
        seen: Seen,
    },
}

/// Who makes the vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketMode {
    /// The agent listens, QEMU connects. Whether QEMU connects again after the agent was away is up to
    /// libvirt: that of Debian 12 forgets `reconnect` for an interface that is plugged in live.
    AgentListens,
    /// QEMU listens, the agent connects, and connects again. The guest's boot waits for the agent.
    AgentConnects,
}

/// How a port's rings are made.
#[derive(ClapArgs, Debug, Clone, Copy)]
pub struct Rings {
    /// Queue pairs, 1 to 64.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub queue_pairs: u32,
    /// Descriptors a ring: a power of two, 64 to 32768.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub queue_size: u32,
    /// Who makes the vhost-user socket.
    #[arg(long, value_enum, default_value = "agent-connects")]
    pub socket_mode: SocketMode,
}

/// What a port's guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BindingKind {
    /// A virtio-net device; its packets go through the virtual router.
    Virtio,
    /// A virtio-net device whose packets go to a VF, or through the virtual router while there is none.
    Xvio,
    /// A VF of a NIC; its packets go through the NIC's own switch, in the network's VLAN.
    Sriov,
}

/// How a port is bound.
#[derive(ClapArgs, Debug, Clone)]
pub struct Bound {
    /// What the guest gets.
    #[arg(long, value_enum, default_value = "virtio")]
    pub binding: BindingKind,
    /// Pool that the VF is taken from [default: the agent's sriov_pool].
    #[arg(long)]
    pub pool: Option<String>,
    /// A virtio-net device beside the VF, with the same MAC: the guest's way while it has no VF.
    #[arg(long)]
    pub standby: bool,
}

#[derive(Subcommand, Debug)]
pub enum Port {
    /// Every port with its state.
    #[command(
        after_help = "Examples:\n  ferrovia port list --network blue\n  ferrovia port list --local"
    )]
    List {
        /// Only of this network.
        #[arg(long)]
        network: Option<String>,
        /// Only of this host.
        #[arg(long)]
        host: Option<String>,
        /// Ask this host's agent instead: what its data plane has, with counters.
        #[arg(long, conflicts_with_all = ["network", "host"])]
        local: bool,
    },
    /// One port.
    #[command(after_help = "Example:\n  ferrovia port show web-1-blue")]
    Show { port: String },
    /// Create a port.
    #[command(after_help = "Examples:
  ferrovia port create web-1 --network blue --host h1
  ferrovia port create web-1 --network blue --host h1 --binding sriov --wait")]
    Create {
        name: String,
        #[arg(long)]
        network: String,
        /// Host that serves it; may be given later by `port update`.
        #[arg(long)]
        host: Option<String>,
        #[arg(long)]
        mac: Option<String>,
        /// Address; one of each subnet is taken when none is given.
        #[arg(long = "address")]
        addresses: Vec<IpAddr>,
        #[command(flatten)]
        bound: Bound,
        #[command(flatten)]
        rings: Rings,
        /// Free text, such as vm/web-1.
        #[arg(long, default_value = "", hide_default_value = true)]
        owner: String,
        /// Return only when the agent says ready (or failed).
        #[arg(long, requires = "host")]
        wait: bool,
    },
    /// Rename a port, move it to another host, or change its owner.
    #[command(after_help = "Example:\n  ferrovia port update web-1 --host h2")]
    Update {
        port: String,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        host: Option<String>,
        #[arg(long)]
        owner: Option<String>,
        #[command(flatten)]
        seen: Seen,
    },
    /// Delete a port.
    #[command(after_help = "Example:\n  ferrovia port delete web-1")]
    Delete {
        port: String,
        #[command(flatten)]
        seen: Seen,
    },
    /// The libvirt interface for a port, to paste into a domain.
    #[command(
        after_help = "Example:\n  ferrovia port xml web-1 > nic.xml && virsh attach-device web-1 nic.xml --config"
    )]
    Xml { port: String },
}

#[derive(Subcommand, Debug)]
pub enum Vm {
    /// Create a port and attach it to a libvirt domain, now (if it runs) and for its next starts.
    #[command(after_help = "Examples:
  ferrovia vm attach web-1 --network blue
  ferrovia vm attach web-1 --network blue --queue-pairs 4 --name web-1-fast
  ferrovia vm attach web-1 --network blue --binding sriov
  ferrovia vm attach web-1 --network blue --binding sriov --standby --pool tenants")]
    Attach {
        /// Name or UUID of the domain.
        domain: String,
        #[arg(long)]
        network: String,
        /// The port's name [default: DOMAIN-NETWORK].
        #[arg(long)]
        name: Option<String>,
        /// Host of the controller that this machine is [default: ask the local agent].
        #[arg(long)]
        host: Option<String>,
        #[arg(long)]
        mac: Option<String>,
        #[arg(long = "address")]
        addresses: Vec<IpAddr>,
        #[command(flatten)]
        bound: Bound,
        #[command(flatten)]
        rings: Rings,
        #[command(flatten)]
        libvirt: Libvirt,
    },
    /// Detach a domain's ports of a network and delete them.
    #[command(
        after_help = "Examples:\n  ferrovia vm detach web-1 --network blue\n  ferrovia vm detach web-1 --all"
    )]
    Detach {
        domain: String,
        /// Only ports of this network.
        #[arg(long, required_unless_present_any = ["port", "all"])]
        network: Option<String>,
        /// Only this port.
        #[arg(long)]
        port: Option<String>,
        /// All ports that were attached by `vm attach`.
        #[arg(long, conflicts_with_all = ["network", "port"])]
        all: bool,
        /// Host of the controller that this machine is [default: ask the local agent].
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        libvirt: Libvirt,
    },
    /// Domains that have ports.
    #[command(after_help = "Example:\n  ferrovia vm list")]
    List,
}

/// Which libvirt.
#[derive(ClapArgs, Debug, Clone)]
pub struct Libvirt {
    /// libvirt's connection URI.
    #[arg(
        long,
        env = "LIBVIRT_DEFAULT_URI",
        default_value = "qemu:///system",
        value_name = "URI"
    )]
    pub connect: String,
}

#[derive(Subcommand, Debug)]
pub enum Flow {
    /// Flows with their home, packets and bytes.
    #[command(after_help = "Example:\n  ferrovia flow list --port web-1-blue")]
    List {
        #[arg(long)]
        port: Option<String>,
        /// Most flows to show.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// What would happen to a packet from a port, and why. Nothing is sent.
    #[command(after_help = "Examples:
  ferrovia flow trace web-1-blue --dst 10.1.0.3
  ferrovia flow trace web-1-blue --dst 10.1.0.3 --protocol tcp --dst-port 80 --src 10.9.9.9")]
    Trace {
        port: String,
        #[arg(long)]
        dst: IpAddr,
        /// Source [default: the port's own address].
        #[arg(long)]
        src: Option<IpAddr>,
        #[arg(long, default_value = "icmp", value_parser = ["icmp", "tcp", "udp"])]
        protocol: String,
        #[arg(long, default_value_t = 40000)]
        src_port: u16,
        #[arg(long, default_value_t = 80)]
        dst_port: u16,
    },
}

#[derive(Subcommand, Debug)]
pub enum Token {
    /// Make a join token. It works once.
    #[command(after_help = "Example:\n  ferrovia token create --host h1 > join-token")]
    Create {
        /// For this host's agent.
        #[arg(
            long,
            required_unless_present = "operator",
            conflicts_with = "operator"
        )]
        host: Option<String>,
        /// For a person or program that uses this command.
        #[arg(long)]
        operator: Option<String>,
        /// Seconds until it expires.
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        valid: u32,
    },
}
