//! An agent of a test's own on the target, with the NIC policy that the test wants, and `ferrovia` talking to it.
//!
//! [`AgentThere::end`] puts the PF back and stops the agent. A test that fails before leaves that to the
//! lab's own clean-up.

use super::raw;
use crate::lab::Context;
use crate::lab::suite::{Stop, check, same};
use crate::lab::target::{Done, Spawned};
use serde::Deserialize;
use std::time::Duration;

/// How long an agent may take until it answers, in software emulation.
const UP: Duration = Duration::from_secs(90);
/// How long it may take to end.
const DOWN: Duration = Duration::from_secs(30);

/// The agent.
pub(super) struct AgentThere<'a> {
    lab: &'a Context,
    root: String,
    process: Spawned,
}

/// A VF that was handed out.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Given {
    /// PF and number.
    pub(super) vf: String,
    /// PCI address.
    pub(super) address: String,
    /// Its MAC.
    pub(super) mac: String,
}

impl Given {
    /// Its number on its PF.
    pub(super) fn index(&self) -> &str {
        self.vf.rsplit_once('#').map_or("", |(_, index)| index)
    }
}

/// A policy that makes so many VFs of a PF, for the pool of its own name.
pub(super) fn policy(name: &str, pf: &str, vfs: u32) -> String {
    format!(
        "[[nic.policy]]\nname = \"{name}\"\nselect = {{ address = [\"{pf}\"] }}\nnum_vfs = {vfs}\npool = \"{name}\"\n"
    )
}

