//! Which targets run at the same time: emulated machines as memory and processors of this machine allow, hosts
//! all at once, and never two on one host.

use super::inventory::{Kind, TargetSpec};

/// What this machine has for emulated machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mb: u64,
    /// Targets at once, where the command line says.
    pub jobs: Option<usize>,
}

impl Room {
    /// What is free right now.
    pub fn here(jobs: Option<usize>) -> Room {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let free_kb = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Room {
            cpus,
            // A quarter stays for everything else.
            memory_mb: free_kb.map_or(2048, |kb| kb / 1024 * 3 / 4),
            jobs,
        }
    }

    /// Whether `next` may start beside those that run. One always may.
    pub fn fits(&self, running: &[&TargetSpec], next: &TargetSpec) -> bool {
        if running
            .iter()
            .any(|other| host(other).is_some() && host(other) == host(next))
        {
            return false;
        }
        if running.is_empty() {
            return true;
        }
        if let Some(jobs) = self.jobs {
            return running.len() < jobs;
        }
        let (cpus, memory) = weight(next);
        if cpus == 0 {
            return true;
        }
        let used = running
            .iter()
            .map(|spec| weight(spec))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        used.0 == 0 || (used.0 + cpus <= self.cpus && used.1 + memory <= self.memory_mb)
    }
}

/// Processors and MiB that a target takes of this machine.
fn weight(spec: &TargetSpec) -> (u32, u64) {
    match &spec.kind {
        Kind::Emulated(machine) => (machine.cpus, u64::from(machine.memory_mb)),
        Kind::Ssh(_) | Kind::Local(_) => (0, 0),
    }
}

/// The host that must not be used twice; none for machines of our own.
fn host(spec: &TargetSpec) -> Option<String> {
    match &spec.kind {
        Kind::Emulated(_) => None,
        Kind::Ssh(ssh) => Some(format!("{} {}", ssh.address, ssh.port)),
        Kind::Local(_) => Some("here".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::inventory::parse;
    use std::path::Path;

    #[test]
    fn memory_and_processors_decide_and_a_host_is_used_once() {
        let text = "
[[target]]
name = 'a'
kind = 'emulated'
flavour = 'igb'
cpus = 2
memory_mb = 1000
[[target]]
name = 'b'
kind = 'emulated'
flavour = 'netdevsim'
cpus = 2
memory_mb = 1000
[[target]]
name = 'c'
kind = 'ssh'
address = 'rack'
[[target]]
name = 'd'
kind = 'ssh'
address = 'rack'
";
        let inventory = parse(text, Path::new("x")).unwrap();
        let [a, b, c, d] = &inventory.targets[..] else {
            panic!()
        };
        let room = |cpus, memory_mb, jobs| Room {
            cpus,
            memory_mb,
            jobs,
        };
        assert!(room(1, 100, None).fits(&[], a), "one always may run");
        assert!(!room(2, 9000, None).fits(&[a], b));
        assert!(!room(4, 1500, None).fits(&[a], b));
        assert!(room(4, 2000, None).fits(&[a], b));
        assert!(room(1, 100, None).fits(&[a], c));
        assert!(room(1, 100, None).fits(&[c], a));
        assert!(!room(8, 9000, None).fits(&[c], d), "one host");
        assert!(!room(8, 9000, Some(1)).fits(&[a], b));
        assert!(room(1, 100, Some(2)).fits(&[a], b));
    }
}
