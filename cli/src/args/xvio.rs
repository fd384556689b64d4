//! `ferrovia xvio`.

use super::SocketMode;
use clap::{ArgGroup, Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum Xvio {
    /// Relay a vhost-user socket to a VF or another device. The agent keeps it over its restarts.
    #[command(after_help = "\
The same relay again changes nothing. Where its socket cannot be made or its VF is not to be had,
nothing is added. The device runs only while a guest is connected.

Examples:
  ferrovia xvio add vm-1 --vf 0000:3b:02.1 --mac 52:54:00:12:34:56 --vlan 42 --queue-pairs 4
  ferrovia xvio add vm-2 --device net_tap0,iface=tap0 --mac 52:54:00:12:34:57
  ferrovia xvio add vm-3 --device net_af_xdp0,iface=eth1 --mac 52:54:00:12:34:58")]
    Add(Box<AddRelay>),
    /// Remove a relay that was added here, and give its VF back. One that is not there is no error.
    #[command(after_help = "Example:\n  ferrovia xvio remove vm-1")]
    Remove { name: String },
    /// Every relay of this host, and every port of binding xvio, with its state.
    #[command(after_help = "Examples:\n  ferrovia xvio list\n  ferrovia xvio list -o json")]
    List,
    /// One relay, with the counters of its device and queues.
    #[command(
        after_help = "Examples:\n  ferrovia xvio show vm-1\n  ferrovia xvio show vm-1 -o json"
    )]
    Show { name: String },
    /// Have a relay served by another worker, without loss, until the agent's restart.
    #[command(after_help = "\
`ferrovia status` shows the workers with their cores.

Example:
  ferrovia xvio move vm-1 --worker 1")]
    Move {
        name: String,
        /// The worker's number, from 0.
        #[arg(long, value_name = "N")]
        worker: u32,
    },
    /// Rates of relays and their queues, again and again until Ctrl-C.
    #[command(after_help = "Examples:
  ferrovia xvio top
  ferrovia xvio top vm-1 --interval 5
  ferrovia xvio top --count 1 -o json        one JSON array a line")]
    Top {
        /// Only this relay, with its queues.
        name: Option<String>,
        /// Seconds between two looks.
        #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = interval)]
        interval: f64,
        /// End after so many.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .ok_or_else(|| "write seconds from 0.1 to 3600".to_owned())
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("far").required(true).args(["vf", "device"])))]
pub struct AddRelay {
    /// Name of the relay: a-z, 0-9 and -, starting with a letter.
    pub name: String,
    /// PCI address of the VF that its packets go to.
    #[arg(long, value_name = "ADDRESS")]
    pub vf: Option<String>,
    /// DPDK's device string of a virtual device instead: net_tap, net_af_xdp or net_af_packet.
    #[arg(long, value_name = "STRING")]
    pub device: Option<String>,
    /// The guest's MAC; the PF sets it on the VF.
    #[arg(long)]
    pub mac: String,
    /// VLAN that the PF puts the VF's frames into.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub vlan: u32,
    /// The guest's MTU.
    #[arg(long, default_value_t = 1500)]
    pub mtu: u32,
    /// Queue pairs, 1 to 64.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub queue_pairs: u32,
    /// Descriptors a ring: a power of two, 64 to 32768.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub queue_size: u32,
    /// The vhost-user socket [default: /run/ferrovia/vhost/NAME.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Who makes it.
    #[arg(long, value_enum, default_value = "agent-listens")]
    pub socket_mode: SocketMode,
}
