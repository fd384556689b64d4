//! Where things are.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The build folder, as cargo was told.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What is downloaded once: the kernels.
pub fn cache() -> PathBuf {
    std::env::var_os("FERROVIA_LAB_CACHE").map_or_else(|| target().join("lab-cache"), PathBuf::from)
}

/// Where the steps' output is kept.
pub fn logs() -> Result<PathBuf> {
    let dir = target().join("xtask-logs");
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("The folder \"{}\" could not be made", dir.display()))?;
    Ok(dir)
}
