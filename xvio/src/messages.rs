//! What each vhost-user message does to the device.
//!
//! The `vhost` crate's types and numbers are used, its `BackendReqHandler` is not:
//! - it has no way to handle SET_STATUS, GET_STATUS or NET_SET_MTU, and ends the connection on
//!   them, although the frontends here (QEMU, DPDK's virtio-user) use them when they may;
//! - it refuses SET_VRING_ENABLE before SET_FEATURES, which QEMU sends, and an error before its
//!   acknowledgement leaves a frontend that asked for one waiting;
//! - it reads in one blocking piece (see `wire.rs`);
//! - in-flight tables and dirty logging need SET_LOG_FD, SEND_RARP and the freedom to answer with
//!   descriptors of our own.
//!
//! A message with impossible content is answered with a failure if the frontend asked for an
//! answer; otherwise the connection ends, which is the only other way to tell it.

mod shared;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use crate::BackendConfig;
use crate::device::{Addresses, Device, KickSetup};
use crate::inflight::InflightError;
use crate::memory::{GuestMemory, MAX_REGIONS, MemoryError, RegionInfo};
use crate::queue::Notifier;
use crate::wire::Message;

/// Bit 8 of the body of a vring descriptor message: there is no descriptor.
const NO_FD: u64 = 0x100;
/// Bit 0 of the flags of SET_VRING_ADDR: writes to the ring itself are logged.
const VRING_LOG: u32 = 1;
/// Smallest MTU there is (RFC 791).
const MIN_MTU: u64 = 68;

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("Message {0} is not one that was offered")]
    Unknown(u32),
    #[error("Message {request} has a body of {got} bytes instead of {wanted}")]
    Length {
        request: u32,
        got: usize,
        wanted: usize,
    },
    #[error("Message {request} came with {got} file descriptors instead of {wanted}")]
    Descriptors {
        request: u32,
        got: usize,
        wanted: usize,
    },
    #[error("Message {request} needs protocol feature {feature}, which was not negotiated")]
    NotNegotiated { request: u32, feature: &'static str },
    #[error("The frontend accepted features {0:#x}, which were not offered")]
    NotOffered(u64),
    #[error("Vring {index} does not exist: the port has {rings}; give the port more queue pairs")]
    NoSuchVring { index: u64, rings: usize },
    #[error("Vring {index} is to have {size} entries; a power of two up to {max} is allowed")]
    VringSize { index: u64, size: u32, max: u16 },
    #[error("Vring {index} is to be enabled with {value}, which is neither 0 nor 1")]
    EnableValue { index: u64, value: u32 },
    #[error("Vring {0} got a descriptor that is not an eventfd")]
    NotAnEventfd(u64),
    #[error("The frontend's MTU {asked} is not between {MIN_MTU} and the port's {ours}")]
    Mtu { asked: u64, ours: u16 },
    #[error("The memory table was refused")]
    Memory(#[from] MemoryError),
    #[error("A dirty log of {size:#x} bytes at offset {offset:#x} of its file is not possible")]
    LogBase { size: u64, offset: u64 },
    #[error("The dirty log was refused")]
    Log(#[source] MemoryError),
    #[error("The descriptor for telling of the dirty log is not an eventfd")]
    LogNotAnEventfd,
    #[error("The descriptor for requests of the backend is not a stream socket")]
    NotASocket,
    #[error("The in-flight table was refused")]
    Inflight(#[from] InflightError),
}

/// What to answer, beside an acknowledgement.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Nothing; an acknowledgement if asked for.
    Ack,
    /// A number.
    U64(u64),
    /// A vring's index and state.
    VringState(u32, u32),
    /// A body.
    Body(Vec<u8>),
    /// A body and a descriptor.
    WithFd(Vec<u8>, OwnedFd),
}

/// Fields of a body, in native byte order; the length was checked.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    }

    fn region(&self, at: usize) -> RegionInfo {
        RegionInfo {
            guest: self.u64(at),
            size: self.u64(at + 8),
            user: self.u64(at + 16),
            offset: self.u64(at + 24),
        }
    }
}

/// Bytes of a region in a message.
const REGION: usize = 32;

/// The requests that carry descriptors.
fn takes_fds(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::SET_MEM_TABLE
            | R::ADD_MEM_REG
            | R::SET_VRING_KICK
            | R::SET_VRING_CALL
            | R::SET_VRING_ERR
            | R::SET_LOG_BASE
            | R::SET_LOG_FD
            | R::SET_BACKEND_REQ_FD
            | R::SET_INFLIGHT_FD
    )
}

