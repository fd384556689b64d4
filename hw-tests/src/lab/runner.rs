//! A whole run: targets at the same time as far as they fit, and their results put together.

use super::inventory::TargetSpec;
use super::on_target::{self, Chosen, Slot};
use super::progress::Progress;
use super::results::{Report, SCHEMA_VERSION, TargetResult};
use super::schedule::Room;
use chrono::{DateTime, SecondsFormat, Utc};
use std::path::Path;
use std::sync::{PoisonError, mpsc};
use std::time::Instant;

/// A target and the tests that it shall run.
#[derive(Debug)]
pub struct Job {
    /// The target.
    pub spec: TargetSpec,
    /// In the order in which they run.
    pub tests: Vec<Chosen>,
    /// Its results so far.
    pub slot: Slot,
}

impl Job {
    /// A job without results.
    pub fn new(spec: TargetSpec, tests: Vec<Chosen>) -> Job {
        let slot = on_target::slot(&spec);
        Job { spec, tests, slot }
    }
}

/// Where a run began, for its report.
#[derive(Clone, Debug)]
pub struct Began {
    /// The inventory's file name.
    pub inventory: String,
    /// The suites that were asked for.
    pub suites: Vec<String>,
    at: DateTime<Utc>,
    clock: Instant,
}

impl Began {
    /// Now.
    pub fn now(inventory: &Path, suites: Vec<String>) -> Began {
        let name = inventory.file_name().unwrap_or(inventory.as_os_str());
        Began {
            inventory: name.to_string_lossy().into_owned(),
            suites,
            at: Utc::now(),
            clock: Instant::now(),
        }
    }

    /// The report of what the slots hold.
    pub fn report(&self, slots: &[Slot]) -> Report {
        let targets: Vec<TargetResult> = slots
            .iter()
            .map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect();
        Report {
            schema_version: SCHEMA_VERSION,
            tool: format!("ferrovia-lab {}", env!("CARGO_PKG_VERSION")),
            started: self.at.to_rfc3339_opts(SecondsFormat::Secs, true),
            duration_s: self.clock.elapsed().as_secs_f64(),
            inventory: self.inventory.clone(),
            suites: self.suites.clone(),
            interrupted: false,
            targets,
            comparison: None,
        }
    }
}

/// Runs all jobs, each on a thread of its own, as many at once as `room` allows. `dir` takes their files.
pub fn run(jobs: &[Job], room: Room, dir: &Path, progress: &Progress) {
    std::thread::scope(|scope| {
        let (send, ended) = mpsc::channel::<usize>();
        let mut waiting: Vec<usize> = (0..jobs.len()).collect();
        let mut running: Vec<usize> = Vec::new();
        while !waiting.is_empty() || !running.is_empty() {
            let next = waiting.iter().position(|at| {
                let beside: Vec<&TargetSpec> = running.iter().map(|r| &jobs[*r].spec).collect();
                room.fits(&beside, &jobs[*at].spec)
            });
            if let Some(next) = next {
                let at = waiting.remove(next);
                running.push(at);
                let (job, send) = (&jobs[at], send.clone());
                let dir = dir.join(&job.spec.name);
                scope.spawn(move || {
                    let _said = Ended(at, send);
                    on_target::run(&job.spec, &job.tests, &job.slot, &dir, progress);
                });
                continue;
            }
            let Ok(at) = ended.recv() else { break };
            running.retain(|r| *r != at);
        }
    });
}

/// Says that a job has ended, also when its thread panicked.
struct Ended(usize, mpsc::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}
