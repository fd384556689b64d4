//! A guest under TCP load moves between two QEMUs of this machine, back and forth, with a vhost-user port of
//! `xvio` on either side and a small switch between them: no byte of its memory is lost or old, its
//! connections live on, and a migration that was cancelled does not spoil the next one.
//!
//! Needs root and QEMU.

use anyhow::{Context, Result, ensure};
use hw_tests::accel::Accel;
use hw_tests::image::Image;
use hw_tests::netns::Netns;
use hw_tests::qemu::{Nic, Parts, Qemu};
use hw_tests::run::Run;
use hw_tests::stream::Streams;
use hw_tests::switch::{Port, Switch};
use std::path::PathBuf;
use std::time::Duration;

const ADDRESS: &str = "10.9.0.1";
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes a second: as fast as it goes, and so slow that it can be cancelled in the middle.
const FAST: u64 = 2 << 30;
const SLOW: u64 = 4 << 20;
/// VHOST_F_LOG_ALL.
const LOG_ALL: u64 = 1 << 26;

/// The guest, where it is, and the world around it.
struct World {
    guest: Qemu,
    /// The port that the guest is on: 0 or 1.
    side: usize,
    /// QEMUs started so far.
    count: usize,
    parts: Parts,
    sockets: [PathBuf; 2],
    switch: Switch,
    netns: Netns,
    run: Run,
}

impl World {
    fn new(properties: &[&str]) -> Result<World> {
        let run = Run::start()?;
        let netns = Netns::new(&run, "peer")?;
        let dir = run.subdir("ports")?;
        let sockets = [dir.join("0.sock"), dir.join("1.sock")];
        let ports = sockets.each_ref().map(|socket| Port {
            socket,
            client: false,
            queues: 1,
        });
        let switch = Switch::start(&netns, &format!("{ADDRESS}/24"), 1500, &ports)?;
        let image = Image::make(&run)?;
        let parts = Parts {
            name: "vm-0".into(),
            accel: Accel::probe(&image),
            image,
            memory_mb: 128,
            cpus: 1,
            nic: Nic {
                socket: sockets[0].clone(),
                listens: false,
                mac: "52:54:00:09:00:02".into(),
                queues: 1,
                properties: properties.iter().map(|p| (*p).to_owned()).collect(),
            },
        };
        let mut guest = Qemu::boot(&run, &parts)?;
        guest.expect("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up")?;
        guest.expect(&format!("ping -c 1 -W 10 {ADDRESS}"))?;
        Ok(World {
            guest,
            side: 0,
            count: 1,
            parts,
            sockets,
            switch,
            netns,
            run,
        })
    }

    /// A QEMU on the other port that waits for the guest.
    fn other(&mut self) -> Result<Qemu> {
        let mut parts = self.parts.clone();
        parts.name = format!("vm-{}", self.count);
        parts.nic.socket = self.sockets[1 - self.side].clone();
        self.count += 1;
        Qemu::expect_migration(&self.run, &parts)
    }

    /// Moves the guest to the other port. Its memory there is what it was here.
    fn migrate(&mut self) -> Result<()> {
        let mut to = self.other()?;
        self.guest.migrate(&to, FAST)?;
        let done = self.guest.wait_migration("completed", LIMIT)?;
        // Both are paused now.
        let (here, there) = (self.guest.memory()?, to.memory()?);
        let pages = here.chunks(4096).zip(there.chunks(4096));
        let wrong: Vec<usize> = (0..)
            .zip(pages)
            .filter(|(_, (a, b))| a != b)
            .map(|(n, _)| n)
            .collect();
        ensure!(
            here.len() == there.len() && wrong.is_empty(),
            "{} pages of the guest's memory differ, the first is {:#x}",
            wrong.len(),
            4096 * wrong.first().unwrap_or(&0)
        );
        to.take_console(&mut self.guest)?;
        to.proceed()?;
        self.guest = to;
        self.side = 1 - self.side;
        println!(
            "  moved in {} ms, {} rounds, {} MiB, QEMU's downtime {} ms",
            done["total-time"],
            done["ram"]["dirty-sync-count"],
            done["ram"]["transferred"].as_u64().unwrap_or(0) >> 20,
            done["downtime"],
        );
        Ok(())
    }

    /// Begins to move the guest and changes its mind in the middle.
    fn cancel(&mut self) -> Result<()> {
        let to = self.other()?;
        self.guest.migrate(&to, SLOW)?;
        hw_tests::command::wait_for("some memory having been moved", LIMIT, || {
            let now = self.guest.migration()?;
            ensure!(now["ram"]["transferred"].as_u64() > Some(1 << 20), "{now}");
            Ok(())
        })?;
        ensure!(self.logs(), "The port logs nothing during the migration");
        self.guest
            .execute("migrate_cancel", serde_json::json!({}))?;
        self.guest.wait_migration("cancelled", LIMIT)?;
        hw_tests::command::wait_for("the end of the dirty log", LIMIT, || {
            ensure!(
                !self.logs(),
                "The port still logs after the migration was cancelled"
            );
            Ok(())
        })
    }

    /// The port that the guest is on keeps a dirty log.
    fn logs(&self) -> bool {
        self.switch.status(self.side).features & LOG_ALL != 0
    }

    fn run(&mut self, work: impl FnOnce(&mut World, &Streams) -> Result<()>) -> Result<()> {
        // A file that must not change.
        self.guest
            .expect("dd if=/dev/urandom of=/tmp/big bs=1M count=16 2>/dev/null")?;
        let before = self.guest.expect("sha256sum /tmp/big")?;
        let streams = Streams::listen(&self.netns)?;
        self.guest.expect(&Streams::command(ADDRESS))?;
        streams.wait(1 << 20, LIMIT)?;
        streams.gap();
        work(self, &streams)?;
        streams.wait(1 << 20, LIMIT)?;
        println!(
            "{} MiB from the guest, {} MiB to it",
            streams.received() >> 20,
            streams.sent() >> 20
        );
        let sum = streams.end()?;
        let after = self.guest.expect("sha256sum /tmp/big")?;
        ensure!(before == after, "A file in the guest's memory has changed");
        let guests = self.guest.expect("sleep 1; cat /tmp/down.sum")?;
        ensure!(
            guests.starts_with(&sum),
            "The guest received {guests}, and {sum} was sent"
        );
        Ok(())
    }
}

#[test]
fn five_migrations_back_and_forth_and_one_cancelled_under_tcp_load() -> Result<()> {
    let mut world = World::new(&[])?;
    world.run(|world, streams| {
        for number in 1..=5 {
            if number == 3 {
                world.cancel().context("The migration to be cancelled")?;
                streams.wait(1 << 20, LIMIT)?;
                println!("cancelled: longest gap {:?}", streams.gap());
            }
            world
                .migrate()
                .with_context(|| format!("Migration {number}"))?;
            streams
                .wait(1 << 20, LIMIT)
                .with_context(|| format!("After migration {number}"))?;
            println!("migration {number}: longest gap {:?}", streams.gap());
        }
        // The guest announces itself, so nobody has to do it for it.
        ensure!(
            world.switch.moves(0) + world.switch.moves(1) == 0,
            "It was announced for"
        );
        Ok(())
    })
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced_for() -> Result<()> {
    let mut world = World::new(&["guest_announce=off"])?;
    world.run(|world, streams| {
        world.migrate()?;
        streams.wait(1 << 20, LIMIT)?;
        println!("longest gap {:?}", streams.gap());
        ensure!(world.switch.moves(1) >= 1, "It was not announced for");
        Ok(())
    })
}
