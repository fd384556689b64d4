//! fallback-dpdk
