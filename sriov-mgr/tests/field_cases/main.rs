//! What goes wrong with SR-IOV in the field, case by case, on the fake kernel with the fault put in. The files are
//! those of the lab's suite, which shows the same on emulated NICs.

mod count;
mod lost;
mod owner;
#[path = "../support/mod.rs"]
mod support;

use sriov_mgr::kernel::fake::{FakePf, Fault, Op};
use sriov_mgr::kernel::{EswitchMode, Kernel, Rate, VfChange, Vlan};
use sriov_mgr::manager::Error;
use sriov_mgr::policy::{Policy, VfDriver};
use sriov_mgr::{Event, Request, VfId};
use support::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x42];

fn with_mac(owner: &str) -> Request {
    Request {
        mac: Some(MAC),
        vlan: Some(vlan(42)),
        ..request(owner)
    }
}

fn mac_change() -> VfChange {
    VfChange {
        mac: Some(MAC),
        ..VfChange::default()
    }
}
