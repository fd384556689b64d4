//! Finds out, before the EAL starts, whether hugepages would do: a failed EAL start cannot be
//! repeated in the same process, so the choice has to be right the first time.

use std::path::Path;

/// Whether DPDK's memory comes from hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// Hugepages when enough of them are free, ordinary memory when not.
    #[default]
    Auto,
    /// Ordinary memory (`--no-huge`).
    Never,
    /// Hugepages, and an error when there are not enough.
    Require,
}

/// Free hugepage memory in MB, all page sizes and NUMA nodes together.
pub(crate) fn free_mb() -> u64 {
    free_mb_below(Path::new("/sys/kernel/mm/hugepages"))
}

fn free_mb_below(folder: &Path) -> u64 {
    let Ok(sizes) = std::fs::read_dir(folder) else {
        return 0;
    };
    let mut total_kb = 0_u64;
    for size in sizes.flatten() {
        let name = size.file_name();
        let Some(kb) = name.to_str().and_then(|name| {
            name.strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse::<u64>()
                .ok()
        }) else {
            continue;
        };
        let read = |file: &str| {
            std::fs::read_to_string(size.path().join(file))
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        // Reserved pages are free but promised to someone.
        let free = read("free_hugepages").saturating_sub(read("resv_hugepages"));
        total_kb = total_kb.saturating_add(free.saturating_mul(kb));
    }
    total_kb / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_summed_over_page_sizes_without_reserved_pages() {
        let folder = tempfile::tempdir().unwrap();
        for (name, free, reserved) in [
            ("hugepages-2048kB", "130\n", "2\n"),
            ("hugepages-1048576kB", "1\n", "0\n"),
            ("junk", "9\n", "0\n"),
        ] {
            let size = folder.path().join(name);
            std::fs::create_dir(&size).unwrap();
            std::fs::write(size.join("free_hugepages"), free).unwrap();
            std::fs::write(size.join("resv_hugepages"), reserved).unwrap();
        }
        assert_eq!(free_mb_below(folder.path()), 256 + 1024);
        assert_eq!(free_mb_below(&folder.path().join("missing")), 0);
    }
}
