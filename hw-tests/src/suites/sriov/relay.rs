//! Guests on virtio rings whose packets the agent carries to and from a VF each.

use super::agent_there::{AgentThere, policy};
use super::raw::{self, MENDS};
use crate::lab::Context;
use crate::lab::suite::{Outcome, Stop, same};

const BURSTS: u64 = 4;

/// DPDK's virtio driver on a port of the agent, typed into through a file.
struct Guest<'a> {
    lab: &'a Context,
    /// Its files without their endings.
    files: String,
}

impl<'a> Guest<'a> {
    /// On the port `name`, as 10.0.0.`own`.
    fn start(
        lab: &'a Context,
        agent: &AgentThere<'_>,
        name: &str,
        own: u8,
        peer: u8,
    ) -> Result<Guest<'a>, Stop> {
        let files = format!("{}/guest-{name}", lab.scratch());
        let script = format!(
            ": > {files}.in; tail -n +1 -f {files}.in | stdbuf -oL dpdk-testpmd -l 0,1 --file-prefix={name} --no-huge \
             --no-shconf --no-telemetry --no-pci -m 64 \
             --vdev net_virtio_user0,path={}/run/ferrovia/vhost/{name}.sock,mac={} -- -i --no-mlockall \
             --total-num-mbufs=2048 --nb-cores=1 --forward-mode=rxonly --eth-peer=0,{} \
             --tx-ip=10.0.0.{own},10.0.0.{peer} > {files}.log 2>&1",
            agent.root(),
            mac(own),
            mac(peer)
        );
        lab.spawn(&format!("guest-{name}"), &["sh", "-c", &script])?;
        let guest = Guest { lab, files };
        lab.wait_for("The guest's prompt", MENDS, || {
            let log = lab.exec(&["cat", &format!("{}.log", guest.files)])?;
            Ok(log.stdout.contains("testpmd>").then_some(()))
        })?;
        guest.types("start")?;
        Ok(guest)
    }

    fn types(&self, line: &str) -> Outcome {
        let done = self
            .lab
            .shell_ok(&format!("echo '{line}' >> {}.in", self.files));
        done.map(drop)
    }

    /// How many packets it has received.
    fn received(&self) -> Result<u64, Stop> {
        let asked = format!(
            "n=$(wc -l < {0}.log); echo 'show port stats 0' >> {0}.in\n\
             for time in $(seq 100); do sleep 0.2\n\
             r=$(tail -n +$n {0}.log | sed -n 's/.*RX-packets: *\\([0-9]*\\).*/\\1/p' | tail -n 1)\n\
             [ -z \"$r\" ] || {{ echo $r; exit 0; }}; done; cat {0}.log >&2; exit 1",
            self.files
        );
        let printed = self.lab.shell_ok(&asked)?;
        printed
            .trim()
            .parse()
            .map_err(|_| Stop::fail(format!("testpmd has received \"{printed}\"")))
    }

    /// All that it sends arrives at the other.
    fn reaches(&self, other: &Guest<'_>, how: &str) -> Outcome {
        let wanted = other.received()? + BURSTS * 32;
        self.types("stop")?;
        self.types(&format!("start tx_first {BURSTS}"))?;
        let arrived = self
            .lab
            .wait_for(&format!("What was sent {how}"), MENDS, || {
                let now = other.received()?;
                Ok((now >= wanted).then_some(now))
            })?;
        same(&format!("the number of packets {how}"), arrived, wanted)
    }
}

fn mac(last: u8) -> String {
    format!("02:00:00:00:01:{last:02x}")
}

fn port(name: &str, last: u8) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nnetwork = \"blue\"\nbinding = \"xvio\"\npool = \"tests\"\nmac = \"{}\"\n\
         addresses = [\"10.0.0.{last}\"]\n",
        mac(last)
    )
}

/// Both ports' relays are in a state.
fn are(lab: &Context, agent: &AgentThere<'_>, state: &str) -> Outcome {
    lab.wait_for(&format!("That both relays are {state}"), MENDS, || {
        let listed = agent.ferrovia(&["-o", "json", "xvio", "list"])?;
        let listed: serde_json::Value = serde_json::from_str(&listed).map_err(|error| {
            Stop::fail(format!("`xvio list -o json` printed {listed}: {error}"))
        })?;
        let relays = listed.as_array().cloned().unwrap_or_default();
        let all = relays.len() == 2 && relays.iter().all(|relay| relay["state"] == state);
        Ok(all.then_some(()))
    })
}

/// Two guests, each relayed to a VF of its own, reach each other through the NIC's switch. Their VFs are taken away:
/// the router carries their packets. They are there again: so is the NIC's switch. The guests see none of it.
pub(super) fn over_two_vfs(lab: &Context) -> Outcome {
    let pf = lab.pf()?;
    lab.ok(&["ip", "link", "set", &pf.interface, "up"])?;
    let network =
        "[[network]]\nname = \"blue\"\nvni = 100\nsubnets = [{ cidr = \"10.0.0.0/24\" }]\n";
    let file = policy("tests", &pf.address, 2) + network + &port("a", 10) + &port("b", 11);
    let agent = AgentThere::start(lab, &file)?;
    agent.ferrovia(&["nic", "apply"])?;
    are(lab, &agent, "waiting-for-guest")?;
    let a = Guest::start(lab, &agent, "a", 10, 11)?;
    let b = Guest::start(lab, &agent, "b", 11, 10)?;
    are(lab, &agent, "relaying")?;
    a.reaches(&b, "through the NIC's switch")?;
    b.reaches(&a, "through the NIC's switch, the other way")?;

    agent.want(&pf.address, 0)?;
    agent.ferrovia(&["nic", "apply", "--force"])?;
    raw::links_become(lab, pf, 0)?;
    are(lab, &agent, "software-path")?;
    a.reaches(&b, "without VFs")?;
    b.reaches(&a, "without VFs, the other way")?;

    agent.want(&pf.address, 2)?;
    agent.ferrovia(&["nic", "apply"])?;
    are(lab, &agent, "relaying")?;
    a.reaches(&b, "through the NIC's switch again")?;
    b.reaches(&a, "through the NIC's switch again, the other way")?;

    for guest in [&a, &b] {
        guest.types("stop")?;
        guest.types("quit")?;
    }
    are(lab, &agent, "waiting-for-guest")?;
    agent.want(&pf.address, 0)?;
    agent.ferrovia(&["nic", "apply", "--force"])?;
    agent.end()
}
