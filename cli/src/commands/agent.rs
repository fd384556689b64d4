//! `ferrovia status`, `flow`, `counters` and `drops`: what this host's agent does.

use crate::args::{Flow, Global};
use crate::failure::Failure;
use crate::output::{Format, json, print};
use crate::views;
use api::v1;
use serde::Serialize;

pub async fn status(global: &Global) -> Result<(), Failure> {
    let info = global
        .agent()
        .await?
        .get_status(v1::Empty {})
        .await?
        .into_inner();
    global.output.one(&views::Agent::from(info))
}

pub async fn flow(global: &Global, command: Flow) -> Result<(), Failure> {
    let mut client = global.agent().await?;
    match command {
        Flow::List { port, limit } => {
            let request = v1::ListFlowsRequest {
                port: port.unwrap_or_default(),
                limit,
            };
            let answer = client.list_flows(request).await?.into_inner();
            let flows: Vec<_> = answer.flows.into_iter().map(views::Flow::from).collect();
            global.output.list(&flows)?;
            if answer.total > flows.len() as u64 {
                eprintln!(
                    "{} of {} flows shown; --limit shows more",
                    flows.len(),
                    answer.total
                );
            }
            Ok(())
        }
        Flow::Trace {
            port,
            dst,
            src,
            protocol,
            src_port,
            dst_port,
        } => {
            let request = v1::TraceRequest {
                port,
                packet: Vec::new(),
                dst: dst.to_string(),
                src: src.map(|ip| ip.to_string()).unwrap_or_default(),
                protocol,
                src_port: src_port.into(),
                dst_port: dst_port.into(),
            };
            let trace = client.trace(request).await?.into_inner();
            match global.output {
                Format::Json => json(&Trace {
                    key: trace.key,
                    steps: trace.steps,
                    verdict: trace.verdict,
                }),
                Format::Table => {
                    print(&trace.key)?;
                    for (number, step) in trace.steps.iter().enumerate() {
                        print(&format!("{:3}. {step}", number + 1))?;
                    }
                    print(&format!("  => {}", trace.verdict))
                }
            }
        }
    }
}

#[derive(Serialize)]
struct Trace {
    key: String,
    steps: Vec<String>,
    verdict: String,
}

/// What `counters -o json` prints.
#[derive(Serialize)]
struct Counters {
    ports: Vec<views::PortCounters>,
    drops: Vec<views::Drop>,
    flow_hits: u64,
    flow_misses: u64,
    flows: u64,
    flow_capacity: u64,
}

pub async fn counters(global: &Global) -> Result<(), Failure> {
    let mut client = global.agent().await?;
    let host = client.get_counters(v1::Empty {}).await?.into_inner();
    let ports = client
        .list_local_ports(v1::Empty {})
        .await?
        .into_inner()
        .ports;
    let mut rows = vec![views::PortCounters::new(
        "uplink",
        "",
        &host.uplink.clone().unwrap_or_default(),
    )];
    for local in &ports {
        let port = local.port.clone().unwrap_or_default();
        let counters = local.counters.clone().unwrap_or_default();
        rows.push(views::PortCounters::new(
            &port.name,
            &port.network_name,
            &counters,
        ));
    }
    match global.output {
        Format::Json => json(&Counters {
            ports: rows,
            drops: host_drops(&host),
            flow_hits: host.flow_hits,
            flow_misses: host.flow_misses,
            flows: host.flows,
            flow_capacity: host.flow_capacity,
        }),
        Format::Table => {
            global.output.list(&rows)?;
            print(&format!(
                "\nflows {} of {}, {} packets found their flow, {} did not",
                host.flows, host.flow_capacity, host.flow_hits, host.flow_misses
            ))
        }
    }
}

pub async fn drops(global: &Global) -> Result<(), Failure> {
    let mut client = global.agent().await?;
    let host = client.get_counters(v1::Empty {}).await?.into_inner();
    let ports = client
        .list_local_ports(v1::Empty {})
        .await?
        .into_inner()
        .ports;
    let mut rows = host_drops(&host);
    rows.extend(of_port("uplink", &host.uplink.unwrap_or_default()));
    for local in ports {
        let name = local.port.map(|p| p.name).unwrap_or_default();
        rows.extend(of_port(&name, &local.counters.unwrap_or_default()));
    }
    if rows.is_empty() && global.output == Format::Table {
        return print("No packet was dropped.");
    }
    global.output.list(&rows)
}

fn host_drops(host: &v1::Counters) -> Vec<views::Drop> {
    host.drops
        .iter()
        .filter_map(|d| drop_view("host", d))
        .collect()
}

fn of_port(port: &str, counters: &v1::PortCounters) -> Vec<views::Drop> {
    counters
        .drops
        .iter()
        .filter_map(|d| drop_view(port, d))
        .collect()
}

fn drop_view(port: &str, count: &v1::DropCount) -> Option<views::Drop> {
    (count.packets > 0).then(|| views::Drop {
        port: port.to_owned(),
        reason: count.reason.clone(),
        packets: count.packets,
    })
}
