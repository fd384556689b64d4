//! What the tests of this crate share: DPDK, started once in the process without hugepages.

use dpdk::{Eal, EalConfig, Hugepages, Mempool};
use std::sync::OnceLock;

/// DPDK's EAL.
pub(crate) fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| {
        let config = EalConfig {
            program: "fallback-dpdk-test".to_owned(),
            memory_mb: Some(128),
            hugepages: Hugepages::Never,
            ..EalConfig::default()
        };
        Eal::init(&config).expect("DPDK starts without hugepages")
    })
}

/// Buffers for single packets.
pub(crate) fn pool() -> Mempool {
    static POOL: OnceLock<Mempool> = OnceLock::new();
    POOL.get_or_init(|| Mempool::new(eal(), "test", 512, 4096, None).expect("a pool"))
        .clone()
}
