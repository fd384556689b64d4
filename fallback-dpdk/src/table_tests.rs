//! Tests of the flow table: a model that is a `HashMap`, and the fairness rules.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn key(port: u32, flow: u16) -> FlowKey {
    FlowKey {
        in_port: PortId(port),
        src_port: flow,
        protocol: 17,
        ..FlowKey::default()
    }
}

fn program(out: u32) -> Program {
    Program::new(vec![Action::Output(PortId(out))])
}

/// Checks everything that must hold between any two calls.
fn check(table: &FlowTable) {
    let used = table
        .slots
        .iter()
        .filter(|slot| matches!(slot, Slot::Used(_)))
        .count();
    assert_eq!(used, table.len);
    assert!(table.len <= table.capacity);
    let mut listed = 0;
    for (port, flows) in &table.ports {
        let (mut at, mut before, mut count) = (flows.oldest, NIL, 0);
        while at != NIL {
            let entry = table.entry(at);
            assert_eq!(entry.key.in_port, *port);
            assert_eq!(entry.older, before);
            before = at;
            at = entry.newer;
            count += 1;
        }
        assert_eq!(flows.newest, before);
        assert_eq!(flows.count, count);
        listed += count;
    }
    assert_eq!(listed, table.len);
    let mut chained = 0;
    for head in &table.heads {
        let mut at = *head;
        while at != NIL {
            chained += 1;
            at = table.entry(at).chain;
        }
    }
    assert_eq!(chained, table.len);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u16, u32),
    Use(u32, u16),
    Remove(u32, u16),
    Sweep(usize),
    RemovePort(u32, usize),
    AddPort(u32),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = 0..3u32;
    let flow = 0..24u16;
    let step = prop_oneof![
        6 => (port.clone(), flow.clone(), 0..4u32).prop_map(|(p, f, o)| Step::Insert(p, f, o)),
        6 => (port.clone(), flow.clone()).prop_map(|(p, f)| Step::Use(p, f)),
        2 => (port.clone(), flow).prop_map(|(p, f)| Step::Remove(p, f)),
        2 => (0..40usize).prop_map(Step::Sweep),
        1 => (port.clone(), 1..20usize).prop_map(|(p, n)| Step::RemovePort(p, n)),
        1 => port.prop_map(Step::AddPort),
        2 => (1..50u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..300)
}

const IDLE: u64 = 100;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against a HashMap of what was installed: whatever the table finds is what the model holds, with
    /// its counters; whatever it does not find was evicted, and only a full table evicts. Hashes are cut
    /// to a few values, so that chains are long and full hash collisions happen.
    #[test]
    fn the_table_agrees_with_a_map(steps in steps(), capacity in 1..40usize, chains in 0..3u32, cut in 0..4u32) {
        let mut table = FlowTable::with_chains(capacity, 1 << chains);
        let mut model: HashMap<FlowKey, (Program, u64, u64)> = HashMap::new();
        let mut ports = [true; 3];
        for port in 0..3 {
            table.add_port(PortId(port));
        }
        let mut now = 0;
        for step in steps {
            let evicted = table.evicted;
            match step {
                Step::Insert(p, f, o) => {
                    let key = key(p, f);
                    let hash = table.hash(&key) & cut;
                    let full = table.len() == capacity;
                    let known = model.contains_key(&key);
                    let done = table.insert(hash, key, 1, program(o), now);
                    prop_assert_eq!(done.is_some(), ports[p as usize] || known);
                    if done.is_some() {
                        let (_, packets, used) = model.get(&key).cloned().unwrap_or((program(o), 0, now));
                        model.insert(key, (program(o), packets, used));
                    }
                    prop_assert_eq!(table.evicted - evicted, u64::from(full && !known && done.is_some()));
                    if table.evicted != evicted {
                        let gone: Vec<_> = model.keys().copied()
                            .filter(|k| table.find(table.hash(k) & cut, k).is_none()).collect();
                        prop_assert_eq!(gone.len(), 1);
                        model.remove(&gone[0]);
                    }
                }
                Step::Use(p, f) => {
                    let key = key(p, f);
                    let found = table.find(table.hash(&key) & cut, &key);
                    prop_assert_eq!(found.is_some(), model.contains_key(&key));
                    if let (Some(handle), Some(entry)) = (found, model.get_mut(&key)) {
                        table.touch(handle, now, 10);
                        entry.1 += 1;
                        entry.2 = now;
                    }
                }
                Step::Remove(p, f) => {
                    let key = key(p, f);
                    if let Some(handle) = table.find(table.hash(&key) & cut, &key) {
                        table.remove(handle);
                    }
                    model.remove(&key);
                }
                Step::Sweep(budget) => {
                    table.sweep(now, IDLE, budget);
                    model.retain(|key, (_, _, used)| {
                        table.find(table.hash(key) & cut, key).is_some() || now - *used < IDLE
                    });
                    if budget >= capacity {
                        model.retain(|_, (_, _, used)| now - *used < IDLE);
                    }
                }
                Step::RemovePort(p, budget) => {
                    let done = table.remove_port(PortId(p), budget);
                    model.retain(|key, _| {
                        key.in_port != PortId(p) || table.find(table.hash(key) & cut, key).is_some()
                    });
                    if done {
                        prop_assert!(!model.keys().any(|key| key.in_port == PortId(p)));
                        ports[p as usize] = false;
                    }
                }
                Step::AddPort(p) => {
                    table.add_port(PortId(p));
                    ports[p as usize] = true;
                }
                Step::Pass(ticks) => now += ticks,
            }
            check(&table);
            prop_assert_eq!(table.len(), model.len());
            for (key, (program, packets, used)) in &model {
                let entry = table.get(table.find(table.hash(key) & cut, key).expect("the model has it"));
                prop_assert_eq!(&entry.program, program);
                prop_assert_eq!((entry.packets, entry.bytes, entry.used), (*packets, packets * 10, *used));
            }
        }
    }
}

