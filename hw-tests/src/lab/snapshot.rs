//! The state of a target that a test may change: read before and after each test, and compared.
//!
//! It covers the NICs that tests may use (VF count, drivers, MTU, link, eswitch mode) and their VFs (driver,
//! override, MAC, VLAN, rate, spoof check, trust, link state), netdevsim devices, network namespaces, virtual
//! links, huge pages, and processes that carry our mark. It does not cover loaded modules and files.
//!
//! A host is not ours alone: what others make there meanwhile must not be taken away. There, only namespaces
//! and links whose names begin with [`PREFIX`] count, and netdevsim devices and huge pages do not.

use super::target::{LinkError, Target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long reading the state may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How the names of a test's namespaces and links begin; see [`Context::named`](super::Context::named).
pub const PREFIX: &str = "fvlab-";

/// The state: object and property, and the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<(String, String), String>);

/// A property that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A PCI address, `VF 2 of …`, `namespace`, `link`, `process` …
    pub object: String,
    /// The property, or the name of what came or went.
    pub property: String,
    /// `None`: it was not there.
    pub before: Option<String>,
    /// `None`: it is not there any more.
    pub after: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change {
            object, property, ..
        } = self;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(f, "{object}: {property} was {before}, is {after}")
            }
            (None, Some(after)) => write!(f, "{object}: {property} is there ({after}), was not"),
            (Some(before), None) => write!(f, "{object}: {property} is gone, was {before}"),
            (None, None) => write!(f, "{object}: {property}"),
        }
    }
}

impl Snapshot {
    /// Reads the target's state.
    ///
    /// # Errors
    /// When the target does not answer, or does not know its own state.
    pub fn take(target: &Target) -> Result<Snapshot, LinkError> {
        let nics: Vec<&str> = target
            .facts()
            .nics
            .iter()
            .map(|n| n.address.as_str())
            .collect();
        let script = format!(
            "NICS='{}'; MARK='{}={}'\n{SCRIPT}",
            nics.join(" "),
            super::target::MARK,
            target.mark()
        );
        let done = target.quiet(&script, LIMIT)?;
        if !done.ok() || !done.stdout.ends_with("end\n") {
            return Err(LinkError::Broken(format!(
                "The state of the target cannot be read: {}",
                done.said()
            )));
        }
        let mut all = Snapshot::read(&done.stdout);
        if !target.is_ours() {
            all.0.retain(|(object, property), _| match object.as_str() {
                "namespace" | "link" => property.starts_with(PREFIX),
                "netdevsim" | "huge pages" => false,
                _ => true,
            });
        }
        Ok(all)
    }

    pub(super) fn read(printed: &str) -> Snapshot {
        let mut all = BTreeMap::new();
        for line in printed.lines() {
            let mut fields = line.splitn(3, '\t');
            let (Some(object), Some(property), Some(value)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match property {
                "@link" => interface(object, value, &mut all),
                "@links" => virtual_links(value, &mut all),
                _ => {
                    all.insert((object.to_owned(), property.to_owned()), value.to_owned());
                }
            }
        }
        Snapshot(all)
    }

    /// The value of a property.
    pub fn get(&self, object: &str, property: &str) -> Option<&str> {
        self.0
            .get(&(object.to_owned(), property.to_owned()))
            .map(String::as_str)
    }

    /// Properties of one object.
    pub fn of<'a>(&'a self, object: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter(move |((name, _), _)| name == object)
            .map(|((_, property), value)| (property.as_str(), value.as_str()))
    }

    /// What is different in `after`.
    pub fn changes(&self, after: &Snapshot) -> Vec<Change> {
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        keys.into_iter()
            .filter(|key| self.0.get(*key) != after.0.get(*key))
            .map(|key| Change {
                object: key.0.clone(),
                property: key.1.clone(),
                before: self.0.get(key).cloned(),
                after: after.0.get(key).cloned(),
            })
            .collect()
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for ((object, property), value) in &self.0 {
            writeln!(f, "{object}: {property} = {value}")?;
        }
        Ok(())
    }
}

/// The name under which a VF's attributes stand.
pub fn vf_object(pf: &str, vf: u64) -> String {
    format!("VF {vf} of {pf}")
}

/// What `ip -json -details link show` says of a PF's interface.
fn interface(pf: &str, json: &str, all: &mut BTreeMap<(String, String), String>) {
    let Ok(list) = serde_json::from_str::<Value>(json) else {
        return;
    };
    let link = &list[0];
    let mut put = |object: &str, property: &str, value: &Value| {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        all.insert((object.to_owned(), property.to_owned()), text);
    };
    put(pf, "interface", &link["ifname"]);
    put(pf, "mtu", &link["mtu"]);
    put(pf, "mac", &link["address"]);
    let up = link["flags"]
        .as_array()
        .is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    put(pf, "up", &Value::from(up));
    for vf in link["vfinfo_list"].as_array().into_iter().flatten() {
        let object = vf_object(pf, vf["vf"].as_u64().unwrap_or(0));
        for (property, value) in vf.as_object().into_iter().flatten() {
            if property != "vf" && property != "stats" {
                put(&object, property, value);
            }
        }
    }
}

