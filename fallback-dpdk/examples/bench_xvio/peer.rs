//! DPDK's vhost library under the meter: the very calls that its `net_vhost` driver makes. Built on no code
//! of ours but the mempool and the EAL.

use crate::meter::Backend;
use dpdk::{BURST, Mbuf, MbufBurst, Mempool};
use std::error::Error;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};

/// Virtqueues of a queue pair (rte_vhost.h): the guest receives on 0 and transmits on 1.
const VIRTIO_RXQ: u16 = 0;
const VIRTIO_TXQ: u16 = 1;

/// `struct rte_vhost_device_ops` (rte_vhost.h).
#[repr(C)]
struct DeviceOps {
    new_device: Option<extern "C" fn(c_int) -> c_int>,
    destroy_device: Option<extern "C" fn(c_int)>,
    vring_state_changed: Option<extern "C" fn(c_int, u16, c_int) -> c_int>,
    features_changed: Option<extern "C" fn(c_int, u64) -> c_int>,
    new_connection: Option<extern "C" fn(c_int) -> c_int>,
    destroy_connection: Option<extern "C" fn(c_int)>,
    guest_notified: Option<extern "C" fn(c_int)>,
    reserved: usize,
}

unsafe extern "C" {
    fn rte_vhost_driver_register(path: *const c_char, flags: u64) -> c_int;
    fn rte_vhost_driver_callback_register(path: *const c_char, ops: *const DeviceOps) -> c_int;
    fn rte_vhost_driver_start(path: *const c_char) -> c_int;
    fn rte_vhost_enqueue_burst(
        vid: c_int,
        queue: u16,
        packets: *const *const c_void,
        count: u16,
    ) -> u16;
    fn rte_vhost_dequeue_burst(
        vid: c_int,
        queue: u16,
        pool: *mut c_void,
        packets: *mut *mut c_void,
        count: u16,
    ) -> u16;
    fn rte_vhost_enable_guest_notification(vid: c_int, queue: u16, enable: c_int) -> c_int;
    fn rte_pktmbuf_free_bulk(packets: *mut *mut c_void, count: c_uint);
}

/// Device numbers in the order in which they came up; -1: not yet.
static DEVICES: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];

extern "C" fn new_device(vid: c_int) -> c_int {
    for queue in [VIRTIO_RXQ, VIRTIO_TXQ] {
        // SAFETY: the library has just said that the device exists. We poll.
        unsafe { rte_vhost_enable_guest_notification(vid, queue, 0) };
    }
    for device in &DEVICES {
        if device
            .compare_exchange(-1, vid, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            break;
        }
    }
    0
}

extern "C" fn destroy_device(vid: c_int) {
    for device in &DEVICES {
        let _ = device.compare_exchange(vid, -1, Ordering::AcqRel, Ordering::Relaxed);
    }
}

static OPS: DeviceOps = DeviceOps {
    new_device: Some(new_device),
    destroy_device: Some(destroy_device),
    vring_state_changed: None,
    features_changed: None,
    new_connection: None,
    destroy_connection: None,
    guest_notified: None,
    reserved: 0,
};

/// The pool an mbuf is from: the pointer at byte 56 of `struct rte_mbuf` (rte_mbuf_core.h), as the shim
/// of the crate `dpdk` asserts.
fn pool_of(mbuf: &Mbuf) -> *mut c_void {
    const { assert!(size_of::<Mbuf>() == size_of::<*const c_void>()) };
    // SAFETY: an `Mbuf` is a pointer to an mbuf, and nothing else; the mbuf is alive.
    unsafe {
        let raw: *const u8 = std::mem::transmute_copy(mbuf);
        raw.add(56).cast::<*mut c_void>().read()
    }
}

/// One or two ports.
pub struct Peer {
    pool: Mempool,
    raw_pool: *mut c_void,
    packets: MbufBurst,
}

impl Peer {
    pub fn start(sockets: &[PathBuf], pool: Mempool) -> Result<Peer, Box<dyn Error>> {
        let raw_pool = pool_of(&pool.alloc().ok_or("no mbuf")?);
        for socket in sockets {
            let path = CString::new(socket.to_str().ok_or("a path that is no text")?)?;
            // SAFETY: the path ends in 0 and is copied; the callbacks live as long as the process.
            let done = unsafe {
                rte_vhost_driver_register(path.as_ptr(), 0) == 0
                    && rte_vhost_driver_callback_register(path.as_ptr(), &raw const OPS) == 0
                    && rte_vhost_driver_start(path.as_ptr()) == 0
            };
            if !done {
                return Err("DPDK's vhost library did not take the socket".into());
            }
        }
        Ok(Peer {
            pool,
            raw_pool,
            packets: MbufBurst::new(),
        })
    }

    fn dequeue(&self, device: usize, packets: &mut [*mut c_void; BURST]) -> usize {
        let vid = DEVICES[device].load(Ordering::Relaxed);
        if vid < 0 {
            return 0;
        }
        // SAFETY: the device exists, and there is room for as many packets as are asked for.
        let count = unsafe {
            rte_vhost_dequeue_burst(
                vid,
                VIRTIO_TXQ,
                self.raw_pool,
                packets.as_mut_ptr(),
                BURST as u16,
            )
        };
        count.into()
    }
}

fn enqueue(device: usize, packets: *const *const c_void, count: usize) -> usize {
    let vid = DEVICES[device].load(Ordering::Relaxed);
    if vid < 0 {
        return 0;
    }
    // SAFETY: the device exists, and the packets are the caller's; they are copied.
    unsafe { rte_vhost_enqueue_burst(vid, VIRTIO_RXQ, packets, count as u16) }.into()
}

impl Backend for Peer {
    fn take(&mut self) -> usize {
        let mut packets = [std::ptr::null_mut(); BURST];
        let count = self.dequeue(0, &mut packets);
        if count > 0 {
            // SAFETY: the library has given us these packets.
            unsafe { rte_pktmbuf_free_bulk(packets.as_mut_ptr(), count as c_uint) };
        }
        count
    }

    fn give(&mut self) -> usize {
        let packets: &[Mbuf] = self.packets.as_slice();
        // An `Mbuf` is a pointer to an mbuf, and nothing else.
        const { assert!(size_of::<Mbuf>() == size_of::<*const c_void>()) };
        enqueue(0, packets.as_ptr().cast(), packets.len())
    }

    fn pass(&mut self, from: usize, to: usize) -> usize {
        let mut packets = [std::ptr::null_mut(); BURST];
        let count = self.dequeue(from, &mut packets);
        if count > 0 {
            enqueue(to, packets.as_ptr().cast(), count);
            // SAFETY: as in `take`; what was sent was copied.
            unsafe { rte_pktmbuf_free_bulk(packets.as_mut_ptr(), count as c_uint) };
        }
        count
    }

    fn prepare(&mut self, size: usize) {
        self.packets.clear();
        if size == 0 {
            return;
        }
        self.pool.alloc_burst(&mut self.packets, BURST);
        for mbuf in self.packets.iter_mut() {
            mbuf.append(size).expect("a packet fits").fill(0x5a);
        }
    }
}
