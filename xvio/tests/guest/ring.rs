//! The driver's side of one vring, split or packed, written as simply as possible.

use std::collections::VecDeque;

use vmm_sys_util::eventfd::EventFd;

use super::{Buffer, LOW, Memory};

/// The driver's side of one vring.
pub struct Ring {
    pub index: usize,
    pub size: u16,
    pub avail_idx: u16,
    pub used_seen: u16,
    free: Vec<u16>,
    /// Descriptors of a chain, by head.
    chains: Vec<Vec<u16>>,
    pub packed: bool,
    pub in_order: bool,
    /// Heads or buffer IDs that are with the device, in order.
    order: VecDeque<u16>,
    /// Packed: the next descriptor to make available, the next to be used, and the wrap counters.
    next: (u16, bool),
    used_next: (u16, bool),
    /// Packed: flags of chains' first descriptors that are not yet written.
    hidden: Vec<(u16, u16)>,
    /// Packed: descriptors that are with the device.
    slots: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Ring {
    pub fn new(index: usize, size: u16) -> Self {
        Self::with(index, size, false, false)
    }

    pub fn with(index: usize, size: u16, packed: bool, in_order: bool) -> Self {
        Ring {
            packed,
            in_order,
            order: VecDeque::new(),
            next: (0, true),
            used_next: (0, true),
            hidden: Vec::new(),
            slots: 0,
            index,
            size,
            avail_idx: 0,
            used_seen: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        }
    }

    /// What SET_VRING_BASE says at first.
    pub fn first_base(&self) -> u16 {
        u16::from(self.packed) << 15
    }

    pub fn desc(&self) -> u64 {
        LOW + 0x1_0000 * self.index as u64
    }

    pub fn avail(&self) -> u64 {
        self.desc() + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.desc() + 0x2000
    }

    fn table(&self, head: u16) -> u64 {
        self.desc() + 0x4000 + 512 * u64::from(head)
    }

    /// Writes descriptor `at` of a table.
    pub fn write_desc(memory: &Memory, table: u64, at: u16, d: (u64, u32, u16, u16)) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&d.0.to_le_bytes());
        raw[8..12].copy_from_slice(&d.1.to_le_bytes());
        raw[12..14].copy_from_slice(&d.2.to_le_bytes());
        raw[14..].copy_from_slice(&d.3.to_le_bytes());
        memory.write(table + 16 * u64::from(at), &raw);
    }

    /// Puts a head into the available ring, not yet visible.
    pub fn offer(&mut self, memory: &Memory, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        memory.write(self.avail() + 4 + 2 * slot, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Makes what was offered visible.
    pub fn expose(&mut self, memory: &Memory) {
        if self.packed {
            for (at, flags) in self.hidden.drain(..) {
                let place = self.index as u64 * 0x1_0000 + LOW + 16 * u64::from(at) + 14;
                memory.write(place, &flags.to_le_bytes());
            }
            return;
        }
        memory.write(self.avail() + 2, &self.avail_idx.to_le_bytes());
    }

    /// Adds a chain; its head, or `None` when the ring is full.
    pub fn add(
        &mut self,
        memory: &Memory,
        chain: &[Buffer],
        write: bool,
        indirect: bool,
    ) -> Option<u16> {
        if self.packed {
            return self.add_packed(memory, chain, write, indirect);
        }
        let w = if write { 2 } else { 0 };
        let count = if indirect { 1 } else { chain.len() };
        if self.free.len() < count {
            return None;
        }
        let list: Vec<u16> = (0..count).filter_map(|_| self.free.pop()).collect();
        let head = list[0];
        let table = if indirect {
            self.table(head)
        } else {
            self.desc()
        };
        for (i, &(address, len)) in chain.iter().enumerate() {
            let last = i + 1 == chain.len();
            let (at, next) = if indirect {
                (i as u16, i as u16 + 1)
            } else {
                (list[i], if last { 0 } else { list[i + 1] })
            };
            let flags = w | if last { 0 } else { 1 };
            Self::write_desc(memory, table, at, (address, len, flags, next));
        }
        if indirect {
            let len = 16 * chain.len() as u32;
            Self::write_desc(memory, self.desc(), head, (table, len, 4, 0));
        }
        self.chains[usize::from(head)] = list;
        self.order.push_back(head);
        self.offer(memory, head);
        Some(head)
    }

    fn add_packed(
        &mut self,
        memory: &Memory,
        chain: &[Buffer],
        write: bool,
        indirect: bool,
    ) -> Option<u16> {
        let w = if write { 2 } else { 0 };
        let count = if indirect { 1 } else { chain.len() };
        if usize::from(self.size - self.slots) < count {
            return None;
        }
        let id = self.free.pop()?;
        let table = self.table(id);
        let mut entries: Vec<(u64, u32, u16)> = chain
            .iter()
            .enumerate()
            .map(|(i, &(address, len))| (address, len, w | u16::from(i + 1 < chain.len())))
            .collect();
        if indirect {
            for (i, &(address, len, flags)) in entries.iter().enumerate() {
                // In a table only WRITE means something.
                Self::write_desc(memory, table, i as u16, (address, len, 77, flags & 2));
            }
            entries = vec![(table, 16 * chain.len() as u32, 4)];
        }
        for (i, (address, len, flags)) in entries.into_iter().enumerate() {
            let (at, wrap) = self.next;
            let flags = flags | if wrap { 1 << 7 } else { 1 << 15 };
            if i == 0 {
                // As it was: used in the round before, or never.
                let old = if wrap { 0 } else { 1 << 7 | 1 << 15 };
                Self::write_desc(memory, self.desc(), at, (address, len, id, old));
                self.hidden.push((at, flags));
            } else {
                Self::write_desc(memory, self.desc(), at, (address, len, id, flags));
            }
            self.next = self.step(self.next, 1);
        }
        self.slots += count as u16;
        self.chains[usize::from(id)] = vec![0; count];
        self.order.push_back(id);
        Some(id)
    }

    fn step(&self, (at, wrap): (u16, bool), by: usize) -> (u16, bool) {
        let at = usize::from(at) + by;
        match at.checked_sub(self.size.into()) {
            Some(at) => (at as u16, !wrap),
            None => (at as u16, wrap),
        }
    }

    /// Where a packed ring is: what VRING_BASE has in each half.
    pub fn place(&self) -> u16 {
        self.used_next.0 | u16::from(self.used_next.1) << 15
    }

    /// What came back up to `id`: that one, and in-order all that were given before it.
    fn returned(&mut self, id: u16, len: u32, taken: &mut Vec<(u16, u32)>) -> (usize, usize) {
        let (mut entries, mut slots) = (0, 0);
        loop {
            let head = match self.in_order {
                true => self.order.pop_front().expect("a buffer that is not in use"),
                false => id,
            };
            let list = std::mem::take(&mut self.chains[usize::from(head)]);
            assert!(
                !list.is_empty(),
                "head {head} was given back but not in use"
            );
            entries += 1;
            slots += list.len();
            match self.packed {
                true => self.free.push(head),
                false => self.free.extend(list),
            }
            taken.push((head, if head == id { len } else { 0 }));
            if head == id {
                return (entries, slots);
            }
        }
    }

    fn take_used_packed(&mut self, memory: &Memory) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        loop {
            let (at, wrap) = self.used_next;
            let raw = memory.read(self.desc() + 16 * u64::from(at) + 8, 8);
            let flags = u16::from_le_bytes([raw[6], raw[7]]);
            let both = if wrap { 1 << 7 | 1 << 15 } else { 0 };
            if self.slots == 0 || flags & (1 << 7 | 1 << 15) != both {
                return taken;
            }
            let len = u32::from_le_bytes(raw[..4].try_into().unwrap());
            let id = u16::from_le_bytes([raw[4], raw[5]]);
            let (_, slots) = self.returned(id, len, &mut taken);
            self.slots -= slots as u16;
            self.used_next = self.step(self.used_next, slots);
        }
    }

    /// Takes what the device has given back: heads and lengths.
    pub fn take_used(&mut self, memory: &Memory) -> Vec<(u16, u32)> {
        if self.packed {
            return self.take_used_packed(memory);
        }
        let mut taken = Vec::new();
        let until = memory.u16(self.used() + 2);
        while self.used_seen != until {
            let slot = u64::from(self.used_seen % self.size);
            let raw = memory.read(self.used() + 4 + 8 * slot, 8);
            let head = u32::from_le_bytes(raw[..4].try_into().unwrap()) as u16;
            let len = u32::from_le_bytes(raw[4..].try_into().unwrap());
            let (entries, _) = self.returned(head, len, &mut taken);
            self.used_seen = self.used_seen.wrapping_add(entries as u16);
        }
        taken
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}
