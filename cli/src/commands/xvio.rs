//! `ferrovia xvio`: relays of this host.

use crate::args::{AddRelay, Global, SocketMode, Xvio};
use crate::failure::Failure;
use crate::output::{Format, json_line, print};
use crate::views::xvio::{Rate, Relay, rates};
use api::v1;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

pub async fn run(global: &Global, command: Xvio) -> Result<(), Failure> {
    let mut client = global.relays().await?;
    match command {
        Xvio::Add(asked) => {
            let relay = client.add_relay(spec(*asked)?).await?.into_inner();
            global.output.one(&Relay::from(relay))
        }
        Xvio::Remove { name } => {
            let request = v1::RelayRequest { name: name.clone() };
            let removed = client.remove_relay(request).await?.into_inner();
            global.output.said(&match removed.existed {
                true => format!("Relay \"{name}\" is removed."),
                false => format!("There was no relay \"{name}\"."),
            })
        }
        Xvio::List => {
            let relays = client.list_relays(v1::Empty {}).await?.into_inner().relays;
            let relays: Vec<_> = relays.into_iter().map(Relay::from).collect();
            match global.output {
                Format::Table if relays.is_empty() => print("There are no relays."),
                output => output.list(&relays),
            }
        }
        Xvio::Show { name } => {
            let relay = client.get_relay(v1::RelayRequest { name }).await?;
            global.output.one(&Relay::from(relay.into_inner()))
        }
        Xvio::Move { name, worker } => {
            let request = v1::MoveRelayRequest { name, worker };
            let relay = client.move_relay(request).await?.into_inner();
            global.output.one(&Relay::from(relay))
        }
        Xvio::Top {
            name,
            interval,
            count,
        } => top(global, name, Duration::from_secs_f64(interval), count).await,
    }
}

fn spec(asked: AddRelay) -> Result<v1::RelaySpec, Failure> {
    let socket = match asked.socket {
        None => String::new(),
        Some(path) => match std::path::absolute(&path) {
            Ok(path) => path.display().to_string(),
            Err(error) => return Err(Failure::usage(format!("{}: {error}", path.display()))),
        },
    };
    let mode = match asked.socket_mode {
        SocketMode::AgentListens => v1::SocketMode::AgentListens,
        SocketMode::AgentConnects => v1::SocketMode::AgentConnects,
    };
    let vf = asked.vf.map(v1::relay_spec::Far::Vf);
    Ok(v1::RelaySpec {
        name: asked.name,
        socket,
        mode: mode.into(),
        queue_pairs: asked.queue_pairs,
        queue_size: asked.queue_size,
        mtu: asked.mtu,
        mac: asked.mac,
        vlan: asked.vlan,
        far: vf.or(asked.device.map(v1::relay_spec::Far::Device)),
    })
}

/// What is looked at: all relays, or one.
async fn look(global: &Global, name: Option<&str>) -> Result<(Instant, Vec<v1::Relay>), Failure> {
    let mut client = global.relays().await?;
    let relays = match name {
        Some(name) => {
            let request = v1::RelayRequest { name: name.into() };
            vec![client.get_relay(request).await?.into_inner()]
        }
        None => client.list_relays(v1::Empty {}).await?.into_inner().relays,
    };
    Ok((Instant::now(), relays))
}

async fn top(
    global: &Global,
    name: Option<String>,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let name = name.as_deref();
    let (mut at, mut before) = look(global, name).await?;
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        tokio::time::sleep(interval).await;
        let (now, relays) = look(global, name).await?;
        let seconds = now.duration_since(at).as_secs_f64();
        let rows: Vec<Rate> = rates(&before, &relays, seconds, name.is_some());
        match global.output {
            Format::Json => json_line(&rows)?,
            Format::Table if rows.is_empty() => print("There are no relays.")?,
            output => {
                if stdout().is_terminal() {
                    // The same place again: home, and everything below is cleared.
                    print("\x1b[H\x1b[2J")?;
                } else if shown > 0 {
                    print("")?;
                }
                output.list(&rows)?;
            }
        }
        (at, before) = (now, relays);
        shown += 1;
    }
    Ok(())
}
