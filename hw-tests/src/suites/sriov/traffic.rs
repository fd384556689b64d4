//! VFs that `ferrovia` handed out carry traffic through the NIC's own switch, driven by DPDK on vfio-pci; VLANs
//! keep apart; the next owner finds nothing of the last.

use super::agent_there::{AgentThere, Given};
use super::raw;
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, check, same};
use std::collections::HashMap;
use std::time::Duration;

/// Our own driver program.
const DRIVER: &str = "ferrovia-vf-traffic";
/// Packets of one trial. More than a ring holds.
const PACKETS: u64 = 1000;
/// What testpmd sends with `start tx_first 4`: bursts of 32.
const TESTPMD_PACKETS: u64 = 128;

/// What the driver program printed.
struct Counted(HashMap<String, String>);

impl Counted {
    fn of(printed: &str) -> Counted {
        let lines = printed.lines().filter_map(|line| line.split_once(' '));
        Counted(
            lines
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    fn number(&self, name: &str) -> Result<u64, Stop> {
        let value = self.0.get(name).and_then(|value| value.parse().ok());
        value.ok_or_else(|| Stop::fail(format!("{DRIVER} did not print \"{name}\"")))
    }
}

fn send(lab: &Context, from: &Given, to: &Given) -> Result<u64, Stop> {
    let packets = PACKETS.to_string();
    let printed = lab.ok(&[DRIVER, "send", &from.address, &to.address, &packets])?;
    let counted = Counted::of(&printed);
    same(
        "the number of packets sent",
        counted.number("sent")?,
        PACKETS,
    )?;
    same("the number of wrong packets", counted.number("wrong")?, 0)?;
    same(
        "the number of foreign packets",
        counted.number("others")?,
        0,
    )?;
    counted.number("received")
}

/// Two VFs on vfio-pci with these VLANs.
fn pair(agent: &AgentThere<'_>, vlans: [&str; 2]) -> Result<[Given; 2], Stop> {
    let one = |owner, vlan| agent.allocate(owner, &["--driver", "vfio", "--vlan", vlan]);
    Ok([one("cli/sender", vlans[0])?, one("cli/receiver", vlans[1])?])
}

fn release(agent: &AgentThere<'_>) -> Outcome {
    agent.release("cli/sender")?;
    agent.release("cli/receiver")
}

pub(super) fn between_two_vfs(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 2)?;
    let [from, to] = pair(&agent, ["0", "0"])?;
    same(
        "the number of packets received",
        send(lab, &from, &to)?,
        PACKETS,
    )?;
    same(
        "the number of packets the other way",
        send(lab, &to, &from)?,
        PACKETS,
    )?;
    release(&agent)?;
    agent.end()
}

pub(super) fn vlans_keep_apart(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 2)?;
    for (vlans, received) in [(["10", "10"], PACKETS), (["10", "20"], 0), (["10", "0"], 0)] {
        let [from, to] = pair(&agent, vlans)?;
        let what = format!(
            "the number of packets from VLAN {} to VLAN {}",
            vlans[0], vlans[1]
        );
        same(&what, send(lab, &from, &to)?, received)?;
        release(&agent)?;
    }
    agent.end()
}

pub(super) fn testpmd(lab: &Context) -> Outcome {
    let agent = AgentThere::with_vfs(lab, 2)?;
    let [from, to] = pair(&agent, ["0", "0"])?;
    let script = TESTPMD
        .replace("@dir@", lab.scratch())
        .replace("@from@", &from.address)
        .replace("@to@", &to.address)
        .replace("@mac@", &to.mac);
    let printed = lab.shell_ok(&script)?;
    let received: Option<u64> = printed
        .trim()
        .lines()
        .last()
        .and_then(|n| n.trim().parse().ok());
    same(
        "the number of packets that testpmd received",
        received,
        Some(TESTPMD_PACKETS),
    )?;
    release(&agent)?;
    agent.end()
}

/// Two testpmd, one that sends and one that receives, each with a pipe to type into. Prints what arrived.
const TESTPMD: &str = r#"
cd @dir@
run() {
  mkfifo $1.in
  stdbuf -oL dpdk-testpmd -l 0,1 --file-prefix=$1 --no-huge -m 64 --iova-mode=va -a $2 -- -i --total-num-mbufs=4096 --no-lsc-interrupt $3 <$1.in >$1.log 2>&1 &
}
until_said() { n=0; until grep -q "$2" $1.log; do n=$((n+1)); [ $n -lt 300 ] || { cat $1.log >&2; exit 1; }; sleep 0.2; done; }
run to @to@; exec 9>to.in
run from @from@ --eth-peer=0,@mac@; exec 8>from.in
until_said to 'testpmd>'; until_said from 'testpmd>'
printf 'set fwd rxonly\nstart\n' >&9
printf 'set fwd rxonly\n' >&8
until_said to 'packets/burst'
sleep 1
echo 'start tx_first 4' >&8
until_said from 'packets/burst'
sleep 3
echo stop >&9
until_said to 'Accumulated forward'
echo quit >&8; echo quit >&9
wait
sed -n '/Accumulated/,$ s/.*RX-total: *\([0-9]*\).*/\1/p' to.log | head -n 1
"#;

/// The last owner's process is killed with full rings; what was set is gone, the queues are off, and the next
/// owner, who has another MAC, gets nothing of what was meant for the last.
pub(super) fn clean_after_release(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    let agent = AgentThere::with_vfs(lab, 2)?;
    agent.want_unsafe(&pf.address)?;
    let last = agent.allocate(
        "cli/last",
        &[
            "--driver",
            "vfio",
            "--vlan",
            "42",
            "--mac",
            "02:00:00:00:00:42",
        ],
    )?;
    let holder = lab.spawn("holder", &[DRIVER, "hold", &last.address])?;
    lab.wait_for(
        "The start of the last owner",
        Duration::from_secs(60),
        || Ok(holder.log()?.contains("holding").then_some(())),
    )?;
    let had = raw::vf(lab, pf, last.index())?;
    check(had.trust(), "The VF is not trusted")?;
    same("the VLAN", had.vlan(), 42)?;
    same("the rate", had.max_rate(), 500)?;
    let in_use = agent.refused(&["vf", "release", "cli/last"])?;
    check(
        in_use.contains(DRIVER) || in_use.contains(&holder.pid().to_string()),
        format!("The refusal to release a VF in use does not name its user: {in_use}"),
    )?;
    holder.kill()?;
    agent.release("cli/last")?;
    raw::vf(lab, pf, last.index())?.is_neutral()?;
    let queues = raw::Registers::of(lab, &last.address)?.queues_on()?;
    same("the number of queues that are on", queues, 0)?;
    let vf = last.vf.as_str();
    let next = agent.allocate("cli/next", &["--driver", "vfio", "--vf", vf])?;
    same(
        "the VF of the next owner",
        next.address.as_str(),
        &last.address,
    )?;
    let printed = lab.ok(&[DRIVER, "listen", &next.address, "3"])?;
    let counted = Counted::of(&printed);
    same(
        "the number of packets nobody sent",
        counted.number("others")?,
        0,
    )?;
    agent.release("cli/next")?;
    agent.end()
}
