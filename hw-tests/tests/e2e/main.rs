//! End-to-end tests on real guests: the demo's five parts, and what else must hold between them.
//!
//! All checks share one world, since booting guests takes its time under software emulation. They run in
//! order: those that disturb the world come last. A new one is a function and a line in [`CHECKS`].

mod addresses;
mod checksums;
mod isolation;
mod mtu;
mod reach;
mod restarts;
mod scale;

use anyhow::Result;
use hw_tests::cleanup;
use hw_tests::guest::Shape;
use hw_tests::parts::networks::Place;
use hw_tests::parts::{interrupt, networks, operate, start, traffic};
use hw_tests::run::Run;
use hw_tests::story::{Audience, Story};
use hw_tests::world::World;
use std::process::ExitCode;

/// A check: it gets the world, and says how it went.
type Check = fn(&World) -> Result<String>;

/// Part, what must hold, and the check.
const CHECKS: &[(&str, &str, Check)] = &[
    (
        "addresses",
        "the lease carries router, MTU, DNS and routes",
        addresses::lease,
    ),
    (
        "addresses",
        "the guest's interface and routes follow the lease",
        addresses::applied,
    ),
    (
        "addresses",
        "the router's advertisement gives a default route and the MTU",
        addresses::advertised,
    ),
    (
        "reach",
        "a guest of the same host, IPv4",
        reach::same_host_v4,
    ),
    (
        "reach",
        "a guest of the same host, IPv6",
        reach::same_host_v6,
    ),
    (
        "reach",
        "a guest of the other host, both ways, IPv4",
        reach::other_host_v4,
    ),
    (
        "reach",
        "a guest of the other host, both ways, IPv6",
        reach::other_host_v6,
    ),
    ("reach", "the gateway, IPv4", reach::gateway_v4),
    ("reach", "the gateway, IPv6", reach::gateway_v6),
    (
        "reach",
        "TCP over IPv6 carries a file unharmed",
        reach::tcp_v6,
    ),
    (
        "isolation",
        "two guests with one address in two networks",
        isolation::same_address,
    ),
    (
        "isolation",
        "a forged MAC address is dropped, with its reason",
        isolation::forged_mac,
    ),
    ("checksums", "guests offload checksums", checksums::offered),
    (
        "checksums",
        "packets leave the host with right checksums",
        checksums::right_on_the_wire,
    ),
    (
        "MTU",
        "jumbo frames up to what the underlay allows, both families",
        mtu::jumbo,
    ),
    (
        "MTU",
        "nothing longer than the underlay's MTU leaves the host",
        mtu::capture_fits,
    ),
    (
        "MTU",
        "a packet that is too big gets the error a router sends",
        mtu::too_big,
    ),
    (
        "idle",
        "an idle agent uses under 3 % of a core",
        scale::idle,
    ),
    (
        "restarts",
        "the controller killed and restarted changes nothing for a guest",
        restarts::controller,
    ),
    (
        "restarts",
        "a guest whose port is served by a killed agent gets a new lease",
        restarts::lease_after_kill,
    ),
    (
        "scale",
        "100 ports created through the API become ready",
        scale::hundred_ports,
    ),
    (
        "scale",
        "all are back after kill -9 of their agent",
        scale::all_back,
    ),
    (
        "scale",
        "the guests of that agent never noticed",
        scale::guests_after,
    ),
];

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--list") {
        CHECKS
            .iter()
            .for_each(|(part, name, _)| println!("{part}: {name}: test"));
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(code) => code,
        Err(e) => {
            println!("test set-up ... FAILED\n---- {e:#}");
            println!(
                "\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n"
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    cleanup::undo_on_signals()?;
    let story = Story::new(Audience::Tests);
    let run = Run::start()?;
    let mut world = World::new(&run)?;
    println!("guests run by {}; {}", world.accel, world.libvirt.version);
    if story.holds("every part", || all(&mut world, &story)) && story.all_good() {
        return Ok(story.end());
    }
    println!(
        "\nThe last words of the programs:\n{}",
        world.cluster.last_words()
    );
    Ok(story.end())
}

fn all(world: &mut World, story: &Story) -> Result<String> {
    start::run(world, story)?;
    // A second guest on h1, with two queue pairs, attached before it starts to a socket that the agent makes.
    let options = ["--queue-pairs", "2", "--socket-mode", "agent-listens"];
    let shape = Shape {
        cpus: 2,
        ..Shape::default()
    };
    let place = Place {
        shape,
        options: &options,
        cold: true,
        ..Place::live("blue-c", "blue", "h1")
    };
    networks::run(world, story, &[place])?;
    traffic::run(world, story);
    for (part, name, check) in CHECKS {
        story.part(part);
        story.holds(name, || check(world));
    }
    interrupt::run(world, story);
    operate::run(world, story);
    story.part("end");
    Ok("was reached".into())
}
