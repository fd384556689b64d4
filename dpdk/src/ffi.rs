//! The shim's functions and structures, declared by hand after `shim/fv.h`. Keep both in step.

use std::ffi::{c_char, c_int};

/// `struct rte_mempool`, only ever behind a pointer.
#[repr(C)]
pub(crate) struct RteMempool {
    _opaque: [u8; 0],
}

/// The first cache line of `struct rte_mbuf`; `shim/mbuf.c` asserts these offsets in C, the
/// assertions below in Rust.
#[repr(C)]
pub(crate) struct RteMbuf {
    pub buf_addr: *mut u8,
    _iova_or_next: u64,
    pub data_off: u16,
    _refcnt: u16,
    pub nb_segs: u16,
    _port: u16,
    pub ol_flags: u64,
    _packet_type: u32,
    pub pkt_len: u32,
    pub data_len: u16,
    _vlan_tci: u16,
    _hash: [u32; 2],
    _vlan_tci_outer: u16,
    pub buf_len: u16,
    _pool: *mut RteMempool,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(RteMbuf, buf_addr) == 0);
    assert!(offset_of!(RteMbuf, data_off) == 16);
    assert!(offset_of!(RteMbuf, nb_segs) == 20);
    assert!(offset_of!(RteMbuf, ol_flags) == 24);
    assert!(offset_of!(RteMbuf, pkt_len) == 36);
    assert!(offset_of!(RteMbuf, data_len) == 40);
    assert!(offset_of!(RteMbuf, buf_len) == 54);
    assert!(offset_of!(RteMbuf, _pool) == 56);
};

#[repr(C)]
pub(crate) struct PortInfo {
    pub name: [u8; 64],
    pub driver: [u8; 64],
    pub mac: [u8; 6],
    pub max_rx_queues: u16,
    pub max_tx_queues: u16,
    pub max_mtu: u16,
    pub numa: i32,
    pub if_index: u32,
}

#[repr(C)]
pub(crate) struct RawPortConfig {
    pub rx_queues: u16,
    pub tx_queues: u16,
    pub ring_size: u16,
    pub mtu: u16,
    pub rx_interrupts: u8,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct RawPortStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_missed: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_no_buffer: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct RawLink {
    pub mbps: u32,
    pub up: u8,
    pub full_duplex: u8,
}

pub(crate) type LogFn = extern "C" fn(level: u32, text: *const u8, len: usize);

unsafe extern "C" {
    pub(crate) fn fv_log_open(callback: LogFn) -> c_int;
    pub(crate) fn fv_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    pub(crate) fn fv_errno() -> c_int;
    pub(crate) fn fv_strerror(code: c_int) -> *const c_char;
    pub(crate) fn fv_version() -> *const c_char;
    pub(crate) fn fv_thread_register() -> c_int;
    pub(crate) fn fv_thread_unregister();
    pub(crate) fn fv_lcore_id() -> c_int;
    pub(crate) fn fv_cycles() -> u64;
    pub(crate) fn fv_cycles_hz() -> u64;

    pub(crate) fn fv_pool_create(
        name: *const c_char,
        count: u32,
        cache: u32,
        data_room: u16,
        numa: c_int,
    ) -> *mut RteMempool;
    pub(crate) fn fv_pool_available(pool: *const RteMempool) -> u32;
    pub(crate) fn fv_mbuf_alloc(pool: *mut RteMempool) -> *mut RteMbuf;
    pub(crate) fn fv_mbuf_alloc_bulk(
        pool: *mut RteMempool,
        mbufs: *mut *mut RteMbuf,
        count: u32,
    ) -> c_int;
    pub(crate) fn fv_mbuf_free(mbuf: *mut RteMbuf);
    pub(crate) fn fv_mbuf_free_bulk(mbufs: *mut *mut RteMbuf, count: u32);

    pub(crate) fn fv_device_probe(devargs: *const c_char) -> c_int;
    pub(crate) fn fv_port_matching(devargs: *const c_char, ids: *mut u16, capacity: u32) -> c_int;
    pub(crate) fn fv_port_info(port: u16, info: *mut PortInfo) -> c_int;
    pub(crate) fn fv_port_configure(
        port: u16,
        config: *const RawPortConfig,
        pool: *mut RteMempool,
    ) -> c_int;
    pub(crate) fn fv_port_start(port: u16) -> c_int;
    pub(crate) fn fv_port_stop(port: u16) -> c_int;
    pub(crate) fn fv_port_remove(port: u16) -> c_int;
    pub(crate) fn fv_port_promiscuous(port: u16, on: c_int) -> c_int;
    pub(crate) fn fv_port_stats(port: u16, stats: *mut RawPortStats) -> c_int;
    pub(crate) fn fv_port_stats_reset(port: u16) -> c_int;
    pub(crate) fn fv_port_link(port: u16, link: *mut RawLink) -> c_int;
    pub(crate) fn fv_port_mac(port: u16, mac: *mut u8) -> c_int;
    pub(crate) fn fv_port_mtu(port: u16, mtu: *mut u16) -> c_int;
    pub(crate) fn fv_rx_event_fd(port: u16, queue: u16) -> c_int;
    pub(crate) fn fv_rx_event_arm(port: u16, queue: u16, on: c_int) -> c_int;
    pub(crate) fn fv_rx_burst(
        port: u16,
        queue: u16,
        mbufs: *mut *mut RteMbuf,
        count: u16,
        linearised: *mut u64,
        dropped: *mut u64,
    ) -> u16;
    pub(crate) fn fv_tx_burst(port: u16, queue: u16, mbufs: *mut *mut RteMbuf, count: u16) -> u16;
}

/// The text of a positive or negative errno, DPDK's own included.
pub(crate) fn strerror(code: c_int) -> String {
    // SAFETY: rte_strerror returns a NUL-terminated string that lives for the program or in this
    // thread's own buffer; it is copied before anything else can be called.
    unsafe { std::ffi::CStr::from_ptr(fv_strerror(code)) }
        .to_string_lossy()
        .into_owned()
}

/// `rte_errno` of this thread.
pub(crate) fn errno() -> c_int {
    // SAFETY: reads a thread-local variable.
    unsafe { fv_errno() }
}

/// A NUL-padded field as text.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
