//! Counters for Prometheus, over HTTP: `[metrics]` of agent.toml. Nothing listens without it.
//!
//! The text is OpenMetrics, made anew for each request from the same counters that the local API shows. It says
//! nothing that could be changed by asking, and asking changes nothing.

use crate::control::Handle;
use crate::relays::service::Reading;
use crate::view::View;
use api::v1;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use fallback_dpdk::{Dataplane, PortCounters, WorkerStats};
use flow::{DropReason, PortId};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Connections at the same time; others wait in the kernel. Guests' sockets need descriptors too.
const AT_ONCE: usize = 16;
/// How long a connection may take, from its first byte to the last of its answer.
const LONGEST: Duration = Duration::from_secs(10);

/// What OpenMetrics text is called.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listener cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{listen} of [metrics] cannot be listened on; is another program there?")]
pub struct MetricsError {
    listen: SocketAddr,
    source: std::io::Error,
}

/// Listens; what is asked is answered by [`serve`].
///
/// # Errors
/// The address is taken or not this host's.
pub async fn listen(listen: SocketAddr) -> Result<TcpListener, MetricsError> {
    let bound = TcpListener::bind(listen).await;
    bound.map_err(|source| MetricsError { listen, source })
}

/// Answers `GET /metrics` for as long as the agent runs.
pub async fn serve(listener: TcpListener, handle: Handle, dataplane: Arc<Dataplane>) {
    let answer = move || {
        let (handle, dataplane) = (handle.clone(), Arc::clone(&dataplane));
        async move { answer(&handle, dataplane).await }
    };
    let router = Router::new().route("/metrics", get(answer));
    let listener = Bounded {
        listener,
        turns: Arc::new(Semaphore::new(AT_ONCE)),
    };
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}

