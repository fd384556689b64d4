//! Settings of a VF: what differs, setting it, reading it back; and the defaults that a free VF has.

use super::{Life, retry_busy, wait_for};
use crate::allocation::Settings;
use crate::device::VfId;
use crate::kernel::{KernelError, Rate, VfChange, VfLinkState, VfSettings, Vlan, VlanProtocol};
use crate::manager::Error;

/// MAC address of a VF that has none: it chooses one itself.
const NO_MAC: [u8; 6] = [0; 6];

/// One attribute, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Mac([u8; 6]),
    Vlan(Vlan),
    Rate(Rate),
    Spoofchk(bool),
    Trust(bool),
    LinkState(VfLinkState),
}

/// An attribute, and whether somebody asked for it.
#[derive(Clone, Copy, Debug)]
struct Want {
    attribute: Attribute,
    asked: bool,
}

impl Attribute {
    fn put(self, change: &mut VfChange) {
        match self {
            Attribute::Mac(mac) => change.mac = Some(mac),
            Attribute::Vlan(vlan) => change.vlan = Some(vlan),
            Attribute::Rate(rate) => change.rate = Some(rate),
            Attribute::Spoofchk(on) => change.spoofchk = Some(on),
            Attribute::Trust(on) => change.trust = Some(on),
            Attribute::LinkState(state) => change.link_state = Some(state),
        }
    }

    /// Whether `now` has it; absent: the driver does not say.
    fn is_in(self, now: &VfSettings) -> Option<bool> {
        match self {
            Attribute::Mac(mac) => now.mac.map(|now| now == mac),
            Attribute::Vlan(vlan) if vlan.id == 0 => Some(now.vlan.id == 0),
            Attribute::Vlan(vlan) => Some(now.vlan == vlan),
            Attribute::Rate(rate) => Some(now.rate == rate),
            Attribute::Spoofchk(on) => now.spoofchk.map(|now| now == on),
            Attribute::Trust(on) => now.trust.map(|now| now == on),
            Attribute::LinkState(state) => now.link_state.map(|now| now == state),
        }
    }

    fn name(self) -> String {
        match self {
            Attribute::Mac(NO_MAC) => "no MAC".into(),
            Attribute::Mac(mac) => format!("MAC {}", mac_text(&mac)),
            Attribute::Vlan(vlan) => vlan_text(&vlan),
            Attribute::Rate(Rate { min: 0, max: 0 }) => "no rate".into(),
            Attribute::Rate(rate) => format!("a rate of {} to {} Mbit/s", rate.min, rate.max),
            Attribute::Spoofchk(on) => format!("spoof checking {}", on_off(on)),
            Attribute::Trust(on) => format!("trust {}", on_off(on)),
            Attribute::LinkState(state) => format!("link state {state:?}").to_lowercase(),
        }
    }

    /// The same attribute as `now` has it.
    fn found(self, now: &VfSettings) -> String {
        let found = match self {
            Attribute::Mac(_) => now.mac.map(Attribute::Mac),
            Attribute::Vlan(_) => Some(Attribute::Vlan(now.vlan)),
            Attribute::Rate(_) => Some(Attribute::Rate(now.rate)),
            Attribute::Spoofchk(_) => now.spoofchk.map(Attribute::Spoofchk),
            Attribute::Trust(_) => now.trust.map(Attribute::Trust),
            Attribute::LinkState(_) => now.link_state.map(Attribute::LinkState),
        };
        found.map_or("nothing".into(), Attribute::name)
    }

    fn advice(self) -> &'static str {
        match self {
            Attribute::Vlan(vlan) if vlan.protocol == VlanProtocol::Dot1ad => "ask for 802.1q",
            Attribute::Rate(rate) if rate.min > 0 => "ask for no smallest rate",
            Attribute::Mac(_) => "ask for another MAC",
            _ => "do not ask for it",
        }
    }
}

/// "02:00:00:00:00:01".
pub(crate) fn mac_text(mac: &[u8; 6]) -> String {
    let hex: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(":")
}

