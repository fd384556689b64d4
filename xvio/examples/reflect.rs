//! Sends every packet of a guest back to it, with the MAC addresses swapped: the smallest whole
//! user of the crate, for trying it alone with testpmd or QEMU.
//!
//! ```text
//! cargo run -p xvio --example reflect -- /tmp/reflect.sock [queue pairs] [client]
//! dpdk-testpmd -l 0,1 --no-pci --single-file-segments \
//!     --vdev net_virtio_user0,path=/tmp/reflect.sock -- --forward-mode=flowgen --auto-start
//! ```

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xvio::{Backend, BackendConfig, Offer, SocketMode, TxBurst};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments
        .next()
        .ok_or("usage: reflect SOCKET [QUEUE PAIRS] [client]")?;
    let pairs = arguments.next().map_or(Ok(1), |n| n.parse())?;
    let client = arguments.next().is_some_and(|mode| mode == "client");
    let mut backend = Backend::start(BackendConfig {
        name: "reflect".to_owned(),
        socket: PathBuf::from(socket),
        mode: if client {
            SocketMode::Client
        } else {
            SocketMode::Server
        },
        owner: None,
        group: None,
        permissions: 0o600,
        max_queue_pairs: pairs,
        max_queue_size: 1024,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 9000,
        features: Offer::default(),
    })?;
    backend.on_change(Box::new(|status| eprintln!("{status:?}")));
    let mut queues = backend.take_queues();
    let mut burst = TxBurst::new();
    let mut packet = vec![0u8; 65_600];
    let mut report = Instant::now();
    loop {
        let mut moved = 0;
        for pair in &mut queues {
            let count = pair.tx.poll(&mut burst);
            for taken in burst.iter() {
                let bytes = &mut packet[..taken.len()];
                if taken.copy_to(bytes).is_ok() {
                    let (dst, src) = bytes.split_at_mut(6);
                    dst.swap_with_slice(&mut src[..6]);
                    // A full ring is counted; the packet is lost, as on a wire.
                    let _ = pair.rx.send(&[bytes], taken.csum());
                }
            }
            pair.tx.complete(&mut burst);
            pair.rx.flush();
            moved += count;
        }
        if moved == 0 {
            sleep(Duration::from_micros(50));
        }
        if report.elapsed() > Duration::from_secs(1) {
            report = Instant::now();
            for (index, pair) in backend.counters().iter().enumerate() {
                let (tx, rx) = (pair.tx.snapshot(), pair.rx.snapshot());
                if tx.packets > 0 {
                    eprintln!("pair {index}: from the guest {tx:?}\n        to the guest {rx:?}");
                }
            }
        }
    }
}