async fn answer(handle: &Handle, dataplane: Arc<Dataplane>) -> Response {
    let view = handle.view().borrow().clone();
    // The data plane's lock may be held for a moment by somebody who changes a port.
    let text = tokio::task::spawn_blocking(move || text(&view, &dataplane)).await;
    match text {
        Ok(Ok(text)) => {
            // Each has a connection of its own, which ends in time.
            let headers = [
                (header::CONTENT_TYPE, CONTENT_TYPE),
                (header::CONNECTION, "close"),
            ];
            (headers, text).into_response()
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A listener that accepts no more than so many at a time.
struct Bounded {
    listener: TcpListener,
    turns: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let connection = Connection {
            stream,
            end: Box::pin(sleep(LONGEST)),
            _turn: turn,
        };
        (connection, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over, whether its other end is slow to ask or to read.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// Everything that is counted, as text.
fn text(view: &View, dataplane: &Dataplane) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("ferrovia");
    let reading = Reading::of(dataplane);
    let relays: Vec<_> = view.relays.values().map(|r| reading.relay(r)).collect();
    add_relays(&mut registry, &relays);
    let counters = dataplane.counters();
    add_ports(&mut registry, view, &counters.ports);
    add_workers(&mut registry, &dataplane.workers());
    let drops = counter(&mut registry, "drops", "Packets dropped on this host");
    for (reason, packets) in DropReason::ALL.iter().zip(counters.drops) {
        add(&drops, vec![("reason", reason.name().to_owned())], packets);
    }
    let flows = gauge(&mut registry, "flows", "Flows in the tables");
    set(&flows, Labels::new(), counters.flows as i64);
    let buffers = gauge(
        &mut registry,
        "buffers_free",
        "Packet buffers that are free",
    );
    set(&buffers, Labels::new(), i64::from(counters.buffers_free));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

fn add(family: &Counters, labels: Labels, value: u64) {
    family.get_or_create(&labels).inc_by(value);
}

fn set(family: &Gauges, labels: Labels, value: i64) {
    family.get_or_create(&labels).set(value);
}

fn add_relays(registry: &mut Registry, relays: &[v1::Relay]) {
    let mut of = |name: &str, help: &str| counter(registry, name, help);
    let packets = of("relay_ring_packets", "Packets moved through a guest's ring");
    let bytes = of("relay_ring_bytes", "Their bytes");
    let bursts = of("relay_ring_bursts", "Bursts that moved at least one packet");
    let kicks = of("relay_ring_kicks", "Interrupts sent to the guest");
    let suppressed = of(
        "relay_ring_kicks_suppressed",
        "Interrupts that the guest did not want",
    );
    let lost = of("relay_ring_drops", "Packets lost at a guest's ring");
    let dropped = of("relay_drops", "Packets of a relay dropped, by reason");
    let device_packets = of("relay_device_packets", "Packets of the device of a relay");
    let device_bytes = of("relay_device_bytes", "Their bytes");
    let state = gauge(
        registry,
        "relay_state",
        "1 for the state that a relay is in",
    );
    let connected = gauge(
        registry,
        "relay_guest_connected",
        "Whether a guest is there",
    );
    let link = gauge(
        registry,
        "relay_device_link_up",
        "Whether the device of a relay has a link",
    );
    for relay in relays {
        let name = relay.spec.as_ref().map_or("", |spec| &spec.name).to_owned();
        let own = |more: Labels| -> Labels {
            let mut labels = vec![("relay", name.clone())];
            // A port may have the name of a relay, or of a port of another network.
            if !relay.network.is_empty() {
                labels.push(("network", relay.network.clone()));
            }
            labels.extend(more);
            labels
        };
        let now = relay.state().as_str_name().trim_start_matches("RELAY_");
        let now = now.to_lowercase().replace('_', "-");
        set(&state, own(vec![("state", now)]), 1);
        set(&connected, own(Labels::new()), relay.guest_connected.into());
        for queue in &relay.queues {
            let rings = [
                ("from_guest", &queue.from_guest),
                ("to_guest", &queue.to_guest),
            ];
            for (direction, ring) in rings {
                let Some(ring) = ring else { continue };
                let labels = || {
                    own(vec![
                        ("queue", queue.index.to_string()),
                        ("direction", direction.to_owned()),
                    ])
                };
                add(&packets, labels(), ring.packets);
                add(&bytes, labels(), ring.bytes);
                add(&bursts, labels(), ring.bursts);
                add(&kicks, labels(), ring.kicks);
                add(&suppressed, labels(), ring.kicks_suppressed);
                for drop in &ring.drops {
                    let mut labels = labels();
                    labels.push(("reason", drop.reason.clone()));
                    add(&lost, labels, drop.packets);
                }
            }
        }
        for drop in &relay.drops {
            let labels = own(vec![("reason", drop.reason.clone())]);
            add(&dropped, labels, drop.packets);
        }
        if let Some(device) = &relay.device {
            let labels = |direction: &str| {
                own(vec![
                    ("device", device.name.clone()),
                    ("direction", direction.to_owned()),
                ])
            };
            add(&device_packets, labels("rx"), device.rx_packets);
            add(&device_packets, labels("tx"), device.tx_packets);
            add(&device_bytes, labels("rx"), device.rx_bytes);
            add(&device_bytes, labels("tx"), device.tx_bytes);
            set(&link, own(Labels::new()), device.link_up.into());
        }
    }
}

/// Ports as their guests see them; the uplink as this host does.
fn add_ports(registry: &mut Registry, view: &View, ports: &[(PortId, PortCounters)]) {
    let packets = counter(registry, "port_packets", "Packets of a port");
    let bytes = counter(registry, "port_bytes", "Their bytes");
    let drops = counter(registry, "port_drops", "Packets of a port dropped");
    for (number, counters) in ports {
        let (name, network, uplink) = match view.by_number(*number) {
            Some(port) => {
                let network = view.networks.get(&port.vni).cloned();
                (port.port.name.clone(), network.unwrap_or_default(), false)
            }
            None if *number == PortId::UPLINK => ("uplink".to_owned(), String::new(), true),
            // A relay has its own.
            None => continue,
        };
        let mut sums = [
            ("rx", counters.rx_packets, counters.rx_bytes),
            ("tx", counters.tx_packets, counters.tx_bytes),
        ];
        if !uplink {
            (sums[0].0, sums[1].0) = ("tx", "rx");
        }
        let own = || vec![("port", name.clone()), ("network", network.clone())];
        for (direction, sum_packets, sum_bytes) in sums {
            let mut labels = own();
            labels.push(("direction", direction.to_owned()));
            add(&packets, labels.clone(), sum_packets);
            add(&bytes, labels, sum_bytes);
        }
        for (reason, count) in counters.dropped() {
            let mut labels = own();
            labels.push(("reason", reason.name().to_owned()));
            add(&drops, labels, count);
        }
    }
}

fn add_workers(registry: &mut Registry, workers: &[WorkerStats]) {
    let cycles = counter(
        registry,
        "worker_cycles",
        "Cycles of a worker, by what it did",
    );
    let sleeps = counter(
        registry,
        "worker_sleeps",
        "How often a worker went to sleep",
    );
    let hz = gauge(registry, "cycles_per_second", "Cycles in a second");
    for worker in workers {
        let index = worker.index.to_string();
        for (state, count) in [
            ("busy", worker.busy_cycles),
            ("idle", worker.idle_cycles),
            ("asleep", worker.asleep_cycles),
        ] {
            let labels = vec![("worker", index.clone()), ("state", state.to_owned())];
            add(&cycles, labels, count);
        }
        add(&sleeps, vec![("worker", index)], worker.sleeps);
        set(&hz, Labels::new(), worker.cycles_hz as i64);
    }
}
