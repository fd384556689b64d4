//! The inventory: which targets a lab has, how each is reached, and which limits hold. A TOML file, checked
//! whole before anything is started; see `docs/lab.md`.

use checked_toml::{At, Collector, LoadError, Problems, Table};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A whole, checked inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// In the order of the file; names are unique.
    pub targets: Vec<TargetSpec>,
}

/// One target, as the file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// Its name in reports and baselines.
    pub name: String,
    /// How it is made or reached.
    pub kind: Kind,
    /// How long things may take on it.
    pub limits: Limits,
    /// What the results say: a real NIC or an emulated one. `None`: found out on the target.
    pub platform: Option<Platform>,
}

/// What a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A machine under QEMU, booted for this run.
    Emulated(Emulated),
    /// A host reached over ssh.
    Ssh(Ssh),
    /// This machine itself.
    Local(Local),
}

impl Kind {
    /// The word for it in the file and in reports.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Emulated(_) => "emulated",
            Kind::Ssh(_) => "ssh",
            Kind::Local(_) => "local",
        }
    }
}

/// `kind = "emulated"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulated {
    /// Which NICs it has.
    pub flavour: Flavour,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
}

/// NICs of an emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Intel 82576 with SR-IOV, emulated by QEMU.
    Igb {
        /// Physical functions.
        pfs: u8,
    },
    /// The kernel's netdevsim.
    Netdevsim,
}

/// `kind = "ssh"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// Host name or IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Account on the host.
    pub user: String,
    /// Private key; `None`: what ssh would use.
    pub key: Option<PathBuf>,
    /// Further options, each as after `ssh -o`.
    pub options: Vec<String>,
    /// Commands go through `sudo -n`.
    pub sudo: bool,
    /// NICs that tests may use and change, by PCI address.
    pub nics: Vec<String>,
    /// Where our programs come from.
    pub programs: Programs,
}

/// `kind = "local"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Commands go through `sudo -n`.
    pub sudo: bool,
    /// NICs that tests may use and change, by PCI address.
    pub nics: Vec<String>,
    /// The folder of our programs; `None`: where `ferrovia-lab` is.
    pub programs: Option<PathBuf>,
}

/// Where a host over ssh gets our programs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Those beside `ferrovia-lab` are copied there for the run.
    Copy,
    /// A folder on the host.
    Folder(String),
}

/// Whether results speak of real hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// The NIC is software.
    #[default]
    Emulated,
    /// The NIC is hardware.
    Physical,
}

impl Platform {
    /// The word in files and reports.
    pub fn word(self) -> &'static str {
        match self {
            Platform::Emulated => "emulated",
            Platform::Physical => "physical",
        }
    }
}

/// How long things may take on a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until it answers: boot, or connection and copying.
    pub ready: Duration,
    /// The longest a single test may take; a test's own limit holds when it is shorter.
    pub test: Duration,
    /// Everything on this target.
    pub target: Duration,
    /// How late a test may be before its target is given up. Not in the file.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            ready: Duration::from_secs(180),
            test: Duration::from_secs(600),
            target: Duration::from_secs(3600),
            grace: Duration::from_secs(30),
        }
    }
}

/// Reads and checks an inventory.
///
/// # Errors
/// When the file cannot be read, or with everything that is wrong in it.
pub fn load(path: &Path) -> Result<Inventory, LoadError> {
    Ok(parse(&checked_toml::load(path)?, path)?)
}

/// Checks the text of an inventory. `file` is for the messages.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(text: &str, file: &Path) -> Result<Inventory, Problems> {
    checked_toml::parse(text, file, read)
}

fn read(mut top: Table<'_, '_>, out: &mut Collector<'_>) -> Inventory {
    let limits = read_limits(top.table("limits", out), Limits::default(), out);
    let tables = top.tables("target", out);
    if tables.is_empty() {
        out.add(
            0..0,
            "The inventory has no target; write [[target]] with name and kind",
        );
    }
    let mut names: BTreeMap<String, ()> = BTreeMap::new();
    let mut targets = Vec::new();
    for table in tables {
        if let Some((name, target)) = read_target(table, limits, out) {
            if names.insert(name.value.clone(), ()).is_some() {
                out.add(
                    name.span,
                    format!(
                        "The target \"{}\" is there twice; give each its own name",
                        name.value
                    ),
                );
            }
            targets.push(target);
        }
    }
    top.finish(out);
    Inventory { targets }
}

fn read_limits(table: Option<Table<'_, '_>>, base: Limits, out: &mut Collector<'_>) -> Limits {
    let Some(mut table) = table else { return base };
    let mut seconds = |key: &'static str, base: Duration| {
        table
            .number(key, 1..=7 * 24 * 3600, out)
            .map_or(base, |at| Duration::from_secs(at.value))
    };
    let limits = Limits {
        ready: seconds("ready_s", base.ready),
        test: seconds("test_s", base.test),
        target: seconds("target_s", base.target),
        grace: base.grace,
    };
    table.finish(out);
    limits
}

