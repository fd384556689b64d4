//! How many cycles a packet costs on the device's side of a vhost-user port: XVIO against DPDK's own
//! vhost library, with DPDK's unmodified virtio driver (`dpdk-testpmd`, `net_virtio_user`) as the guest.
//!
//! ```text
//! cargo xtask bench xvio                          everything: 5 rounds, about 15 minutes
//! cargo xtask bench xvio -- --rounds 1 --only packed     a look at a part of it
//! ```
//!
//! One core is the guest's, one the backend's. What is counted is **busy cycles a packet**: the time-stamp
//! cycles of polls that moved packets, divided by the packets (`meter.rs`; the same loop for each backend).
//! The rate of such a flood says little, since it is bound by the guest's driver. Backends take turns round
//! by round, and the figure of a case is the median over the rounds.
//!
//! The program starts itself again for each backend (`backend` as first argument) and gives it orders on
//! its standard input; so no backend sees the memory or the threads of another.

mod bare;
mod guest;
mod meter;
mod ours;
mod peer;
mod report;

use guest::Guest;
use meter::{Moved, Way};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Sizes of packets, in bytes with the Ethernet header.
const SIZES: [usize; 3] = [64, 256, 1518];
/// The CPU of the backend; the guest has the next one.
const CPU: usize = 0;

/// How a guest's rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// The packed layout, not the split one.
    pub packed: bool,
    /// Packets may span several buffers.
    pub mergeable: bool,
    /// Buffers come back in order.
    pub in_order: bool,
}

impl Layout {
    fn all() -> impl Iterator<Item = Layout> {
        (0..8).map(|n| Layout {
            packed: n & 4 != 0,
            mergeable: n & 2 != 0,
            in_order: n & 1 != 0,
        })
    }

    fn name(self) -> String {
        let name = |yes, text, no| if yes { text } else { no };
        format!(
            "{}{}{}",
            name(self.packed, "packed", "split"),
            name(self.mergeable, " mergeable", ""),
            name(self.in_order, " in-order", "")
        )
    }
}

/// Whose vhost implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ours,
    DpdkVhost,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ours => "xvio",
            Kind::DpdkVhost => "dpdk-vhost",
        }
    }
}

/// One case; the figures are kept by it.
type Case = (Way, Layout, usize);
type Results = BTreeMap<Case, BTreeMap<Kind, Vec<Moved>>>;

/// What to run.
struct Plan {
    rounds: usize,
    milliseconds: u64,
    sizes: Vec<usize>,
    ways: Vec<Way>,
    only: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, kind, sockets @ ..] = &arguments[..]
        && first == "backend"
    {
        return backend(kind, sockets);
    }
    if arguments.first().is_some_and(|first| first == "bare") {
        // In a process of its own as well: it binds itself to a CPU.
        println!("{}", bare::measure(CPU, Duration::from_millis(300))?);
        return Ok(());
    }
    let plan = Plan::parse(&arguments)?;
    let folder = tempfile::tempdir()?;
    let (mut results, mut limit) = (Results::new(), Vec::new());
    for round in 0..plan.rounds {
        limit.push(bare_ring()?);
        for layout in Layout::all().filter(|layout| plan.wants(*layout)) {
            let mut kinds = [Kind::Ours, Kind::DpdkVhost];
            // A B, then B A: whoever comes first has no advantage.
            if round % 2 == 1 {
                kinds.reverse();
            }
            for kind in kinds {
                eprintln!("round {}: {} {}", round + 1, layout.name(), kind.name());
                run(&plan, folder.path(), layout, kind, &mut results)?;
            }
        }
    }
    report::print(&results, &limit);
    report::write(&results, &limit, plan.rounds)?;
    Ok(())
}

/// What a ring costs that only moves cache lines.
fn bare_ring() -> Result<Moved, Box<dyn Error>> {
    let said = Command::new(std::env::current_exe()?)
        .arg("bare")
        .output()?;
    let text = String::from_utf8(said.stdout)?;
    Moved::parse(text.trim()).ok_or_else(|| format!("The bare ring said \"{text}\"").into())
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Plan, Box<dyn Error>> {
        let mut plan = Plan {
            rounds: 5,
            milliseconds: 300,
            sizes: SIZES.to_vec(),
            ways: Way::ALL.to_vec(),
            only: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--rounds" => plan.rounds = value.parse()?,
                "--milliseconds" => plan.milliseconds = value.parse()?,
                "--size" => plan.sizes = vec![value.parse()?],
                "--way" => plan.ways = vec![Way::parse(value).ok_or("no such direction")?],
                "--only" => plan.only = Some(value.clone()),
                _ => {
                    return Err(format!(
                        "{name} is unknown; use --rounds, --milliseconds, --size, --way or --only LAYOUT"
                    )
                    .into());
                }
            }
        }
        Ok(plan)
    }

    fn wants(&self, layout: Layout) -> bool {
        let wanted = self.only.as_ref();
        wanted.is_none_or(|only| {
            layout.name() == *only || layout.name().split(' ').next() == Some(only)
        })
    }
}

