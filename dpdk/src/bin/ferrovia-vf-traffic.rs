//! Drives VFs that are bound to vfio-pci through this crate: packets from one to the other, and what arrives
//! at one that nobody sends to. For the lab's tests, which run it where the VFs are.
//!
//! Prints one "name value" a line. A count that is not as hoped is no error here: the tests judge it.

use dpdk::{BURST, Eal, EalConfig, MbufBurst, Mempool, Port, PortConfig, RxQueue, TxQueue};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
Usage: ferrovia-vf-traffic send FROM TO PACKETS   sends from one VF to another, both driven by this process
       ferrovia-vf-traffic listen VF SECONDS      counts what arrives at a VF
       ferrovia-vf-traffic hold VF                receives until it is killed, with full rings

VFs are PCI addresses of VFs that are bound to vfio-pci.";

/// EtherType for local experiments (IEEE 802, clause 9.2.4).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Shortest Ethernet frame without its checksum.
const FRAME: usize = 60;
/// MACs and EtherType.
const HEADER: usize = 14;
/// Packets are given up when none came for so long.
const QUIET: Duration = Duration::from_secs(2);
/// How long a link may take to come up.
const LINK: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["send", from, to, packets] => match packets.parse() {
            Ok(packets) => send(from, to, packets),
            Err(_) => Err(format!("\"{packets}\" is no number of packets").into()),
        },
        ["listen", vf, seconds] => match seconds.parse() {
            Ok(seconds) => listen(vf, Duration::from_secs(seconds)),
            Err(_) => Err(format!("\"{seconds}\" is no number of seconds").into()),
        },
        ["hold", vf] => hold(vf),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrovia-vf-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(vfs: &[&str]) -> Result<(Eal, Mempool)> {
    let eal = Eal::init(&EalConfig {
        program: "ferrovia-vf-traffic".to_owned(),
        memory_mb: Some(64),
        pci: vfs.iter().map(|vf| (*vf).to_owned()).collect(),
        extra: vec!["--iova-mode=va".to_owned()],
        ..EalConfig::default()
    })?;
    let pool = Mempool::new(&eal, "vf-traffic", 4096, 2048, None)?;
    Ok((eal, pool))
}

/// A started VF with its queues.
struct Vf {
    // Before the port, which waits for them.
    rx: RxQueue,
    tx: TxQueue,
    port: Port,
}

impl Vf {
    fn open(eal: &Eal, pool: &Mempool, address: &str) -> Result<Vf> {
        let port = Port::attach(eal, address)?;
        port.configure(&PortConfig {
            promiscuous: false,
            ..PortConfig::new(pool.clone())
        })?;
        port.start()?;
        let until = Instant::now() + LINK;
        while !port.link().up {
            if Instant::now() > until {
                return Err(format!("{address} has no link").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("driver {}", port.driver());
        println!("mac {}", text(port.mac()));
        Ok(Vf {
            rx: port.rx_queue(0)?,
            tx: port.tx_queue(0)?,
            port,
        })
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What makes the packets of this run different from all others.
fn tag() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |time| time.as_nanos() as u64) ^ u64::from(std::process::id()) << 48
}

/// The packet's bytes: addresses, type, tag, number.
fn frame(from: [u8; 6], to: [u8; 6], tag: u64, number: u64) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..HEADER].copy_from_slice(&ETHERTYPE);
    frame[HEADER..HEADER + 8].copy_from_slice(&tag.to_be_bytes());
    frame[HEADER + 8..HEADER + 16].copy_from_slice(&number.to_be_bytes());
    frame
}

fn send(from: &str, to: &str, packets: u64) -> Result<()> {
    let (eal, pool) = start(&[from, to])?;
    let mut sender = Vf::open(&eal, &pool, from)?;
    let mut receiver = Vf::open(&eal, &pool, to)?;
    let tag = tag();
    let (source, destination) = (sender.port.mac(), receiver.port.mac());
    let mut seen = Seen::default();
    let mut burst = MbufBurst::new();
    let mut sent = 0;
    let mut last = Instant::now();
    while sent < packets || (seen.own < packets && last.elapsed() < QUIET) {
        if sent < packets && burst.is_empty() {
            let most = (packets - sent).min(BURST as u64) as usize;
            for number in 0..pool.alloc_burst(&mut burst, most) {
                let frame = frame(source, destination, tag, sent + number as u64);
                let packet = &mut burst.as_mut_slice()[number];
                let room = packet.append(FRAME).ok_or("A buffer has no room")?;
                room.copy_from_slice(&frame);
            }
        }
        let now = sender.tx.burst(&mut burst) as u64;
        sent += now;
        // Also while sending: the receiver's ring holds less than all packets.
        let came = seen.poll(&mut receiver.rx, Some((tag, packets)));
        if now > 0 || came > 0 {
            last = Instant::now();
        } else if last.elapsed() > QUIET {
            break;
        }
    }
    println!("sent {sent}");
    seen.print();
    Ok(())
}

/// What arrived.
#[derive(Default)]
struct Seen {
    /// Packets of this run, each counted once.
    own: u64,
    /// Packets of this run that came again, or never were sent.
    wrong: u64,
    /// All others.
    others: u64,
    came: Vec<bool>,
    senders: Vec<[u8; 6]>,
}

impl Seen {
    fn poll(&mut self, queue: &mut RxQueue, own: Option<(u64, u64)>) -> usize {
        let mut burst = MbufBurst::new();
        let came = queue.burst(&mut burst);
        for packet in burst.iter() {
            self.count(packet.data(), own);
        }
        came
    }

    fn count(&mut self, data: &[u8], own: Option<(u64, u64)>) {
        let word = |at: usize| {
            let bytes: Option<[u8; 8]> = data.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map(u64::from_be_bytes)
        };
        match (own, word(HEADER), word(HEADER + 8)) {
            (Some((tag, packets)), Some(is), Some(number)) if tag == is => {
                self.came.resize(packets as usize, false);
                match self.came.get_mut(number as usize) {
                    Some(came) if !*came => {
                        *came = true;
                        self.own += 1;
                    }
                    _ => self.wrong += 1,
                }
            }
            _ => {
                self.others += 1;
                if let Some(sender) = data.get(6..12).and_then(|mac| mac.try_into().ok())
                    && !self.senders.contains(&sender)
                    && self.senders.len() < 16
                {
                    self.senders.push(sender);
                }
            }
        }
    }

    fn print(&self) {
        println!("received {}", self.own);
        println!("wrong {}", self.wrong);
        println!("others {}", self.others);
        for sender in &self.senders {
            println!("other {}", text(*sender));
        }
    }
}

fn listen(vf: &str, time: Duration) -> Result<()> {
    let (eal, pool) = start(&[vf])?;
    let mut vf = Vf::open(&eal, &pool, vf)?;
    let mut seen = Seen::default();
    let until = Instant::now() + time;
    while Instant::now() < until {
        if seen.poll(&mut vf.rx, None) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    seen.print();
    Ok(())
}

/// Leaves the rings as full as they get: whatever arrives stays in them.
fn hold(vf: &str) -> Result<()> {
    let (eal, pool) = start(&[vf])?;
    let _vf = Vf::open(&eal, &pool, vf)?;
    println!("holding");
    loop {
        std::thread::park();
    }
}