fn vlan_text(vlan: &Vlan) -> String {
    let protocol = match vlan.protocol {
        VlanProtocol::Dot1q => "",
        VlanProtocol::Dot1ad => "802.1ad ",
    };
    match (vlan.id, vlan.qos) {
        (0, _) => "no VLAN".into(),
        (id, 0) => format!("{protocol}VLAN {id}"),
        (id, qos) => format!("{protocol}VLAN {id} with priority {qos}"),
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl Settings {
    fn wants(&self) -> [Want; 6] {
        let want = |attribute, asked| Want { attribute, asked };
        let vlan = self.vlan.filter(|vlan| vlan.id > 0).unwrap_or_default();
        let link = self.link_state.unwrap_or(VfLinkState::Auto);
        [
            want(Attribute::Mac(self.mac), true),
            want(Attribute::Vlan(vlan), self.vlan.is_some()),
            want(
                Attribute::Rate(self.rate.unwrap_or_default()),
                self.rate.is_some(),
            ),
            want(
                Attribute::Spoofchk(self.spoofchk.unwrap_or(true)),
                self.spoofchk.is_some(),
            ),
            want(
                Attribute::Trust(self.trust.unwrap_or(false)),
                self.trust.is_some(),
            ),
            want(Attribute::LinkState(link), self.link_state.is_some()),
        ]
    }

    /// What `now` lacks of them, in words; `None`: nothing. What a driver does not report is not missed.
    pub(crate) fn lacking(&self, now: &VfSettings) -> Option<String> {
        let lacking: Vec<String> = self
            .wants()
            .iter()
            .filter(|want| want.asked && want.attribute.is_in(now) == Some(false))
            .map(|want| want.attribute.name())
            .collect();
        (!lacking.is_empty()).then(|| lacking.join(", "))
    }
}

impl Life<'_> {
    /// Gives a VF its settings and reads them back. What nobody asked for and the NIC does not have is
    /// skipped; what was asked for is an error then. Returns what was skipped, in words.
    pub(crate) fn configure(&self, vf: &VfId, settings: &Settings) -> Result<Vec<String>, Error> {
        self.set_all(vf, &settings.wants())
    }

    /// Takes the settings of its last owner from a VF and reads that back (R6, R7). What its owner had
    /// asked for must go.
    pub(crate) fn clean(&self, vf: &VfId, had: &Settings) -> Result<(), Error> {
        let mut wants = Settings::default().wants();
        for (want, had) in wants.iter_mut().zip(had.wants()) {
            want.asked = had.asked;
        }
        self.set_all(vf, &wants).map(drop)
    }

    fn set_all(&self, vf: &VfId, wants: &[Want]) -> Result<Vec<String>, Error> {
        let mut skipped: Vec<Attribute> = Vec::new();
        // What the kernel silently did not do is asked for once more.
        for first in [true, false] {
            let mut missing = self.missing(vf, wants, &skipped)?;
            if first {
                // What the driver does not report can only be tried.
                let now = self.kernel.vf(&vf.pf, vf.index)?.settings;
                let unknown = |want: &&Want| want.asked && want.attribute.is_in(&now).is_none();
                missing.extend(wants.iter().filter(unknown));
            }
            if missing.is_empty() {
                break;
            }
            self.set(vf, &missing, &mut skipped)?;
        }
        let left = wait_for(self.patience.settings, || {
            let missing = self.missing(vf, wants, &skipped)?;
            Ok(missing.is_empty().then_some(()))
        })?;
        if left.is_none() {
            let now = self.kernel.vf(&vf.pf, vf.index)?.settings;
            let missing = self.missing(vf, wants, &skipped)?;
            let differences: Vec<String> = missing
                .iter()
                .map(|want| {
                    let found = want.attribute.found(&now);
                    format!("{} was asked for, {found} is there", want.attribute.name())
                })
                .collect();
            return Err(Error::NotTaken {
                vf: vf.clone(),
                difference: differences.join("; "),
            });
        }
        Ok(skipped
            .iter()
            .map(|attribute| format!("{vf} has no {}", attribute.name()))
            .collect())
    }

    fn missing(
        &self,
        vf: &VfId,
        wants: &[Want],
        skipped: &[Attribute],
    ) -> Result<Vec<Want>, KernelError> {
        let now = self.kernel.vf(&vf.pf, vf.index)?.settings;
        let missing = wants
            .iter()
            .filter(|want| !skipped.contains(&want.attribute))
            .filter(|want| want.attribute.is_in(&now) == Some(false));
        Ok(missing.copied().collect())
    }

    /// All at once; where the kernel refuses that, one by one, to know what it is about.
    fn set(&self, vf: &VfId, wants: &[Want], skipped: &mut Vec<Attribute>) -> Result<(), Error> {
        let mut change = VfChange::default();
        wants
            .iter()
            .for_each(|want| want.attribute.put(&mut change));
        if self.set_vf(vf, &change).is_ok() {
            return Ok(());
        }
        for want in wants {
            let mut change = VfChange::default();
            want.attribute.put(&mut change);
            match self.set_vf(vf, &change) {
                Ok(()) => {}
                Err(error) if !unsupported(&error) => return Err(error.into()),
                Err(_) if !want.asked => skipped.push(want.attribute),
                Err(error) => {
                    return Err(Error::Unsupported(format!(
                        "{vf} does not take {}: {error}; {}, or take a VF of another NIC",
                        want.attribute.name(),
                        want.attribute.advice()
                    )));
                }
            }
        }
        Ok(())
    }

    fn set_vf(&self, vf: &VfId, change: &VfChange) -> Result<(), KernelError> {
        retry_busy(self.patience.busy, || {
            self.kernel.set_vf(&vf.pf, vf.index, change)
        })
    }
}

/// Whether the driver says that it cannot do this at all.
fn unsupported(error: &KernelError) -> bool {
    matches!(
        error.errno(),
        Some(
            libc::EOPNOTSUPP
                | libc::EPROTONOSUPPORT
                | libc::EINVAL
                | libc::ENOSYS
                | libc::ERANGE
                | libc::EADDRNOTAVAIL
        )
    )
}
