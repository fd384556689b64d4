//! The guest of the tests, by itself: a prompt in it, or several of them booted at once through libvirt.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use hw_tests::accel::Accel;
use hw_tests::cleanup;
use hw_tests::guest::{Guest, Shape};
use hw_tests::image::Image;
use hw_tests::libvirt::Libvirt;
use hw_tests::run::Run;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The guest of the tests.
#[derive(Parser)]
#[command(name = "ferrovia-guest")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A prompt in the guest; needs no root
    Shell,
    /// Boots guests at once through libvirt, as the demo does
    Boot {
        /// How many
        guests: usize,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().what {
        What::Shell => shell(),
        What::Boot { guests } => cleanup::undo_on_signals().and_then(|()| boot(guests)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn shell() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = Image::make_in(dir.path())?;
    let accel = Accel::probe(&image);
    eprintln!(
        "Linux {} by {accel}; `poweroff -f` or Ctrl-A X leaves it.",
        image.release
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-nographic",
        "-serial",
        "mon:stdio",
        "-m",
        "256",
    ]);
    match accel {
        Accel::Kvm => qemu.args(["-machine", "q35,accel=kvm", "-cpu", "host"]),
        Accel::Software(_) => qemu.args(["-machine", "q35,accel=tcg"]),
    };
    qemu.arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd);
    let status = qemu
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 fv.shell fv.name=lab",
        ])
        .status()
        .context("QEMU could not be started; `cargo xtask deps` installs it")?;
    anyhow::ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

fn boot(count: usize) -> Result<()> {
    let run = Run::start()?;
    let image = Image::make(&run)?;
    let accel = Accel::probe(&image);
    let libvirt = Libvirt::connect(&run)?;
    println!("{}, guests run by {accel}", libvirt.version);
    let start = Instant::now();
    let guests: Vec<Guest> = (1..=count)
        .map(|i| Guest::define(&run, &format!("g{i}"), &image, &accel, &Shape::default()))
        .collect::<Result<_>>()?;
    guests.iter().try_for_each(Guest::start)?;
    for guest in &guests {
        guest.wait_until_up()?;
        let kernel = guest.expect("uname -r")?;
        println!(
            "{} is up after {:.1} s: Linux {}",
            guest.name(),
            start.elapsed().as_secs_f32(),
            kernel.trim()
        );
    }
    Ok(())
}