/// Does what a message says.
pub(crate) fn handle(
    device: &mut Device,
    config: &BackendConfig,
    message: Message,
) -> Result<Reply, MessageError> {
    use FrontendReq as R;
    let Message {
        request: number,
        body,
        mut fds,
        ..
    } = message;
    let request = R::try_from(number).map_err(|_| MessageError::Unknown(number))?;
    if !takes_fds(request) {
        // Not asked for; REM_MEM_REG of some frontends has one.
        fds.clear();
    }
    let length = |wanted: usize| match body.len() {
        got if got == wanted => Ok(()),
        got => Err(MessageError::Length {
            request: number,
            got,
            wanted,
        }),
    };
    let protocol = device.protocol;
    let need = |feature: Protocol, name: &'static str| match protocol & feature.bits() {
        0 => Err(MessageError::NotNegotiated {
            request: number,
            feature: name,
        }),
        _ => Ok(()),
    };
    let fields = Body(&body);
    match request {
        // A frontend that reconnects says this again.
        R::SET_OWNER => length(0)?,
        R::RESET_OWNER => {
            length(0)?;
            device.reset_rings();
            device.set_memory(GuestMemory::default());
        }
        R::RESET_DEVICE => {
            need(Protocol::RESET_DEVICE, "RESET_DEVICE")?;
            length(0)?;
            device.reset_rings();
        }
        R::GET_FEATURES => {
            length(0)?;
            return Ok(Reply::U64(config.features.virtio()));
        }
        R::SET_FEATURES => {
            length(8)?;
            let features = offered(fields.u64(0), config.features.virtio())?;
            device.set_features(features);
        }
        R::GET_PROTOCOL_FEATURES => {
            length(0)?;
            return Ok(Reply::U64(config.features.protocol()));
        }
        R::SET_PROTOCOL_FEATURES => {
            length(8)?;
            device.protocol = offered(fields.u64(0), config.features.protocol())?;
        }
        R::GET_QUEUE_NUM => {
            need(Protocol::MQ, "MQ")?;
            length(0)?;
            return Ok(Reply::U64(device.rings.len() as u64 / 2));
        }
        R::SET_MEM_TABLE => device.set_memory(memory_table(number, &body, fds)?),
        R::GET_MAX_MEM_SLOTS => {
            need(Protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
            length(0)?;
            return Ok(Reply::U64(MAX_REGIONS as u64));
        }
        R::ADD_MEM_REG => {
            need(Protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
            length(8 + REGION)?;
            let file = File::from(single(number, fds)?);
            let memory = device.memory().with(fields.region(8), file)?;
            device.set_memory(memory);
        }
        R::REM_MEM_REG => {
            need(Protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
            length(8 + REGION)?;
            let memory = device.memory().without(fields.region(8))?;
            device.set_memory(memory);
        }
        R::SET_STATUS => {
            need(Protocol::STATUS, "STATUS")?;
            length(8)?;
            match fields.u64(0) as u8 {
                0 => device.reset_rings(),
                status => device.status = status,
            }
        }
        R::GET_STATUS => {
            need(Protocol::STATUS, "STATUS")?;
            length(0)?;
            return Ok(Reply::U64(device.status.into()));
        }
        R::NET_SET_MTU => {
            need(Protocol::MTU, "NET_MTU")?;
            length(8)?;
            let (asked, ours) = (fields.u64(0), config.mtu);
            if !(MIN_MTU..=u64::from(ours)).contains(&asked) {
                return Err(MessageError::Mtu { asked, ours });
            }
        }
        R::SET_LOG_BASE => {
            need(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
            length(16)?;
            return shared::set_log_base(device, number, &body, fds);
        }
        R::SET_LOG_FD => {
            need(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
            // The frontends do not agree on whether it has a body; there is nothing in it.
            return shared::set_log_fd(device, number, fds);
        }
        R::SEND_RARP => {
            need(Protocol::RARP, "RARP")?;
            length(8)?;
            // The MAC address is the body's first six bytes, whatever the byte order.
            device.announce = body.first_chunk().copied();
        }
        R::SET_BACKEND_REQ_FD => {
            need(Protocol::BACKEND_REQ, "BACKEND_REQ")?;
            length(0)?;
            return shared::set_backend_channel(device, number, fds);
        }
        R::GET_INFLIGHT_FD => {
            need(Protocol::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
            return shared::get_inflight(device, config, number, &body);
        }
        R::SET_INFLIGHT_FD => {
            need(Protocol::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
            return shared::set_inflight(device, config, number, &body, fds);
        }
        _ => return vring(device, config, request, &fields, fds, length),
    }
    Ok(Reply::Ack)
}

/// The messages about one ring.
fn vring(
    device: &mut Device,
    config: &BackendConfig,
    request: FrontendReq,
    fields: &Body<'_>,
    fds: Vec<OwnedFd>,
    length: impl Fn(usize) -> Result<(), MessageError>,
) -> Result<Reply, MessageError> {
    use FrontendReq as R;
    let number = request as u32;
    let rings = device.rings.len();
    let known = |index: u64| match usize::try_from(index) {
        Ok(known) if known < rings => Ok(known),
        _ => Err(MessageError::NoSuchVring { index, rings }),
    };
    match request {
        R::SET_VRING_NUM => {
            length(8)?;
            let (index, size) = (fields.u32(0).into(), fields.u32(4));
            let (at, max) = (known(index)?, config.max_queue_size);
            // Packed rings have any size; whether one is fit for a split ring is known, and said,
            // when the ring starts, since features may come after this.
            let packed = device.packed();
            if !(size.is_power_of_two() || packed) || size == 0 || size > u32::from(max) {
                return Err(MessageError::VringSize { index, size, max });
            }
            device.change(at, |setup| setup.size = Some(size));
        }
        R::SET_VRING_ADDR => {
            length(40)?;
            let at = known(fields.u32(0).into())?;
            let logged = fields.u32(4) & VRING_LOG != 0;
            let addresses = Addresses {
                desc: fields.u64(8),
                used: fields.u64(16),
                avail: fields.u64(24),
            };
            device.change(at, |setup| {
                setup.addresses = Some(addresses);
                setup.logged = logged;
            });
        }
        R::SET_VRING_BASE => {
            length(8)?;
            let (at, base) = (known(fields.u32(0).into())?, fields.u32(4));
            device.change(at, |setup| setup.base = base);
        }
        R::GET_VRING_BASE => {
            length(8)?;
            let index = fields.u32(0);
            let at = known(index.into())?;
            return Ok(Reply::VringState(index, device.stop(at)));
        }
        R::SET_VRING_ENABLE => {
            length(8)?;
            let (index, value) = (fields.u32(0).into(), fields.u32(4));
            let at = known(index)?;
            if value > 1 {
                return Err(MessageError::EnableValue { index, value });
            }
            // QEMU repeats it; only a change stops the worker.
            if device.rings[at].setup.enabled != (value == 1) {
                device.change(at, |setup| setup.enabled = value == 1);
            }
        }
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => {
            length(8)?;
            let value = fields.u64(0);
            let index = value & 0xff;
            let at = known(index)?;
            let fd = if value & NO_FD == 0 {
                let fd = eventfd(single(number, fds)?);
                Some(fd.ok_or(MessageError::NotAnEventfd(index))?)
            } else {
                None
            };
            set_descriptor(device, at, request, fd);
        }
        _ => return Err(MessageError::Unknown(number)),
    }
    Ok(Reply::Ack)
}

fn set_descriptor(device: &mut Device, at: usize, request: FrontendReq, fd: Option<OwnedFd>) {
    let notifier = |fd: Option<OwnedFd>| fd.map(|fd| Arc::new(Notifier(fd)));
    match request {
        FrontendReq::SET_VRING_KICK => device.change(at, |setup| {
            setup.kick = fd.map_or(KickSetup::Polling, |fd| KickSetup::Fd(Arc::new(fd)));
        }),
        FrontendReq::SET_VRING_CALL => {
            let call = notifier(fd);
            device.change(at, |setup| setup.call.clone_from(&call));
            // What was completed before the change may have been told to the old descriptor.
            if let Some(call) = call.filter(|_| device.ready(at)) {
                call.notify();
            }
        }
        _ => {
            let err = notifier(fd);
            device.change(at, |setup| setup.err = err);
        }
    }
}

/// Features that are all among the offered ones.
fn offered(accepted: u64, offer: u64) -> Result<u64, MessageError> {
    match accepted & !offer {
        0 => Ok(accepted),
        surplus => Err(MessageError::NotOffered(surplus)),
    }
}

/// The one descriptor of a message that has one.
fn single(request: u32, fds: Vec<OwnedFd>) -> Result<OwnedFd, MessageError> {
    let got = fds.len();
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (Some(fd), None) => Ok(fd),
        _ => Err(MessageError::Descriptors {
            request,
            got,
            wanted: 1,
        }),
    }
}

/// A descriptor that is an eventfd (nothing else is rung by a worker), made non-blocking for where
/// `doorbell.rs` has to fall back to writing.
fn eventfd(fd: OwnedFd) -> Option<OwnedFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // Without /proc it cannot be told, and the frontend is believed.
    if link.is_ok_and(|name| name.as_os_str() != "anon_inode:[eventfd]") {
        return None;
    }
    let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL).ok()?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags)).ok()?;
    Some(fd)
}

/// The whole table of SET_MEM_TABLE: a count, padding, regions, and one file for each.
fn memory_table(request: u32, body: &[u8], fds: Vec<OwnedFd>) -> Result<GuestMemory, MessageError> {
    let fields = Body(body);
    let count = fields.u32(0) as usize;
    if count > MAX_REGIONS {
        return Err(MemoryError::TooMany.into());
    }
    let wanted = 8 + count * REGION;
    if body.len() != wanted {
        return Err(MessageError::Length {
            request,
            got: body.len(),
            wanted,
        });
    }
    if fds.len() != count {
        return Err(MessageError::Descriptors {
            request,
            got: fds.len(),
            wanted: count,
        });
    }
    let regions = (0..count).map(|i| fields.region(8 + i * REGION));
    let table = regions.zip(fds.into_iter().map(File::from)).collect();
    Ok(GuestMemory::map(table)?)
}
