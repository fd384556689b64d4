//! Addresses and MACs against a model, under any order of creations, deletions and restarts of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::v1;
use controller::plan::{networks, ports};
use controller::records::Port;
use controller::refusal::Refusal;
use controller::state::{Change, State};
use controller::store::Plan;
use proptest::prelude::*;
use tonic::Code;

/// Plans and applies, as the store does.
fn write<T>(
    state: &mut State,
    plan: impl FnOnce(&State, &mut Plan) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut changes = Plan::default();
    let value = plan(state, &mut changes)?;
    state.revision += 1;
    changes
        .changes()
        .iter()
        .for_each(|change: &Change| state.apply(change));
    Ok(value)
}

#[derive(Clone, Debug)]
enum Step {
    /// A port with whatever is free.
    Create,
    /// A port with this address, of the /28's 16.
    Explicit(u8),
    /// The nth port goes.
    Delete(usize),
    /// The gateway moves to this address.
    Gateway(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Create),
        2 => (0u8..16).prop_map(Step::Explicit),
        3 => (0usize..16).prop_map(Step::Delete),
        1 => (0u8..16).prop_map(Step::Gateway),
    ]
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

proptest! {
    #[test]
    fn allocation_is_lowest_first_and_never_twice(steps in prop::collection::vec(step(), 1..120)) {
        let mut state = State::default();
        let subnet = |cidr: &str, gateway: String, slaac| v1::Subnet { cidr: cidr.into(), gateway, slaac };
        let create = v1::CreateNetworkRequest {
            name: "blue".into(),
            subnets: vec![subnet("10.0.0.0/28", String::new(), false), subnet("2001:db8::/64", String::new(), true)],
            ..Default::default()
        };
        write(&mut state, |state, plan| networks::create(state, plan, &create)).unwrap();
        let mut gateway = 1;
        // The model: who has which of the 16 addresses.
        let mut model: BTreeMap<u8, std::sync::Arc<Port>> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            let request = v1::CreatePortRequest { name: format!("p{number}"), network: "blue".into(), ..Default::default() };
            match step {
                Step::Create => {
                    let expected = (1..15).find(|last| *last != gateway && !model.contains_key(last));
                    match (write(&mut state, |state, plan| ports::create(state, plan, &request)), expected) {
                        (Ok(port), Some(last)) => {
                            prop_assert_eq!(port.addresses[0], v4(last));
                            prop_assert_eq!(port.addresses[1], IpAddr::V6(port.mac.eui64("2001:db8::".parse().unwrap())));
                            model.insert(last, port);
                        }
                        (Err(refusal), None) => prop_assert_eq!(refusal.code, Code::ResourceExhausted),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Explicit(last) => {
                    let request = v1::CreatePortRequest { addresses: vec![v4(last).to_string()], ..request };
                    match write(&mut state, |state, plan| ports::create(state, plan, &request)) {
                        Ok(port) => {
                            prop_assert!((1..15).contains(&last) && last != gateway);
                            prop_assert!(model.insert(last, port).is_none());
                        }
                        Err(refusal) if model.contains_key(&last) => prop_assert_eq!(refusal.code, Code::AlreadyExists),
                        Err(refusal) => {
                            prop_assert!(last == 0 || last == 15 || last == gateway);
                            prop_assert_eq!(refusal.code, Code::InvalidArgument);
                        }
                    }
                }
                Step::Delete(nth) => {
                    let Some(last) = model.keys().nth(nth).copied() else { continue };
                    let port = model.remove(&last).unwrap();
                    let request = v1::DeleteRequest { r#ref: port.id.to_string(), revision: port.revision };
                    write(&mut state, |state, plan| ports::delete(state, plan, &request)).unwrap();
                }
                Step::Gateway(last) => {
                    let request = v1::UpdateNetworkRequest {
                        r#ref: "blue".into(),
                        set_subnets: true,
                        subnets: vec![subnet("10.0.0.0/28", v4(last).to_string(), false), subnet("2001:db8::/64", String::new(), true)],
                        ..Default::default()
                    };
                    let moved = write(&mut state, |state, plan| networks::update(state, plan, &request)).is_ok();
                    prop_assert_eq!(moved, (1..15).contains(&last) && !model.contains_key(&last));
                    if moved {
                        gateway = last;
                    }
                }
            }
            let macs: BTreeSet<_> = model.values().map(|port| port.mac).collect();
            prop_assert_eq!(macs.len(), model.len());
            prop_assert!(macs.iter().all(|mac| mac.is_station() && mac.0[0] & 2 == 2));
            // A state built anew from the records, as after a restart, allocates the same.
            let mut again = State::default();
            for change in state.networks().map(|n| Change::PutNetwork(n.clone())).chain(model.values().map(|p| Change::PutPort(p.clone()))) {
                again.apply(&change);
            }
            let network = *state.network_names().get("blue").unwrap();
            prop_assert_eq!(state.lowest_free(network, v4(1), v4(14)), again.lowest_free(network, v4(1), v4(14)));
        }
    }
}
