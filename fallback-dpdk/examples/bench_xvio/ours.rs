//! XVIO under the meter.

use crate::meter::Backend;
use dpdk::{BURST, MbufBurst, Mempool};
use std::error::Error;
use std::path::PathBuf;
use xvio::{BackendConfig, Offer, QueuePair, SocketMode, TxBurst};

/// Bytes of a packet that a switch would judge.
const HEAD: usize = 128;

/// One or two ports.
pub struct Ours {
    _ports: Vec<xvio::Backend>,
    pairs: Vec<QueuePair>,
    pool: Mempool,
    burst: TxBurst,
    packets: MbufBurst,
}

impl Ours {
    pub fn start(sockets: &[PathBuf], pool: Mempool) -> Result<Ours, Box<dyn Error>> {
        let (mut ports, mut pairs) = (Vec::new(), Vec::new());
        for socket in sockets {
            let mut port = xvio::Backend::start(BackendConfig {
                name: "bench".to_owned(),
                socket: socket.clone(),
                mode: SocketMode::Server,
                owner: None,
                group: None,
                permissions: 0o600,
                max_queue_pairs: 1,
                max_queue_size: 1024,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 9000,
                features: Offer::default(),
            })?;
            pairs.extend(port.take_queues());
            ports.push(port);
        }
        Ok(Ours {
            _ports: ports,
            pairs,
            pool,
            burst: TxBurst::new(),
            packets: MbufBurst::new(),
        })
    }
}

impl Backend for Ours {
    fn take(&mut self) -> usize {
        let tx = &mut self.pairs[0].tx;
        let count = tx.poll(&mut self.burst);
        if count == 0 || self.pool.alloc_burst(&mut self.packets, count) < count {
            return 0;
        }
        for (packet, mbuf) in self.burst.iter().zip(self.packets.iter_mut()) {
            let to = mbuf.append(packet.len()).expect("a packet fits");
            packet.copy_to(to).expect("the length is right");
        }
        tx.complete(&mut self.burst);
        self.packets.clear();
        count
    }

    fn give(&mut self) -> usize {
        let rx = &mut self.pairs[0].rx;
        let mut sent = 0;
        for packet in self.packets.iter() {
            if rx.send(&[packet.data()], None).is_err() {
                break;
            }
            sent += 1;
        }
        rx.flush();
        sent
    }

    fn pass(&mut self, from: usize, to: usize) -> usize {
        let count = self.pairs[from].tx.poll(&mut self.burst);
        if count == 0 {
            return 0;
        }
        let rx = &mut self.pairs[to].rx;
        for packet in self.burst.iter() {
            let mut head = [0; HEAD];
            let head = packet.head(&mut head);
            // A full ring is counted; the packet is lost, as on a wire.
            let _ = rx.forward(head, packet, head.len(), None);
        }
        rx.flush();
        self.pairs[from].tx.complete(&mut self.burst);
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