/// All directions and sizes of one layout on one backend.
fn run(
    plan: &Plan,
    folder: &Path,
    layout: Layout,
    kind: Kind,
    results: &mut Results,
) -> Result<(), Box<dyn Error>> {
    let mut keep = |case: Case, moved: Moved| {
        let of_case = results.entry(case).or_default();
        of_case.entry(kind).or_default().push(moved);
    };
    let wanted = |way: &Way| plan.ways.contains(way);
    let flood = [(Way::Out, "txonly"), (Way::In, "rxonly")];
    let flood = flood.into_iter().filter(|(way, _)| wanted(way));
    if wanted(&Way::Out) || wanted(&Way::In) {
        let mut backend = Served::start(folder, kind, 1)?;
        let mut guest = Guest::start(&backend.sockets, layout)?;
        for (way, mode) in flood {
            for &size in &plan.sizes {
                guest.forward(mode, size)?;
                keep(
                    (way, layout, size),
                    backend.measure(way, size, plan.milliseconds)?,
                );
            }
        }
    }
    if !wanted(&Way::Across) {
        return Ok(());
    }
    let mut backend = Served::start(folder, kind, 2)?;
    let mut guest = Guest::start(&backend.sockets, layout)?;
    for &size in &plan.sizes {
        // It generates what the other port is to get, and frees what it got.
        guest.forward("flowgen", size)?;
        let way = Way::Across;
        keep(
            (way, layout, size),
            backend.measure(way, size, plan.milliseconds)?,
        );
    }
    Ok(())
}

/// A backend in a process of its own.
struct Served {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    sockets: Vec<PathBuf>,
}

impl Served {
    fn start(folder: &Path, kind: Kind, ports: usize) -> Result<Served, Box<dyn Error>> {
        let socket = |n: usize| folder.join(format!("{}-{n}.sock", kind.name()));
        let sockets: Vec<PathBuf> = (0..ports).map(socket).collect();
        for socket in &sockets {
            let _ = std::fs::remove_file(socket);
        }
        let mut child = Command::new(std::env::current_exe()?)
            .args(["backend", kind.name()])
            .args(&sockets)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.join("backend.log"))?)
            .spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let mut served = Served {
            child,
            orders: orders.ok_or("no pipe")?,
            answers: BufReader::new(answers.ok_or("no pipe")?),
            sockets,
        };
        let answer = served.answer();
        answer.map_err(|error| {
            let log = std::fs::read_to_string(folder.join("backend.log"));
            format!(
                "The backend did not start ({error}): {}",
                log.unwrap_or_default()
            )
        })?;
        Ok(served)
    }

    fn answer(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("The backend ended".into());
        }
        Ok(line.trim().to_owned())
    }

    fn measure(&mut self, way: Way, size: usize, ms: u64) -> Result<Moved, Box<dyn Error>> {
        writeln!(self.orders, "{} {size} {ms}", way.name())?;
        let answer = self.answer()?;
        Moved::parse(&answer).ok_or_else(|| format!("The backend said \"{answer}\"").into())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: obeys until its standard input ends.
fn backend(kind: &str, sockets: &[String]) -> Result<(), Box<dyn Error>> {
    // The driver of DPDK's vhost library has a thread for messages: only this one is bound.
    let eal = dpdk::Eal::init(&dpdk::EalConfig {
        program: "bench_xvio".to_owned(),
        memory_mb: Some(128),
        hugepages: dpdk::Hugepages::Auto,
        ..dpdk::EalConfig::default()
    })?;
    let pool = dpdk::Mempool::new(&eal, "bench", 4096, 2048, None)?;
    let sockets: Vec<PathBuf> = sockets.iter().map(PathBuf::from).collect();
    let mut backend: Box<dyn meter::Backend> = if kind == Kind::Ours.name() {
        Box::new(ours::Ours::start(&sockets, pool)?)
    } else {
        Box::new(peer::Peer::start(&sockets, pool)?)
    };
    let _registered = eal.register_thread()?;
    meter::bind(CPU)?;
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [way, size, ms] = words[..] else {
            return Err(format!("\"{line}\" is no order").into());
        };
        let way = Way::parse(way).ok_or("an unknown direction")?;
        let moved = meter::measure(backend.as_mut(), way, size.parse()?, ms.parse()?);
        println!("{moved}");
    }
    Ok(())
}