#[test]
fn a_scanning_port_displaces_only_its_own_flows() {
    let mut table = FlowTable::new(100);
    for port in 0..4 {
        table.add_port(PortId(port));
    }
    for flow in 0..25 {
        let key = key(1, flow);
        table
            .insert(table.hash(&key), key, 1, program(0), 0)
            .unwrap();
    }
    for flow in 0..10_000 {
        let key = key(2, flow);
        table
            .insert(table.hash(&key), key, 1, program(0), 1)
            .unwrap();
    }
    check(&table);
    for flow in 0..25 {
        let key = key(1, flow);
        assert!(
            table.find(table.hash(&key), &key).is_some(),
            "flow {flow} of the quiet port is gone"
        );
    }
    assert_eq!(table.len(), 100);
}

#[test]
fn a_port_below_its_share_takes_room_from_the_largest() {
    let mut table = FlowTable::new(100);
    table.add_port(PortId(1));
    table.add_port(PortId(2));
    for flow in 0..100 {
        let key = key(1, flow);
        table
            .insert(table.hash(&key), key, 1, program(0), 0)
            .unwrap();
    }
    for flow in 0..80 {
        let key = key(2, flow);
        table
            .insert(table.hash(&key), key, 1, program(0), 0)
            .unwrap();
    }
    check(&table);
    assert_eq!(table.ports[&PortId(1)].count, 50);
    assert_eq!(table.ports[&PortId(2)].count, 50);
}

#[test]
fn an_eviction_spares_the_flow_in_use() {
    let mut table = FlowTable::new(4);
    table.add_port(PortId(1));
    for flow in 0..4 {
        let key = key(1, flow);
        table
            .insert(table.hash(&key), key, 1, program(0), 0)
            .unwrap();
    }
    let busy = key(1, 0);
    table.touch(table.find(table.hash(&busy), &busy).unwrap(), 1, 60);
    let fresh = key(1, 9);
    table
        .insert(table.hash(&fresh), fresh, 1, program(0), 2)
        .unwrap();
    assert!(table.find(table.hash(&busy), &busy).is_some());
    let second = key(1, 1);
    assert!(table.find(table.hash(&second), &second).is_none());
}

#[test]
fn every_field_of_the_key_reaches_the_hash() {
    let table = FlowTable::new(1 << 16);
    let base = FlowKey::default();
    let mac = flow::MacAddr([0, 0, 0, 0, 0, 1]);
    let addr = flow::KeyAddr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let high = flow::KeyAddr([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let tunnel = flow::TunnelKey::NONE;
    let variants = [
        FlowKey {
            in_port: PortId(1),
            ..base
        },
        FlowKey {
            tunnel: flow::TunnelKey { vni: 1, ..tunnel },
            ..base
        },
        FlowKey {
            tunnel: flow::TunnelKey {
                src: addr,
                ..tunnel
            },
            ..base
        },
        FlowKey {
            tunnel: flow::TunnelKey {
                dst: addr,
                ..tunnel
            },
            ..base
        },
        FlowKey {
            eth_src: mac,
            ..base
        },
        FlowKey {
            eth_dst: mac,
            ..base
        },
        FlowKey {
            ethertype: 1,
            ..base
        },
        FlowKey { vlan: 1, ..base },
        FlowKey {
            ip_src: addr,
            ..base
        },
        FlowKey {
            ip_src: high,
            ..base
        },
        FlowKey {
            ip_dst: addr,
            ..base
        },
        FlowKey {
            ip_dst: high,
            ..base
        },
        FlowKey {
            protocol: 1,
            ..base
        },
        FlowKey {
            fragment: flow::Fragment::Later,
            ..base
        },
        FlowKey {
            src_port: 1,
            ..base
        },
        FlowKey {
            dst_port: 1,
            ..base
        },
    ];
    let mut hashes: Vec<u32> = variants.iter().map(|key| table.hash(key)).collect();
    hashes.push(table.hash(&base));
    hashes.sort_unstable();
    hashes.dedup();
    // 17 random 32-bit values collide once in 30 million runs.
    assert_eq!(hashes.len(), variants.len() + 1);
}

#[test]
fn sequential_flows_spread_over_the_chains() {
    let table = FlowTable::new(4096);
    let mut load = vec![0u32; 4096];
    for flow in 0..4096 {
        load[table.hash(&key(1, flow)) as usize & 4095] += 1;
    }
    let longest = load.iter().max().copied().unwrap_or(0);
    assert!(
        longest <= 12,
        "a chain of {longest} where a random spread has about 6"
    );
}
