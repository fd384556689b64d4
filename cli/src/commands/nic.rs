//! `ferrovia nic`: NICs of this machine. They are listed without an agent; everything else is asked of it.

use crate::args::{Global, Nic};
use crate::failure::Failure;
use crate::output::{Format, Row, json, json_line, or_dash, print};
use crate::views::nic::{AnyNic, Nic as View, OffPci, Policy};
use api::v1;
use serde::Serialize;
use sriov_mgr::Inventory;
use std::path::Path;
use tonic::Code;

pub async fn run(global: &Global, command: Nic) -> Result<(), Failure> {
    match command {
        Nic::List => list(global).await,
        Nic::Show { nic } => show(global, &nic).await,
        Nic::Plan => plan(global).await,
        Nic::Apply { force } => apply(global, force).await,
        Nic::Reset { nic, force } => {
            let request = v1::ResetNicRequest {
                nic: nic.clone(),
                force,
            };
            let done = global.nics().await?.reset_nic(request).await?.into_inner();
            match global.output {
                Format::Json => json(&Done::from(done)),
                Format::Table => print(&Done::from(done).line()),
            }
        }
        Nic::Adopt { nic } => {
            let request = v1::NicRequest { nic };
            let nic = global.nics().await?.adopt_nic(request).await?.into_inner();
            global.output.said(&format!(
                "{} with its {} VFs is Ferrovia's now; nothing was changed on it.",
                nic.device, nic.num_vfs
            ))
        }
        Nic::Disown { nic } => {
            let request = v1::NicRequest { nic };
            let nic = global.nics().await?.disown_nic(request).await?.into_inner();
            global.output.said(&format!(
                "{} is given up and stays as it is, with {} VFs.",
                nic.device, nic.num_vfs
            ))
        }
        Nic::Watch => watch(global).await,
        Nic::Policies { set } => policies(global, set.as_deref()).await,
    }
}

/// What the agent says of its PFs; none without an agent, or while it does not manage NICs.
async fn managed(global: &Global) -> Result<Vec<v1::ManagedNic>, Failure> {
    let Some(mut client) = global.nics_if_any().await? else {
        return Ok(Vec::new());
    };
    match client.list_nics(v1::Empty {}).await {
        Ok(answer) => Ok(answer.into_inner().nics),
        // An agent of before, or one that has no manager: the inventory is shown without it.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
            eprintln!("note: without the agent's part: {}", status.message());
            Ok(Vec::new())
        }
        Err(status) => Err(status.into()),
    }
}

fn joined<'i>(inventory: &'i Inventory, managed: Vec<v1::ManagedNic>) -> Vec<AnyNic<'i>> {
    let of = |nic: &sriov_mgr::Nic| {
        let address = nic.address.to_string();
        managed.iter().find(|managed| managed.device == address)
    };
    let on_pci: Vec<AnyNic<'i>> = inventory
        .nics
        .iter()
        .map(|nic| AnyNic::Pci(Box::new(View::new(nic, of(nic)))))
        .collect();
    let known = |nic: &v1::ManagedNic| {
        inventory
            .nics
            .iter()
            .any(|known| known.address.to_string() == nic.device)
    };
    let others = managed.iter().filter(|nic| !known(nic)).cloned();
    let others: Vec<AnyNic<'i>> = others
        .map(|nic| AnyNic::OffPci(Box::new(nic.into())))
        .collect();
    on_pci.into_iter().chain(others).collect()
}

async fn list(global: &Global) -> Result<(), Failure> {
    let inventory = Inventory::read().await?;
    let nics = joined(&inventory, managed(global).await?);
    match global.output {
        Format::Table if nics.is_empty() => print("This machine has no PCI NIC."),
        output => output.list(&nics),
    }
}

async fn show(global: &Global, name: &str) -> Result<(), Failure> {
    let inventory = Inventory::read().await?;
    let managed = managed(global).await?;
    let off_pci = managed.iter().cloned().map(OffPci::from);
    if let Some(nic) = off_pci.into_iter().find(|nic| nic.is(name))
        && inventory.find(&name.into()).is_err()
    {
        return global.output.one(&nic);
    }
    let nic = inventory.find(&name.into())?;
    let address = nic.address.to_string();
    let agent = managed.iter().find(|managed| managed.device == address);
    global.output.one(&View::new(nic, agent))
}

