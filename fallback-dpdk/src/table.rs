//! The flow table of one worker: exact match, bounded, aged, fair between ports.
//!
//! Entries live in a slab that never moves; a chained hash index finds them by key, and a list for
//! each input port holds them in the order of their arrival. One worker owns the table, so there is
//! nothing to lock. A lookup touches one word of the index and one entry; [`FlowTable::prefetch`]
//! lets a burst overlap those misses.
//!
//! **Bounds.** There are never more than `capacity` entries. When the table is full, the new entry
//! displaces one of its own port if that port holds its fair share (`capacity / ports`) or more, and
//! one of the port with the most entries otherwise. So a guest that scans a network displaces its own
//! flows, and a port below its share loses nothing to others. Within a port the victim is the oldest
//! entry that has not been used since it was last looked at (CLOCK), looking at no more than
//! [`SECOND_CHANCES`] entries.
//!
//! **Hash.** The index is keyed with random seeds of the process: a guest cannot aim at one chain.

use flow::{Action, FlowKey, PortId};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// No entry: the end of a chain or list.
const NIL: u32 = u32::MAX;

/// How many recently used entries an eviction passes over before it takes one regardless.
pub(crate) const SECOND_CHANCES: usize = 8;

/// An action list with what the executor wants to know of it, found once at installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) actions: Box<[Action]>,
    /// A partial checksum may travel with the packet: no step reads or mends a checksum.
    pub(crate) keeps_partial: bool,
    /// Some step may stop with a punt, and the smallest MTU that is checked.
    pub(crate) checks_ttl: bool,
    pub(crate) smallest_mtu: u16,
}

impl Program {
    pub(crate) fn new(actions: Vec<Action>) -> Self {
        let keeps_partial = actions.iter().all(|action| {
            matches!(
                action,
                Action::SetEthSrc(_)
                    | Action::SetEthDst(_)
                    | Action::DecTtl
                    | Action::CheckMtu(_)
                    | Action::Output(_)
            )
        });
        let checks_ttl = actions.contains(&Action::DecTtl);
        let smallest_mtu = actions
            .iter()
            .filter_map(|action| match action {
                Action::CheckMtu(mtu) => Some(*mtu),
                _ => None,
            })
            .min()
            .unwrap_or(u16::MAX);
        Program {
            actions: actions.into(),
            keeps_partial,
            checks_ttl,
            smallest_mtu,
        }
    }
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: FlowKey,
    pub(crate) program: Program,
    /// The router that compiled it; another epoch means it is compiled again before use.
    pub(crate) epoch: u64,
    /// When it was installed and last used, in the worker's ticks.
    pub(crate) born: u64,
    pub(crate) used: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    hash: u32,
    /// Next entry of the same hash chain.
    chain: u32,
    /// Neighbours in the port's list.
    older: u32,
    newer: u32,
    /// Used since an eviction last looked at it.
    referenced: bool,
}

enum Slot {
    Used(Entry),
    /// The next free slot.
    Free(u32),
}

/// The entries of one input port, oldest first.
#[derive(Clone, Copy, Debug)]
struct PortFlows {
    oldest: u32,
    newest: u32,
    count: usize,
}

/// Where an entry is. Valid until the table is next changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle(u32);

/// See the module's documentation.
pub(crate) struct FlowTable {
    heads: Box<[u32]>,
    slots: Vec<Slot>,
    free: u32,
    len: usize,
    capacity: usize,
    ports: HashMap<PortId, PortFlows>,
    seeds: [u64; 4],
    /// Where the sweep goes on.
    cursor: usize,
    /// Entries displaced by newer ones, since the start.
    pub(crate) evicted: u64,
    /// Entries that aged out, since the start.
    pub(crate) expired: u64,
}

