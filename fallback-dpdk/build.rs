//! Makes `cfg(loom)`, which the concurrency models are built with, known to the compiler's checks.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rerun-if-changed=build.rs");
}