impl<'a> AgentThere<'a> {
    /// Starts one whose policy makes `vfs` VFs of the target's first PF, for the pool `tests`, and applies it.
    pub(super) fn with_vfs(lab: &'a Context, vfs: u32) -> Result<AgentThere<'a>, Stop> {
        let pf = lab.pf()?;
        let policy = policy("tests", &pf.address, vfs);
        // VFs have a link while their PF is up.
        lab.ok(&["ip", "link", "set", &pf.interface, "up"])?;
        let agent = AgentThere::start(lab, &policy)?;
        agent.ferrovia(&["nic", "apply"])?;
        Ok(agent)
    }

    /// Starts one with `policies` in its file; what disturbs nobody is applied by the agent itself.
    pub(super) fn start(lab: &'a Context, policies: &str) -> Result<AgentThere<'a>, Stop> {
        let root = AgentThere::write_file(lab, policies)?;
        let process = AgentThere::spawn(lab, &root)?;
        let agent = AgentThere { lab, root, process };
        agent.answers()?;
        Ok(agent)
    }

    fn spawn(lab: &'a Context, root: &str) -> Result<Spawned, Stop> {
        lab.spawn("agent", &["ferrovia-agent", "--root", root, "run"])
    }

    /// Starts one that kills itself with SIGKILL after so many records of its SR-IOV journal. It need not live
    /// until it answers.
    pub(super) fn doomed(
        lab: &'a Context,
        policies: &str,
        records: u32,
    ) -> Result<AgentThere<'a>, Stop> {
        let root = AgentThere::write_file(lab, policies)?;
        let crash = format!("FERROVIA_CRASH_AT={records}");
        let line = ["env", &crash, "ferrovia-agent", "--root", &root, "run"];
        let process = lab.spawn("doomed", &line)?;
        Ok(AgentThere { lab, root, process })
    }

    /// Waits until one that was [doomed](AgentThere::doomed) has died of it.
    pub(super) fn died(&self) -> Result<(), Stop> {
        let code = self.process.wait(UP)?;
        same("the exit code of the agent that kills itself", code, 137)
    }

    /// Waits until it answers.
    pub(super) fn answers(&self) -> Result<(), Stop> {
        let (lab, root, process) = (self.lab, &self.root, &self.process);
        lab.wait_for("The agent's answer", UP, || {
            if process.code()?.is_some() {
                return Err(Stop::fail(format!("The agent ended: {}", process.log()?)));
            }
            // Only what needs the manager says whether it is open.
            let asked = lab.exec(&["ferrovia", "--root", root, "nic", "plan"])?;
            Ok(asked.ok().then_some(()))
        })
    }

    /// Its socket.
    pub(super) fn socket(&self) -> String {
        format!("{}/run/ferrovia/agent.sock", self.root)
    }

    fn write_file(lab: &Context, policies: &str) -> Result<String, Stop> {
        let root = format!("{}/agent", lab.scratch());
        let file = format!("{root}/etc/ferrovia/agent.toml");
        let text = format!(
            "host = \"lab\"\n[dataplane]\nworkers = 1\nmemory_mb = 128\nhugepages = \"never\"\n{policies}"
        );
        lab.ok(&["mkdir", "-p", &format!("{root}/etc/ferrovia")])?;
        let done = lab.write(&file, &text)?;
        if !done.ok() {
            let why = done.said();
            return Err(Stop::fail(format!(
                "The agent's file cannot be written: {why}"
            )));
        }
        Ok(root)
    }

    /// `ferrovia` with these arguments, which must succeed.
    pub(super) fn ferrovia(&self, arguments: &[&str]) -> Result<String, Stop> {
        self.lab.ok(&self.line(arguments))
    }

    /// `ferrovia` with these arguments, which must be refused; what it says.
    pub(super) fn refused(&self, arguments: &[&str]) -> Result<String, Stop> {
        self.lab.refused(&self.line(arguments))
    }

    /// `ferrovia` with these arguments, however it ends.
    pub(super) fn tried(&self, arguments: &[&str]) -> Result<Done, Stop> {
        self.lab.exec(&self.line(arguments))
    }

    fn line<'b>(&'b self, arguments: &[&'b str]) -> Vec<&'b str> {
        [&["ferrovia", "--root", &self.root], arguments].concat()
    }

    /// Replaces the policies of the API; `json` is a list of them. Those of the file stay.
    pub(super) fn set_policies(&self, json: &str) -> Result<(), Stop> {
        let file = format!("{}/policies.json", self.lab.scratch());
        let done = self.lab.write(&file, json)?;
        check(
            done.ok(),
            format!("The policies cannot be written: {}", done.said()),
        )?;
        self.ferrovia(&["nic", "policies", "--set", &file])?;
        Ok(())
    }

    /// Wants another number of VFs of a PF than the file says.
    pub(super) fn want(&self, pf: &str, vfs: u32) -> Result<(), Stop> {
        self.set_policies(&format!(
            r#"[{{"name": "other", "priority": 1, "select": {{"address": ["{pf}"]}}, "num_vfs": {vfs}}}]"#
        ))
    }

    /// Wants VFs of a PF with what has to be gone after a release: trust, no spoof check, and a rate, which the
    /// kernel's `igb` takes while the link is up.
    pub(super) fn want_unsafe(&self, pf: &str) -> Result<(), Stop> {
        let defaults = r#"{"trust": true, "spoofchk": false, "max_rate": 500}"#;
        self.set_policies(&format!(
            r#"[{{"name": "all", "priority": 1, "select": {{"address": ["{pf}"]}}, "defaults": {defaults}}}]"#
        ))
    }

    /// What it wrote so far.
    pub(super) fn log(&self) -> Result<String, Stop> {
        Ok(self.process.log()?)
    }

    /// Where its files are.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// kill -9.
    pub(super) fn kill(&self) -> Result<(), Stop> {
        Ok(self.process.kill()?)
    }

    /// Starts it anew with the files it had.
    pub(super) fn start_again(&mut self) -> Result<(), Stop> {
        self.process = AgentThere::spawn(self.lab, &self.root)?;
        self.answers()
    }

    /// Hands out a VF of the pool `tests`.
    pub(super) fn allocate(&self, owner: &str, more: &[&str]) -> Result<Given, Stop> {
        let asked = [
            &["-o", "json", "vf", "allocate", owner, "--pool", "tests"],
            more,
        ];
        let printed = self.ferrovia(&asked.concat())?;
        serde_json::from_str(&printed).map_err(|error| {
            Stop::fail(format!(
                "`ferrovia vf allocate -o json` printed {printed}: {error}"
            ))
        })
    }

    /// Takes it back.
    pub(super) fn release(&self, owner: &str) -> Result<(), Stop> {
        self.ferrovia(&["vf", "release", owner])?;
        Ok(())
    }

    /// Puts the PF back to how it was, and ends the agent.
    pub(super) fn end(self) -> Result<(), Stop> {
        let pf = self.lab.pf()?;
        self.ferrovia(&["nic", "reset", &pf.address])?;
        self.stop()
    }

    /// Ends the agent; PFs stay as they are, but down.
    pub(super) fn stop(self) -> Result<(), Stop> {
        self.process.signal("TERM")?;
        self.process.wait(DOWN)?;
        for pf in self.lab.facts().pfs() {
            let interface = raw::interface(self.lab, pf)?;
            self.lab.ok(&["ip", "link", "set", &interface, "down"])?;
        }
        Ok(())
    }
}