impl FlowTable {
    /// An empty table for at most `capacity` flows (at least one).
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, NIL as usize - 1);
        Self::with_chains(capacity, capacity.next_power_of_two())
    }

    /// `chains` is a power of two; few make collisions, for tests.
    fn with_chains(capacity: usize, chains: usize) -> Self {
        let random = std::collections::hash_map::RandomState::new();
        let seed = |n: u64| {
            let mut hasher = random.build_hasher();
            hasher.write_u64(n);
            hasher.finish()
        };
        FlowTable {
            heads: vec![NIL; chains].into(),
            slots: Vec::with_capacity(capacity),
            free: NIL,
            len: 0,
            capacity,
            ports: HashMap::new(),
            seeds: [seed(1), seed(2), seed(3), seed(4)],
            cursor: 0,
            evicted: 0,
            expired: 0,
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The most flows that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Slots in use or free, the range of [`FlowTable::at`].
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry in a slot, for a dump.
    pub(crate) fn at(&self, slot: usize) -> Option<&Entry> {
        match self.slots.get(slot) {
            Some(Slot::Used(entry)) => Some(entry),
            _ => None,
        }
    }

    /// Lets a port install flows.
    pub(crate) fn add_port(&mut self, port: PortId) {
        self.ports.entry(port).or_insert(PortFlows {
            oldest: NIL,
            newest: NIL,
            count: 0,
        });
    }

    /// Removes up to `budget` flows of a port, and the port with the last of them: then true.
    pub(crate) fn remove_port(&mut self, port: PortId, budget: usize) -> bool {
        for _ in 0..budget {
            match self.ports.get(&port) {
                None => return true,
                Some(flows) if flows.oldest == NIL => {
                    self.ports.remove(&port);
                    return true;
                }
                Some(flows) => self.remove(Handle(flows.oldest)),
            }
        }
        false
    }

    /// The hash of a key under this table's seeds.
    pub(crate) fn hash(&self, key: &FlowKey) -> u32 {
        let mut words = [0u64; 12];
        let pair = |hi: u32, lo: u32| u64::from(hi) << 32 | u64::from(lo);
        let mac = |m: &[u8; 6]| u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]]);
        let halves = |a: &[u8; 16]| {
            let whole = u128::from_be_bytes(*a);
            [(whole >> 64) as u64, whole as u64]
        };
        words[0] = pair(key.in_port.0, key.tunnel.vni);
        [words[1], words[2]] = halves(&key.tunnel.src.0);
        [words[3], words[4]] = halves(&key.tunnel.dst.0);
        [words[5], words[6]] = halves(&key.ip_src.0);
        [words[7], words[8]] = halves(&key.ip_dst.0);
        words[9] = mac(&key.eth_src.0) | u64::from(key.ethertype) << 48;
        words[10] = mac(&key.eth_dst.0) | u64::from(key.vlan) << 48;
        words[11] = u64::from(key.src_port) << 32
            | u64::from(key.dst_port) << 16
            | u64::from(key.protocol) << 8
            | key.fragment as u64;
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product >> 64) as u64 ^ product as u64
        };
        let mut state = self.seeds[0];
        for pair in words.chunks_exact(2) {
            state = fold(pair[0] ^ self.seeds[1] ^ state, pair[1] ^ self.seeds[2])
                ^ state.rotate_left(23);
        }
        let last = fold(state ^ self.seeds[3], self.seeds[1] | 1);
        (last >> 32) as u32 ^ last as u32
    }

    fn head(&self, hash: u32) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    /// Asks the processor for the index word of a hash.
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch(&self.heads[self.head(hash)]);
    }

    /// Asks the processor for the first entry of a hash's chain.
    pub(crate) fn prefetch_entry(&self, hash: u32) {
        if let Some(slot) = self.slots.get(self.heads[self.head(hash)] as usize) {
            prefetch(slot);
        }
    }

    /// The flow with this key.
    pub(crate) fn find(&self, hash: u32, key: &FlowKey) -> Option<Handle> {
        let mut at = self.heads[self.head(hash)];
        while let Some(Slot::Used(entry)) = self.slots.get(at as usize) {
            if entry.hash == hash && entry.key == *key {
                return Some(Handle(at));
            }
            at = entry.chain;
        }
        None
    }

    /// The flow behind a handle that [`FlowTable::find`] or [`FlowTable::insert`] has just given.
    pub(crate) fn get(&self, handle: Handle) -> &Entry {
        self.entry(handle.0)
    }

    /// Counts a packet and keeps the flow young.
    pub(crate) fn touch(&mut self, handle: Handle, now: u64, bytes: u64) {
        let entry = self.entry_mut(handle.0);
        entry.used = now;
        entry.referenced = true;
        entry.packets += 1;
        entry.bytes += bytes;
    }

    /// A new program for a flow, of a new epoch. Its counters stay.
    pub(crate) fn replace(&mut self, handle: Handle, epoch: u64, program: Program) {
        let entry = self.entry_mut(handle.0);
        entry.epoch = epoch;
        entry.program = program;
    }

    /// Installs a flow, or replaces the program of one with the same key. `None` where the input port
    /// is not (or no longer) of this table.
    pub(crate) fn insert(
        &mut self,
        hash: u32,
        key: FlowKey,
        epoch: u64,
        program: Program,
        now: u64,
    ) -> Option<Handle> {
        if let Some(handle) = self.find(hash, &key) {
            self.replace(handle, epoch, program);
            return Some(handle);
        }
        self.ports.get(&key.in_port)?;
        if self.len == self.capacity {
            self.evict_for(key.in_port);
        }
        let head = self.head(hash);
        let newest = self.ports.get(&key.in_port)?.newest;
        let entry = Entry {
            key,
            program,
            epoch,
            born: now,
            used: now,
            packets: 0,
            bytes: 0,
            hash,
            chain: self.heads[head],
            older: newest,
            newer: NIL,
            referenced: false,
        };
        let at = match self.slots.get(self.free as usize) {
            Some(Slot::Free(next)) => {
                let at = self.free;
                self.free = *next;
                self.slots[at as usize] = Slot::Used(entry);
                at
            }
            _ => {
                self.slots.push(Slot::Used(entry));
                (self.slots.len() - 1) as u32
            }
        };
        self.heads[head] = at;
        self.append(at, key.in_port);
        self.len += 1;
        Some(Handle(at))
    }

    /// Removes a flow.
    pub(crate) fn remove(&mut self, handle: Handle) {
        let at = handle.0;
        let entry = self.entry(at);
        let (hash, chain, port) = (entry.hash, entry.chain, entry.key.in_port);
        self.unlink(at, port);
        let head = self.head(hash);
        if self.heads[head] == at {
            self.heads[head] = chain;
        } else {
            let mut before = self.heads[head];
            while self.entry(before).chain != at {
                before = self.entry(before).chain;
            }
            self.entry_mut(before).chain = chain;
        }
        self.slots[at as usize] = Slot::Free(self.free);
        self.free = at;
        self.len -= 1;
    }

    /// Looks at the next `budget` slots and removes the flows that were last used `idle` ticks ago or
    /// longer. Returns how many went.
    pub(crate) fn sweep(&mut self, now: u64, idle: u64, budget: usize) -> usize {
        let mut removed = 0;
        for _ in 0..budget.min(self.slots.len()) {
            if self.cursor >= self.slots.len() {
                self.cursor = 0;
            }
            let at = self.cursor;
            self.cursor += 1;
            if let Some(Slot::Used(entry)) = self.slots.get(at)
                && now.saturating_sub(entry.used) >= idle
            {
                self.remove(Handle(at as u32));
                removed += 1;
            }
        }
        self.expired += removed as u64;
        removed
    }

    /// Makes room for a flow of `port`; the table is full.
    fn evict_for(&mut self, port: PortId) {
        let fair = self.capacity / self.ports.len().max(1);
        let own = self.ports.get(&port).map_or(0, |flows| flows.count);
        let victim = if own > 0 && own >= fair {
            port
        } else {
            let largest = self
                .ports
                .iter()
                .max_by_key(|(id, flows)| (flows.count, id.0));
            largest.map_or(port, |(id, _)| *id)
        };
        for _ in 0..SECOND_CHANCES {
            let Some(flows) = self.ports.get(&victim).filter(|flows| flows.oldest != NIL) else {
                return;
            };
            let at = flows.oldest;
            if !std::mem::take(&mut self.entry_mut(at).referenced) {
                break;
            }
            self.unlink(at, victim);
            self.append(at, victim);
        }
        if let Some(flows) = self.ports.get(&victim).filter(|flows| flows.oldest != NIL) {
            let oldest = flows.oldest;
            self.remove(Handle(oldest));
            self.evicted += 1;
        }
    }

    /// Takes an entry out of its port's list.
    fn unlink(&mut self, at: u32, port: PortId) {
        let entry = self.entry(at);
        let (older, newer) = (entry.older, entry.newer);
        if older != NIL {
            self.entry_mut(older).newer = newer;
        }
        if newer != NIL {
            self.entry_mut(newer).older = older;
        }
        if let Some(flows) = self.ports.get_mut(&port) {
            flows.count -= 1;
            if flows.oldest == at {
                flows.oldest = newer;
            }
            if flows.newest == at {
                flows.newest = older;
            }
        }
    }

    /// Puts an entry at the young end of its port's list.
    fn append(&mut self, at: u32, port: PortId) {
        let Some(flows) = self.ports.get_mut(&port) else {
            return;
        };
        let newest = std::mem::replace(&mut flows.newest, at);
        if newest == NIL {
            flows.oldest = at;
        }
        flows.count += 1;
        if newest != NIL {
            self.entry_mut(newest).newer = at;
        }
        let entry = self.entry_mut(at);
        entry.older = newest;
        entry.newer = NIL;
    }

    fn entry(&self, at: u32) -> &Entry {
        match &self.slots[at as usize] {
            Slot::Used(entry) => entry,
            Slot::Free(_) => unreachable!("the index and the lists name used slots only"),
        }
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        match &mut self.slots[at as usize] {
            Slot::Used(entry) => entry,
            Slot::Free(_) => unreachable!("the index and the lists name used slots only"),
        }
    }
}

/// A hint; no-op where the processor has none.
fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally, and the address is that of a live reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
