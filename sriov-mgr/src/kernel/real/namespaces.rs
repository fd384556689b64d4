//! Interfaces in other network namespaces: where a VF went whose driver is bound and whose interface is not
//! here.

use super::links::{self, LinkInfo};
use nix::sched::{CloneFlags, setns};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// An interface of another network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere {
    /// The namespace's name (`ip netns`), or a process that is in it.
    pub(crate) namespace: String,
    pub(crate) link: LinkInfo,
}

/// Every interface of every network namespace but ours that has a name or a process. Namespaces that we may
/// not enter are passed over.
pub(crate) fn interfaces(root: &Path) -> Vec<Elsewhere> {
    let mut found = Vec::new();
    for (name, file) in namespaces(root) {
        for link in links_in(file).unwrap_or_default() {
            let namespace = name.clone();
            found.push(Elsewhere { namespace, link });
        }
    }
    found
}

/// Each other namespace once: the named ones first, whose names are better than a process.
fn namespaces(root: &Path) -> Vec<(String, File)> {
    let identity = |file: &Path| fs::metadata(file).ok().map(|m| (m.dev(), m.ino()));
    let own = identity(&root.join("proc/thread-self/ns/net"))
        .or_else(|| identity(&root.join("proc/self/ns/net")));
    let mut seen: HashSet<(u64, u64)> = own.into_iter().collect();
    let mut found = Vec::new();
    for (name, file) in named(root).into_iter().chain(of_processes(root)) {
        if let Some(id) = identity(&file)
            && seen.insert(id)
            && let Ok(open) = File::open(&file)
        {
            found.push((name, open));
        }
    }
    found
}

fn named(root: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root.join("run/netns"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect()
}

fn of_processes(root: &Path) -> Vec<(String, PathBuf)> {
    let proc = root.join("proc");
    let entries = fs::read_dir(&proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.map(|pid| {
        let comm = fs::read_to_string(proc.join(format!("{pid}/comm"))).unwrap_or_default();
        (
            format!("of {} (pid {pid})", comm.trim()),
            proc.join(format!("{pid}/ns/net")),
        )
    })
    .collect()
}

/// The interfaces there, seen by a thread that enters the namespace and ends.
fn links_in(namespace: File) -> Option<Vec<LinkInfo>> {
    let look = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
        links::list().ok()
    };
    thread::spawn(look).join().ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::unshare;
    use std::sync::mpsc;

    #[test]
    fn an_interface_in_another_namespace_is_found_with_a_process_that_is_in_it() {
        let (ready, waits) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            // A thread's namespace has no place in /proc but under its process: name it there.
            let file = entered
                .is_ok()
                .then(|| File::open("/proc/thread-self/ns/net").unwrap());
            ready.send(file).unwrap();
            let _until_dropped = ends.recv();
        });
        let file = waits.recv().unwrap();
        // Only root may make namespaces; everything else of this module needs it too.
        if let Some(file) = file {
            let links = links_in(file).unwrap();
            assert_eq!(
                links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
                ["lo"]
            );
            assert!(
                !links[0].up,
                "a new namespace's loopback is down: it is not ours"
            );
        }
        drop(end);
        other.join().unwrap();
    }

    #[test]
    fn our_own_namespace_is_not_another() {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        fs::create_dir_all(proc.join("self/ns")).unwrap();
        fs::create_dir_all(proc.join("1/ns")).unwrap();
        fs::create_dir_all(proc.join("2/ns")).unwrap();
        fs::create_dir_all(root.path().join("run/netns")).unwrap();
        fs::write(proc.join("self/ns/net"), "").unwrap();
        fs::hard_link(proc.join("self/ns/net"), proc.join("1/ns/net")).unwrap();
        fs::write(proc.join("2/ns/net"), "").unwrap();
        fs::hard_link(proc.join("2/ns/net"), root.path().join("run/netns/blue")).unwrap();
        let found: Vec<String> = namespaces(root.path())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(found, ["blue"]);
    }
}
