//! Tells the compiler that `--cfg loom` is a name of ours (the model check of the gate).

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rerun-if-changed=build.rs");
}