fn read_target(
    mut table: Table<'_, '_>,
    limits: Limits,
    out: &mut Collector<'_>,
) -> Option<(At<String>, TargetSpec)> {
    let name = table.required("name", "\"rack1-nic\"", out);
    if let Some(name) = &name
        && !is_name(&name.value)
    {
        out.add(
            name.span.clone(),
            "A target's name is 1 to 40 of a-z, 0-9, - and _, and starts with a letter or digit",
        );
    }
    let limits = read_limits(table.table("limits", out), limits, out);
    let platform = one_of(
        table.string("platform", out),
        &[
            ("emulated", Platform::Emulated),
            ("physical", Platform::Physical),
        ],
        "platform",
        out,
    );
    let word = table.required("kind", "\"ssh\"", out);
    let kind = one_of(
        word,
        &[
            ("emulated", Word::Emulated),
            ("ssh", Word::Ssh),
            ("local", Word::Local),
        ],
        "kind",
        out,
    )?;
    let kind = match kind {
        Word::Emulated => Kind::Emulated(read_emulated(&mut table, out)),
        Word::Ssh => Kind::Ssh(read_ssh(&mut table, out)),
        Word::Local => Kind::Local(read_local(&mut table, out)),
    };
    table.finish(out);
    let name = name?;
    let target = TargetSpec {
        name: name.value.clone(),
        kind,
        limits,
        platform,
    };
    Some((name, target))
}

#[derive(Clone, Copy)]
enum Word {
    Emulated,
    Ssh,
    Local,
}

fn read_emulated(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Emulated {
    let flavour = table.required("flavour", "\"igb\"", out);
    let pfs = table.number("pfs", 1..=8, out);
    let memory = table.number("memory_mb", 512..=1 << 20, out);
    let cpus = table.number("cpus", 1..=256, out);
    let igb = Flavour::Igb {
        pfs: pfs.as_ref().map_or(1, |at| at.value as u8),
    };
    let flavour = one_of(
        flavour,
        &[("igb", igb), ("netdevsim", Flavour::Netdevsim)],
        "flavour",
        out,
    )
    .unwrap_or(igb);
    if let (Flavour::Netdevsim, Some(pfs)) = (flavour, &pfs) {
        out.add(
            pfs.span.clone(),
            "pfs is for the flavour igb; tests make netdevsim devices as they need them",
        );
    }
    Emulated {
        flavour,
        memory_mb: memory.map_or(1536, |at| at.value as u32),
        cpus: cpus.map_or(2, |at| at.value as u32),
    }
}

fn read_ssh(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Ssh {
    let address = table.required("address", "\"rack1.lab.example\"", out);
    let user = table.string("user", out);
    let port = table.number("port", 1..=65535, out);
    let key = table.string("key", out).map(|at| home(&at.value));
    let options = strings(table, "ssh_options", out);
    for option in &options {
        let plain = option.value.contains(['=', ' ']) && !option.value.starts_with('-');
        if !plain || option.value.contains(['\n', '\0']) {
            out.add(
                option.span.clone(),
                "An ssh option is written as after -o, such as \"ProxyJump=bastion.lab.example\"",
            );
        }
    }
    // ssh(1) takes a word that begins with '-' for an option, and runs what ProxyCommand says.
    for (at, what) in [(&address, "address"), (&user, "user")] {
        if let Some(at) = at
            && (at.value.is_empty()
                || at.value.starts_with('-')
                || !at
                    .value
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c)))
        {
            out.add(
                at.span.clone(),
                format!(
                    "\"{what}\" has a character that no host or account name has, or begins with -"
                ),
            );
        }
    }
    let programs = table.string("programs", out);
    let programs = match programs {
        None => Programs::Copy,
        Some(at) if at.value == "copy" => Programs::Copy,
        Some(at) => {
            if !at.value.starts_with('/') || at.value.contains(['\n', '\0', ':']) {
                out.add(
                    at.span,
                    "programs is \"copy\", or the folder on the host as a path from /",
                );
            }
            Programs::Folder(at.value)
        }
    };
    Ssh {
        address: address.map(|at| at.value).unwrap_or_default(),
        port: port.map_or(22, |at| at.value as u16),
        user: user.map_or_else(|| "root".to_owned(), |at| at.value),
        key,
        options: options.into_iter().map(|at| at.value).collect(),
        sudo: table.boolean("sudo", out).is_some_and(|at| at.value),
        nics: read_nics(table, out),
        programs,
    }
}

