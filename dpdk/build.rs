//! Finds the system's DPDK through pkg-config and compiles the C shim over its inline functions.

use std::process::Command;

const SHIM: [&str; 3] = ["shim/eal.c", "shim/mbuf.c", "shim/port.c"];

fn main() {
    for file in SHIM {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-changed=shim/fv.h");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");

    if let Err(why) = build() {
        println!("cargo::error={why}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    // Emits the link lines as well: DPDK is linked dynamically, so that its drivers load as
    // plug-ins from the distribution's folder.
    let library = pkg_config::Config::new()
        .atleast_version("22.11")
        .probe("libdpdk")
        .map_err(|error| missing(&error))?;

    let mut shim = cc::Build::new();
    shim.files(SHIM)
        .includes(&library.include_paths)
        .opt_level(2)
        .flag("-std=gnu11")
        .warnings(true)
        // DPDK's headers, not ours.
        .flag_if_supported("-Wno-unused-parameter")
        .flag_if_supported("-Wno-deprecated-declarations");
    // The pkg_config crate leaves out `-include rte_config.h` and `-march=…`, and the inline
    // functions need both.
    for flag in raw_cflags()? {
        shim.flag(flag);
    }
    shim.try_compile("ferrovia_dpdk_shim").map_err(|error| {
        format!(
            "The DPDK shim does not compile with libdpdk {}: {error}",
            library.version
        )
    })
}

fn missing(error: &pkg_config::Error) -> String {
    match error {
        pkg_config::Error::Command { .. } => {
            "pkg-config is not installed, so libdpdk cannot be found; run `cargo xtask deps` (or `apt install pkg-config libdpdk-dev`)".to_owned()
        }
        // pkg-config ran and did not find it, or found one that is too old.
        _ if Command::new("pkg-config").args(["--exists", "libdpdk"]).status().is_ok_and(|status| status.success()) => {
            "libdpdk is older than 22.11; install the one of Debian 12 or newer (run `cargo xtask deps`)".to_owned()
        }
        _ => "libdpdk is not installed, and the software path is built on it; run `cargo xtask deps` (or `apt install libdpdk-dev`)".to_owned(),
    }
}

/// `-include FILE` (one word here: `-includeFILE`), `-march` and other compiler flags of DPDK.
fn raw_cflags() -> Result<Vec<String>, String> {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output = Command::new(&program)
        .args(["--cflags-only-other", "libdpdk"])
        .output()
        .map_err(|error| format!("\"{program}\" does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut flags = Vec::new();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        if word == "-include" {
            flags.push("-include".to_owned());
            flags.extend(words.next().map(str::to_owned));
        } else {
            flags.push(word.to_owned());
        }
    }
    Ok(flags)
}