#[derive(Serialize)]
struct Plan {
    steps: Vec<Step>,
    refused: Vec<Note>,
    notes: Vec<Note>,
    warnings: Vec<Note>,
    foreign: Vec<SecondOwner>,
}

#[derive(Serialize)]
struct Step {
    nic: String,
    what: String,
    disturbs: Vec<Disturbed>,
}

#[derive(Serialize)]
struct Disturbed {
    vf: String,
    holder: String,
}

impl Disturbed {
    fn all(list: Vec<v1::DisturbedVf>) -> Vec<Disturbed> {
        let one = |v1::DisturbedVf { vf, holder }| Disturbed { vf, holder };
        list.into_iter().map(one).collect()
    }

    fn words(list: &[Disturbed]) -> String {
        let words: Vec<String> = list
            .iter()
            .map(|one| format!("{} ({})", one.holder, one.vf))
            .collect();
        words.join(", ")
    }
}

#[derive(Serialize)]
struct Note {
    nic: String,
    why: String,
}

impl Note {
    fn all(list: Vec<v1::NicNote>) -> Vec<Note> {
        let one = |note: v1::NicNote| Note {
            nic: note.device,
            why: note.why,
        };
        list.into_iter().map(one).collect()
    }

    /// Beside the answer, which stays what a script reads.
    fn warn(list: &[Note]) {
        for note in list {
            eprintln!("warning: {}", note.line());
        }
    }

    fn line(&self) -> String {
        // Most sentences name the device themselves.
        match self.nic.is_empty() || self.why.contains(&self.nic) {
            true => self.why.clone(),
            false => format!("{}: {}", self.nic, self.why),
        }
    }
}

#[derive(Serialize)]
struct SecondOwner {
    nic: String,
    program: String,
    why: String,
}

impl Row for Step {
    const TITLES: &'static [&'static str] = &["NIC", "STEP", "DISTURBS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.nic.clone(),
            self.what.clone(),
            or_dash(Disturbed::words(&self.disturbs)),
        ]
    }
}