/// Links that are no hardware's.
fn virtual_links(json: &str, all: &mut BTreeMap<(String, String), String>) {
    let Ok(Value::Array(links)) = serde_json::from_str::<Value>(json) else {
        return;
    };
    for link in &links {
        let kind = link["linkinfo"]["info_kind"].as_str();
        if let (Some(name), Some(kind)) = (link["ifname"].as_str(), kind) {
            all.insert(("link".into(), name.into()), kind.into());
        }
    }
}

/// Prints the state, a line a property, fields apart by tabs. A read of `sriov_numvfs` blocks while a change
/// runs, hence the time limits.
const SCRIPT: &str = r#"
say() { printf '%s\t%s\t%s\n' "$1" "$2" "$3"; }
has() { v=$(timeout 5 cat "$3" 2>/dev/null); c=$?; [ $c = 124 ] && v='(reading it blocks)'; [ -n "$v" ] && say "$1" "$2" "$v"; }
link() { l=$(readlink "$1") && printf %s "${l##*/}"; }
for n in $NICS; do
  d=/sys/bus/pci/devices/$n
  [ -e $d ] || { say $n device gone; continue; }
  say $n driver "$(link $d/driver)"
  has $n driver_override $d/driver_override
  i=$(ls $d/net 2>/dev/null | head -n 1)
  [ -n "$i" ] && say $n @link "$(ip -json -details link show dev $i 2>/dev/null)"
  [ -e $d/sriov_totalvfs ] || continue
  has $n sriov_numvfs $d/sriov_numvfs
  has $n sriov_drivers_autoprobe $d/sriov_drivers_autoprobe
  m=$(devlink dev eswitch show pci/$n 2>/dev/null | sed -n 's/.*mode \([a-z_]*\).*/\1/p')
  [ -n "$m" ] && say $n eswitch "$m"
  for v in $d/virtfn*; do
    [ -e $v ] || continue
    o="VF ${v##*/virtfn} of $n"
    say "$o" pci "$(link $v)"
    say "$o" driver "$(link $v/driver)"
    has "$o" driver_override $v/driver_override
  done
done
for s in /sys/bus/netdevsim/devices/*; do [ -e "$s" ] && say netdevsim "${s##*/}" there; done
for n in /run/netns/*; do [ -e "$n" ] && say namespace "${n##*/}" there; done
say - @links "$(ip -json -details link show 2>/dev/null)"
has 'huge pages' 'number' /proc/sys/vm/nr_hugepages
for p in $(grep -lzsx "$MARK" /proc/[0-9]*/environ); do
  p=${p%/environ}
  say process "${p#/proc/}" "$(cat $p/comm 2>/dev/null)"
done
echo end
"#;

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "0000:01:00.0\tsriov_numvfs\t0\n0000:01:00.0\tdriver\tigb\nhuge pages\tnumber\t0\n\
        0000:01:00.0\t@link\t[{\"ifname\":\"eth1\",\"mtu\":1500,\"address\":\"02:00:00:00:00:01\",\"flags\":[\"UP\"],\"vfinfo_list\":[]}]\nend\n";
    const AFTER: &str = "0000:01:00.0\tsriov_numvfs\t1\n0000:01:00.0\tdriver\tigb\nhuge pages\tnumber\t0\n\
        0000:01:00.0\t@link\t[{\"ifname\":\"eth1\",\"mtu\":9000,\"address\":\"02:00:00:00:00:01\",\"flags\":[],\"vfinfo_list\":[{\"vf\":0,\"mac\":\"02:00:00:00:00:09\",\"trust\":false}]}]\n\
        namespace\tblue\tthere\n-\t@links\t[{\"ifname\":\"v0\",\"linkinfo\":{\"info_kind\":\"veth\"}},{\"ifname\":\"eth1\"}]\nprocess\t77\tsleep\nend\n";

    #[test]
    fn every_change_is_named() {
        let changes = Snapshot::read(BEFORE).changes(&Snapshot::read(AFTER));
        let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
        for part in [
            "0000:01:00.0: mtu was 1500, is 9000",
            "0000:01:00.0: sriov_numvfs was 0, is 1",
            "0000:01:00.0: up was true, is false",
            "VF 0 of 0000:01:00.0: mac is there (02:00:00:00:00:09), was not",
            "link: v0 is there (veth), was not",
            "namespace: blue is there (there), was not",
            "process: 77 is there (sleep), was not",
        ] {
            assert!(said.iter().any(|s| s == part), "{part} is not in {said:#?}");
        }
        assert_eq!(changes.len(), 8, "{said:#?}");
        assert!(
            Snapshot::read(AFTER)
                .changes(&Snapshot::read(AFTER))
                .is_empty()
        );
    }
}
