//! Boots a few guests at once and says how long each took: `cargo run -p hw-tests --example boot -- 3`.
use anyhow::Result;
use hw_tests::{
    accel::Accel,
    cleanup,
    guest::{Guest, Shape},
    image::Image,
    libvirt::Libvirt,
    run::Run,
};
use std::time::Instant;

fn main() -> Result<()> {
    cleanup::undo_on_signals()?;
    let count: usize = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let run = Run::start()?;
    let start = Instant::now();
    let image = Image::make(&run)?;
    println!("image {:?} {}", start.elapsed(), image.release);
    let accel = Accel::probe(&image);
    println!("accel {accel} {:?}", start.elapsed());
    let libvirt = Libvirt::connect(&run)?;
    println!(
        "{} by hand: {} {:?}",
        libvirt.version,
        libvirt.by_hand,
        start.elapsed()
    );
    let guests: Vec<Guest> = (0..count)
        .map(|i| Guest::define(&run, &format!("g{i}"), &image, &accel, &Shape::default()))
        .collect::<Result<_>>()?;
    let booting = Instant::now();
    for guest in &guests {
        guest.start()?;
    }
    for guest in &guests {
        guest.wait_until_up()?;
        println!(
            "{} up after {:?}: {}",
            guest.name(),
            booting.elapsed(),
            guest.expect("uname -r; hostname")?.replace('\n', " ")
        );
    }
    Ok(())
}