async fn plan(global: &Global) -> Result<(), Failure> {
    let answer = global.nics().await?.plan(v1::Empty {}).await?.into_inner();
    let steps = answer.steps.into_iter().map(|step| Step {
        nic: step.device,
        what: step.what,
        disturbs: Disturbed::all(step.disturbs),
    });
    let foreign = answer.foreign.into_iter().map(|other| SecondOwner {
        nic: other.device,
        program: other.program,
        why: other.why,
    });
    let plan = Plan {
        steps: steps.collect(),
        refused: Note::all(answer.refused),
        notes: Note::all(answer.notes),
        warnings: Note::all(answer.warnings),
        foreign: foreign.collect(),
    };
    if global.output == Format::Json {
        return json(&plan);
    }
    match plan.steps.is_empty() {
        true => print("Nothing is to be done.")?,
        false => global.output.list(&plan.steps)?,
    }
    for (title, notes) in [
        ("not possible", &plan.refused),
        ("warning", &plan.warnings),
        ("note", &plan.notes),
    ] {
        for note in notes {
            print(&format!("{title}: {}", note.line()))?;
        }
    }
    for other in &plan.foreign {
        print(&format!(
            "second owner: {} may be changed by {} too: {}",
            other.nic, other.program, other.why
        ))?;
    }
    if plan.steps.iter().any(|step| !step.disturbs.is_empty()) {
        print(
            "`ferrovia nic apply` leaves out the NICs where somebody is disturbed; --force includes them.",
        )?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Applied {
    done: Vec<Done>,
    refused: Vec<Note>,
    failed: Vec<Note>,
    warnings: Vec<Note>,
}

#[derive(Serialize)]
struct Done {
    nic: String,
    steps: Vec<String>,
    num_vfs: u32,
    disturbed: Vec<Disturbed>,
    lost: Vec<Disturbed>,
}

impl From<v1::NicDone> for Done {
    fn from(done: v1::NicDone) -> Self {
        Done {
            nic: done.device,
            steps: done.steps,
            num_vfs: done.num_vfs,
            disturbed: Disturbed::all(done.disturbed),
            lost: Disturbed::all(done.lost),
        }
    }
}

impl Done {
    fn line(&self) -> String {
        let mut line = format!("{} has {} VFs now.", self.nic, self.num_vfs);
        for (list, what) in [
            (&self.disturbed, "Disturbed"),
            (&self.lost, "Without a VF now"),
        ] {
            if !list.is_empty() {
                line.push_str(&format!(" {what}: {}.", Disturbed::words(list)));
            }
        }
        line
    }
}

async fn apply(global: &Global, force: bool) -> Result<(), Failure> {
    let request = v1::ApplyNicsRequest { force };
    let mut events = global.nics().await?.apply(request).await?.into_inner();
    let mut result = None;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(v1::apply_nics_event::Event::Progress(step)) => {
                eprintln!("[{}/{}] {}: {}", step.step, step.of, step.device, step.what);
            }
            Some(v1::apply_nics_event::Event::Result(all)) => result = Some(all),
            None => {}
        }
    }
    let result = result.ok_or_else(|| {
        Failure::unreachable(
            "The agent went away before it was done; `ferrovia nic plan` shows what is left",
        )
    })?;
    let applied = Applied {
        done: result.done.into_iter().map(Done::from).collect(),
        refused: Note::all(result.refused),
        failed: Note::all(result.failed),
        warnings: Note::all(result.warnings),
    };
    Note::warn(&applied.warnings);
    match global.output {
        Format::Json => json(&applied)?,
        Format::Table => {
            for done in &applied.done {
                print(&done.line())?;
            }
            if applied.done.is_empty() && applied.refused.is_empty() && applied.failed.is_empty() {
                print("Nothing was to be done.")?;
            }
        }
    }
    let lines = |notes: &[Note]| {
        let lines: Vec<String> = notes.iter().map(Note::line).collect();
        lines.join("\n       ")
    };
    match (applied.failed.is_empty(), applied.refused.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(Failure::taken(lines(&applied.refused))),
        (false, true) => Err(Failure::other(lines(&applied.failed))),
        (false, false) => Err(Failure::other(format!(
            "{}\n       {}",
            lines(&applied.failed),
            lines(&applied.refused)
        ))),
    }
}

#[derive(Serialize)]
struct Event {
    kind: String,
    device: String,
    owner: String,
    text: String,
    at_ms: i64,
}

async fn watch(global: &Global) -> Result<(), Failure> {
    let mut events = global.nics().await?.watch(v1::Empty {}).await?.into_inner();
    loop {
        let event = tokio::select! {
            event = events.message() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(event) = event else {
            return Err(Failure::unreachable("The agent has ended"));
        };
        match global.output {
            Format::Table => print(&format!("{:<12} {}", event.kind, event.text))?,
            Format::Json => json_line(&Event {
                kind: event.kind,
                device: event.device,
                owner: event.owner,
                text: event.text,
                at_ms: event.at_ms,
            })?,
        }
    }
}

async fn policies(global: &Global, set: Option<&Path>) -> Result<(), Failure> {
    let mut client = global.nics().await?;
    let answer = match set {
        None => client.get_policies(v1::Empty {}).await?,
        Some(file) => {
            let text = match file.to_str() {
                Some("-") => std::io::read_to_string(std::io::stdin()),
                _ => std::fs::read_to_string(file),
            };
            let shown = file.display();
            let text =
                text.map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
            let list: Vec<Policy> = serde_json::from_str(&text).map_err(|error| {
                Failure::usage(format!(
                    "{shown} is not a list of policies: {error}; `ferrovia nic policies -o json` prints one"
                ))
            })?;
            let policies = list.into_iter().map(v1::NicPolicy::from).collect();
            let asked = v1::NicPolicies {
                policies,
                ..Default::default()
            };
            client.set_policies(asked).await?
        }
    };
    let answer = answer.into_inner();
    Note::warn(&Note::all(answer.warnings));
    let all = answer.policies.into_iter();
    global
        .output
        .list(&all.map(Policy::from).collect::<Vec<_>>())
}
