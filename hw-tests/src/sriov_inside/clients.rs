//! Many clients of one agent, each with a connection of its own, that allocate and release VFs at the same time.
//!
//! A book outside the agent says who has which VF: a client enters itself when it has been given one, and strikes
//! itself out before it gives it back. Whoever finds somebody else in the book was given a VF twice.

use anyhow::{Context, Result, bail};
use api::client::{self, Target};
use api::v1::{AllocateVfRequest, ReleaseVfRequest, VfDefaults};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the clients did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// VFs that were handed out.
    pub allocated: u64,
    /// VFs that were given back.
    pub released: u64,
    /// Requests that were refused because no VF was free.
    pub none_free: u64,
    /// Most VFs that were out at one time.
    pub most: usize,
    /// A VF or a MAC of two owners at once, and answers that must not be.
    pub wrong: Vec<String>,
    /// Who kept a VF at the end: owner, VF, MAC.
    pub kept: Vec<(String, String, String)>,
}

#[derive(Debug, Default)]
struct Book {
    vfs: HashMap<String, String>,
    macs: HashMap<String, String>,
    report: Report,
}

fn lock(book: &Mutex<Book>) -> std::sync::MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `clients` of them for `time` on the agent whose socket is `socket`. Every second one keeps its last VF.
///
/// # Errors
/// When the agent cannot be reached, or does not answer any more.
pub fn run(socket: &Path, clients: usize, time: Duration) -> Result<Report> {
    let book = Arc::new(Mutex::new(Book::default()));
    let until = Instant::now() + time;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        for number in 0..clients {
            let (socket, book) = (socket.to_owned(), Arc::clone(&book));
            running.spawn(async move { one(&socket, number, until, &book).await });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    })?;
    let mut report = std::mem::take(&mut lock(&book).report);
    report.kept.sort();
    Ok(report)
}

async fn one(socket: &Path, number: usize, until: Instant, book: &Mutex<Book>) -> Result<()> {
    let channel = client::connect(&Target::Unix(socket.to_owned())).await?;
    let mut api = client::nic_client(channel);
    let owner = format!("cli/client-{number}");
    for round in 0u32.. {
        let request = AllocateVfRequest {
            owner: owner.clone(),
            pool: "tests".into(),
            settings: Some(VfDefaults {
                vlan: Some(100 + number as u32),
                ..VfDefaults::default()
            }),
            ..AllocateVfRequest::default()
        };
        let over = Instant::now() >= until;
        let given = match api.allocate_vf(request).await {
            Ok(given) => given.into_inner(),
            Err(refused) if refused.message().contains("No VF is free") => {
                lock(book).report.none_free += 1;
                if over {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(refused) => bail!("{owner} was refused a VF: {}", refused.message()),
        };
        enter(book, &owner, &given.vf, &given.mac);
        if over && number.is_multiple_of(2) {
            let kept = (owner, given.vf, given.mac);
            lock(book).report.kept.push(kept);
            return Ok(());
        }
        // Some for a moment, some for longer, so that they do not go in step.
        let held = Duration::from_millis(u64::from(round * 7 + number as u32 * 13) % 40);
        tokio::time::sleep(held).await;
        strike(book, &owner, &given.vf, &given.mac);
        let request = ReleaseVfRequest {
            owner: owner.clone(),
            force: false,
        };
        let released = api.release_vf(request).await;
        let released = released
            .map_err(|refused| anyhow::anyhow!("{}", refused.message()))
            .with_context(|| format!("{owner} could not give back {}", given.vf))?
            .into_inner();
        let mut book = lock(book);
        book.report.released += 1;
        if released.vf != given.vf {
            let text = format!("{owner} gave back {} and had {}", released.vf, given.vf);
            book.report.wrong.push(text);
        }
        drop(book);
        if over {
            return Ok(());
        }
    }
    Ok(())
}

fn enter(book: &Mutex<Book>, owner: &str, vf: &str, mac: &str) {
    let book = &mut *lock(book);
    book.report.allocated += 1;
    for (thing, had) in [
        (vf, book.vfs.insert(vf.to_owned(), owner.to_owned())),
        (mac, book.macs.insert(mac.to_owned(), owner.to_owned())),
    ] {
        if let Some(other) = had {
            let text = format!("{thing} was handed out to {other} and to {owner}");
            book.report.wrong.push(text);
        }
    }
    book.report.most = book.report.most.max(book.vfs.len());
}

fn strike(book: &Mutex<Book>, owner: &str, vf: &str, mac: &str) {
    let book = &mut *lock(book);
    for had in [book.vfs.remove(vf), book.macs.remove(mac)] {
        if had.as_deref() != Some(owner) {
            let text = format!("{vf} ({mac}) of {owner} was {had:?}'s meanwhile");
            book.report.wrong.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vf_or_a_mac_of_two_owners_is_seen() {
        let book = Mutex::new(Book::default());
        enter(&book, "cli/a", "pf#0", "02:00:00:00:00:01");
        enter(&book, "cli/b", "pf#1", "02:00:00:00:00:02");
        strike(&book, "cli/a", "pf#0", "02:00:00:00:00:01");
        enter(&book, "cli/c", "pf#0", "02:00:00:00:00:03");
        assert_eq!(lock(&book).report.wrong, [""; 0]);
        enter(&book, "cli/d", "pf#1", "02:00:00:00:00:04");
        strike(&book, "cli/b", "pf#1", "02:00:00:00:00:02");
        enter(&book, "cli/e", "pf#2", "02:00:00:00:00:03");
        let report = lock(&book).report.clone();
        assert_eq!(report.wrong.len(), 3, "{:?}", report.wrong);
        assert_eq!((report.allocated, report.most), (5, 2));
    }
}
