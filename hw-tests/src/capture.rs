//! What went over a link: tcpdump while it runs, and its file afterwards.

use crate::command;
use crate::netns::Netns;
use crate::process::Daemon;
use crate::run::Run;
use anyhow::{Context, Result, bail};
use flow::key::Fragment;
use flow::{PortId, checksum};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A capture in progress.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Captures whole packets on `interface` that fit `filter` (pcap-filter(7)).
    pub fn start(run: &Run, netns: &Netns, interface: &str, filter: &str) -> Result<Capture> {
        let name = format!("capture-{interface}");
        let file = run.subdir("captures")?.join(format!("{name}.pcap"));
        let _ = std::fs::remove_file(&file);
        let mut command = netns.command("tcpdump");
        command
            .args([
                "-i", interface, "-U", "-n", "-s", "0", "-B", "8192", "-Z", "root", "-w",
            ])
            .arg(&file)
            .arg(filter);
        let tcpdump = Daemon::start(run, &name, &mut command)?;
        // It writes the file's header once it listens.
        command::wait_for("the start of tcpdump", Duration::from_secs(10), || {
            tcpdump.check()?;
            if std::fs::metadata(&file).map_or(0, |m| m.len()) < 24 {
                bail!("the file has no header yet")
            }
            Ok(())
        })?;
        Ok(Capture { tcpdump, file })
    }

    /// Ends it and returns the packets.
    pub fn finish(self) -> Result<Vec<Vec<u8>>> {
        std::thread::sleep(Duration::from_millis(300));
        drop(self.tcpdump);
        read(&self.file)
    }
}

/// Reads a file in tcpdump's format (pcap, microseconds or nanoseconds, little-endian).
pub fn read(file: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(file)
        .with_context(|| format!("The capture \"{}\" cannot be read", file.display()))?;
    parse(&bytes).with_context(|| format!("The capture \"{}\" cannot be used", file.display()))
}

fn parse(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    if !matches!(word(0), Some(0xa1b2_c3d4 | 0xa1b2_3c4d)) {
        bail!("It is not a pcap file");
    }
    let mut packets = Vec::new();
    let mut at = 24;
    // A record that was cut off by the end of tcpdump is left out.
    while let (Some(stored), Some(real)) = (word(at + 8), word(at + 12)) {
        let Some(packet) = bytes.get(at + 16..at + 16 + stored) else {
            break;
        };
        if stored != real {
            bail!("A packet of {real} bytes was captured with only {stored}");
        }
        packets.push(packet.to_vec());
        at += 16 + stored;
    }
    Ok(packets)
}

/// What the guests' packets in a capture of the underlay were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inner {
    /// VXLAN packets.
    pub vxlan: usize,
    /// TCP segments in them with a right checksum.
    pub tcp: usize,
    /// UDP datagrams in them with a right checksum.
    pub udp: usize,
    /// Packets whose TCP or UDP checksum is wrong, as text.
    pub wrong: Vec<String>,
    /// The longest inner IP packet, bytes.
    pub longest: usize,
}

/// Checks the transport checksum of every guest packet in VXLAN.
pub fn check_checksums(packets: &[Vec<u8>]) -> Inner {
    let mut seen = Inner::default();
    for packet in packets {
        let Ok(parsed) = flow::parse::parse_tunnel(packet, PortId::UPLINK) else {
            continue;
        };
        if parsed.key.tunnel.is_none() {
            continue;
        }
        seen.vxlan += 1;
        seen.longest = seen.longest.max(parsed.ip_len);
        let key = &parsed.key;
        // Fragments carry a part of what the checksum covers.
        if key.fragment != Fragment::No || !matches!(key.protocol, 6 | 17) {
            continue;
        }
        let Some(segment) = packet.get(parsed.l4..parsed.ip_end()) else {
            continue;
        };
        let sum = checksum::pseudo_header(
            key.ip_src.to_ip(),
            key.ip_dst.to_ip(),
            key.protocol,
            segment.len(),
        )
        .bytes(segment)
        .finish();
        match (sum, key.protocol) {
            (0, 6) => seen.tcp += 1,
            (0, _) => seen.udp += 1,
            (wrong, _) => seen.wrong.push(format!("{key:?} sums up to {wrong:#06x}")),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_cut_off_is_left_out() {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1];
        file.extend([0; 20]);
        for _ in 0..2 {
            file.extend([0; 8]);
            file.extend(3u32.to_le_bytes());
            file.extend(3u32.to_le_bytes());
            file.extend([1, 2, 3]);
        }
        assert_eq!(parse(&file).unwrap().len(), 2);
        file.pop();
        assert_eq!(parse(&file).unwrap(), [[1, 2, 3]]);
        assert!(parse(b"nonsense").is_err());
    }
}
