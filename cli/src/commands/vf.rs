//! `ferrovia vf`: VFs of this machine. They are listed, shown and checked without an agent too; only an agent
//! hands them out and takes them back.

use crate::args::{Allocate, Global, VFIO_CHECK, Vf};
use crate::connect::chain;
use crate::failure::Failure;
use crate::output::{Format, json, print};
use crate::views::vf::{Allocation, Vf as View};
use api::v1;
use sriov_mgr::vfio::{CheckRequest, check_in_child};
use sriov_mgr::{Inventory, PciAddress};
use std::process::Command;
use std::time::Duration;
use tonic::Code;

/// How long all steps of a check together may take.
const CHECK: Duration = Duration::from_secs(30);

pub async fn run(global: &Global, command: Vf) -> Result<(), Failure> {
    match command {
        Vf::List { nic, pool } => {
            let vfs = match all(global).await? {
                (vfs, true) => filtered(vfs, global, nic, pool).await?,
                (_, false) if pool.is_some() => {
                    return Err(Failure::unreachable(
                        "Pools are the agent's, and none answers here; start it, or leave --pool out",
                    ));
                }
                (vfs, false) => of_nic(vfs, nic).await?,
            };
            match global.output {
                Format::Table if vfs.is_empty() => print("There are no VFs."),
                output => output.list(&vfs),
            }
        }
        Vf::Show { vf } => {
            let (vfs, _) = all(global).await?;
            global.output.one(&find(vfs, &vf).await?)
        }
        Vf::Check { vf, force } => check_vf(global, &vf, &force).await,
        Vf::Allocate(asked) => allocate(global, asked).await,
        Vf::Release { owner, force } => {
            let request = v1::ReleaseVfRequest { owner, force };
            let released = global.nics().await?.release_vf(request).await?.into_inner();
            global.output.said(&format!(
                "VF {} of {} is free and clean.",
                released.vf, released.owner
            ))?;
            for note in released.notes {
                global.output.said(&format!("note: {note}"))?;
            }
            Ok(())
        }
    }
}

/// Every VF, and whether an agent told of them.
async fn all(global: &Global) -> Result<(Vec<View>, bool), Failure> {
    if let Some(mut client) = global.nics_if_any().await? {
        match client.list_vfs(v1::ListVfsRequest::default()).await {
            Ok(answer) => {
                let vfs = answer.into_inner().vfs.into_iter();
                return Ok((vfs.map(View::from).collect(), true));
            }
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
                eprintln!("note: without the agent's part: {}", status.message());
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok((View::of(&Inventory::read().await?), false))
}

async fn filtered(
    vfs: Vec<View>,
    global: &Global,
    nic: Option<String>,
    pool: Option<String>,
) -> Result<Vec<View>, Failure> {
    if nic.is_none() && pool.is_none() {
        return Ok(vfs);
    }
    let request = v1::ListVfsRequest {
        nic: nic.unwrap_or_default(),
        pool: pool.unwrap_or_default(),
    };
    let answer = global.nics().await?.list_vfs(request).await?.into_inner();
    Ok(answer.vfs.into_iter().map(View::from).collect())
}

async fn of_nic(mut vfs: Vec<View>, nic: Option<String>) -> Result<Vec<View>, Failure> {
    if let Some(name) = nic {
        let inventory = Inventory::read().await?;
        let pf = inventory.find(&name.as_str().into())?.address.to_string();
        vfs.retain(|vf| vf.pf == pf);
    }
    Ok(vfs)
}

/// The VF of this name: its address, or PF (by device or interface) and number.
async fn find(vfs: Vec<View>, name: &str) -> Result<View, Failure> {
    let mut id = name.to_owned();
    if let Some((pf, number)) = name.rsplit_once('#')
        && let Ok(nic) = Inventory::read().await?.find(&pf.into())
    {
        id = format!("{}#{number}", nic.address);
    }
    let mut vfs = vfs.into_iter();
    let found = vfs.find(|vf| vf.id == id || (!vf.address.is_empty() && vf.address == name));
    found.ok_or_else(|| {
        Failure::not_found(format!(
            "There is no VF \"{name}\" on this host; `ferrovia vf list` shows those there are"
        ))
    })
}

async fn allocate(global: &Global, asked: Allocate) -> Result<(), Failure> {
    let request = v1::AllocateVfRequest {
        owner: asked.owner,
        pool: asked.pool.unwrap_or_default(),
        vf: asked.vf.unwrap_or_default(),
        numa_node: asked.numa_node,
        avoid_pfs: asked.avoid,
        mac: asked.mac.unwrap_or_default(),
        settings: Some(v1::VfDefaults {
            vlan: asked.vlan,
            ..Default::default()
        }),
        driver: asked.driver.map_or("", |driver| driver.name()).to_owned(),
    };
    let given = global
        .nics()
        .await?
        .allocate_vf(request)
        .await?
        .into_inner();
    global.output.one(&Allocation::from(given))
}

/// Checks in another process of this program, for a broken device can hold it for ever.
async fn check_vf(global: &Global, name: &str, force: &[String]) -> Result<(), Failure> {
    let (vfs, _) = all(global).await?;
    let vf = find(vfs, name).await?;
    let function: PciAddress = vf.address.parse().map_err(|_| {
        Failure::taken(format!(
            "VF {} is no function of its own, so it cannot be given to a VM",
            vf.id
        ))
    })?;
    let force = force
        .iter()
        .map(|name| name.parse().map_err(Failure::usage));
    let request = CheckRequest {
        function,
        force: force.collect::<Result<_, _>>()?,
    };
    let mut child = Command::new(std::env::current_exe()?);
    child.arg(VFIO_CHECK);
    let report = check_in_child(child, &request, CHECK, &mut |_| {})
        .map_err(|error| Failure::other(chain(&error)))?;
    match global.output {
        Format::Json => json(&report)?,
        Format::Table => print(&report.to_string())?,
    }
    match report.passed() {
        true => Ok(()),
        false => Err(Failure::taken(format!(
            "VF {} ({function}) cannot be given to a VM as it is",
            vf.id
        ))),
    }
}