fn read_local(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Local {
    Local {
        sudo: table.boolean("sudo", out).is_some_and(|at| at.value),
        nics: read_nics(table, out),
        programs: table.string("programs", out).map(|at| home(&at.value)),
    }
}

fn read_nics(table: &mut Table<'_, '_>, out: &mut Collector<'_>) -> Vec<String> {
    let mut nics: Vec<String> = Vec::new();
    for at in strings(table, "nics", out) {
        match pci_address(&at.value) {
            Some(address) if nics.contains(&address) => {
                out.add(at.span, format!("The NIC {address} is listed twice"));
            }
            Some(address) => nics.push(address),
            None => {
                let shown: String = at.value.chars().take(40).collect();
                out.add(
                    at.span,
                    format!("\"{shown}\" is not a PCI address such as 0000:3b:00.0"),
                );
            }
        }
    }
    nics
}

fn strings(
    table: &mut Table<'_, '_>,
    key: &'static str,
    out: &mut Collector<'_>,
) -> Vec<At<String>> {
    table.parsed_list::<String>(key, "a string", out)
}

/// The value that `word` names; what is not known is a problem.
fn one_of<T: Copy>(
    word: Option<At<String>>,
    known: &[(&'static str, T)],
    key: &str,
    out: &mut Collector<'_>,
) -> Option<T> {
    let word = word?;
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == word.value) {
        return Some(*value);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let shown: String = word.value.chars().take(32).collect();
    let way_out = match checked_toml::suggestion(&shown, &names) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("known are {}", names.join(", ")),
    };
    out.add(
        word.span,
        format!("\"{shown}\" is not known for {key}; {way_out}"),
    );
    None
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    (1..=40).contains(&name.len())
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// `3b:00.0` or `0000:3b:00.0` in the kernel's spelling.
fn pci_address(text: &str) -> Option<String> {
    let (bus, function) = text.rsplit_once('.')?;
    let parts: Vec<&str> = bus.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [bus, device] => ("0000", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return None,
    };
    let hex = |text: &str, digits: usize| {
        (text.len() == digits && text.chars().all(|c| c.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
    };
    let (domain, bus, device) = (hex(domain, 4)?, hex(bus, 2)?, hex(device, 2)?);
    let function = hex(function, 1)?;
    (device < 32 && function < 8).then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// A path with `~/` taken as the home of who runs us.
fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"
[limits]
test_s = 90

[[target]]
name = "igb"
kind = "emulated"
flavour = "igb"
pfs = 2

[[target]]
name = "rack3"
kind = "ssh"
address = "192.0.2.7"
sudo = true
nics = ["3B:00.0"]
limits = { target_s = 60 }

[[target]]
name = "here"
kind = "local"
"#;

    #[test]
    fn a_good_file_is_read_with_its_defaults() {
        let inventory = parse(GOOD, Path::new("lab.toml")).unwrap();
        let [igb, rack, here] = &inventory.targets[..] else {
            panic!("{inventory:?}")
        };
        let Kind::Emulated(emulated) = &igb.kind else {
            panic!("{igb:?}")
        };
        assert_eq!(emulated.flavour, Flavour::Igb { pfs: 2 });
        assert_eq!(igb.limits.test, Duration::from_secs(90));
        let Kind::Ssh(ssh) = &rack.kind else {
            panic!("{rack:?}")
        };
        assert_eq!(
            (ssh.user.as_str(), ssh.port, ssh.nics[0].as_str()),
            ("root", 22, "0000:3b:00.0")
        );
        assert_eq!(
            (rack.limits.test, rack.limits.target),
            (Duration::from_secs(90), Duration::from_secs(60))
        );
        assert_eq!(here.kind.word(), "local");
    }

    #[test]
    fn every_problem_is_named_with_its_line() {
        let text = r#"
[[target]]
name = "a b"
kind = "emulatd"

[[target]]
name = "x"
kind = "ssh"
address = "-oProxyCommand=reboot"
nics = ["eth0"]
ssh_options = ["-v"]
colour = 3

[[target]]
name = "x"
kind = "emulated"
flavour = "netdevsim"
pfs = 3
memory_mb = 4
"#;
        let said = parse(text, Path::new("lab.toml")).unwrap_err().to_string();
        for part in [
            "lab.toml:3:8: A target's name is",
            "lab.toml:4:8: \"emulatd\" is not known for kind; did you mean \"emulated\"?",
            "lab.toml:9:11: \"address\" has a character",
            "lab.toml:10:9: \"eth0\" is not a PCI address such as 0000:3b:00.0",
            "lab.toml:11:16: An ssh option is written as after -o",
            "lab.toml:12:1: \"colour\" is not known in [[target]]",
            "lab.toml:15:8: The target \"x\" is there twice",
            "lab.toml:18:7: pfs is for the flavour igb",
            "lab.toml:19:13: \"memory_mb\" of [[target]] is 4, which is not within 512 to 1048576",
        ] {
            assert!(said.contains(part), "{part}\nis not in\n{said}");
        }
    }

    #[test]
    fn the_shipped_inventory_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab.toml");
        let inventory = load(&path).unwrap();
        assert!(
            inventory
                .targets
                .iter()
                .all(|t| t.kind.word() == "emulated")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", key in "[a-z_]{1,12}") {
            let _ = parse(&text, Path::new("x"));
            let _ = parse(&format!("[[target]]\nname=\"a\"\nkind=\"ssh\"\n{key} = {text:?}"), Path::new("x"));
        }

        #[test]
        fn a_pci_address_is_read_in_both_spellings(bus in 0u32..256, device in 0u32..32, function in 0u32..8) {
            let short = format!("{bus:02x}:{device:02x}.{function}");
            let long = format!("0000:{short}");
            prop_assert_eq!(pci_address(&short), Some(long.clone()));
            prop_assert_eq!(pci_address(&long.to_uppercase()), Some(long));
        }
    }
}
