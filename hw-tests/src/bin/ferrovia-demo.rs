//! The demo: a controller, two hosts and three virtual machines, from nothing to traffic. `cargo xtask demo`
//! builds everything and runs this as root.

use anyhow::Result;
use clap::Parser;
use hw_tests::cleanup;
use hw_tests::parts::{interrupt, networks, operate, start, traffic};
use hw_tests::run::{Run, remove_kept};
use hw_tests::story::{Audience, Story};
use hw_tests::world::World;
use std::process::ExitCode;

/// Shows Ferrovia at work on this machine; nothing of it stays.
#[derive(Parser)]
#[command(name = "ferrovia-demo")]
struct Args {
    /// Leave everything running, and say how to use it
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what an earlier --keep left, and do nothing else
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match demo(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> Result<ExitCode> {
    cleanup::undo_on_signals()?;
    if args.clean {
        let gone = remove_kept();
        println!(
            "{} kept runs were removed{}",
            gone.len(),
            if gone.is_empty() { "." } else { ":" }
        );
        gone.iter().for_each(|name| println!("  {name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let story = Story::new(Audience::Person);
    println!("Ferrovia: two hosts, three virtual machines. Ctrl-C at any time cleans up.");
    let run = Run::start()?;
    let mut world = World::new(&run)?;
    if let Err(e) = parts(&mut world, &story) {
        story.say(&format!("{e:#}"));
    }
    if !story.all_good() {
        println!(
            "\nThe last words of the programs:\n{}",
            world.cluster.last_words()
        );
    }
    let code = story.end();
    if args.keep {
        run.keep()?;
        println!(
            "\nEverything keeps running. To look around:\n\n{}",
            world.how_to_enter()?
        );
        println!("virsh -c qemu:///system list\ncargo xtask demo --clean      removes it");
    } else {
        println!(
            "\nNext: `cargo xtask demo --keep` leaves all this running for you to try commands on;\n\
                  docs/operating.md shows how to set up real hosts. Cleaning up …"
        );
    }
    drop(world);
    Ok(code)
}

fn parts(world: &mut World, story: &Story) -> Result<()> {
    start::run(world, story)?;
    networks::run(world, story, &[])?;
    traffic::run(world, story);
    interrupt::run(world, story);
    operate::run(world, story);
    Ok(())
}
