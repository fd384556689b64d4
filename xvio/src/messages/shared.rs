//! Messages that share something with the frontend beside the guest's memory: the dirty log of a
//! migration, the in-flight table, and the channel for requests of ours.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::{Body, MessageError, Reply, eventfd, single};
use crate::BackendConfig;
use crate::device::Device;
use crate::dirty::Bitmap;
use crate::inflight::{self, Description, Table};
use crate::queue::Notifier;

/// Bytes of an in-flight description, without and with the padding that most frontends send.
const DESCRIPTION: [usize; 2] = [20, 24];
/// A bitmap of this many bytes covers 2^48 bytes of guest memory, more than there can be.
const MAX_LOG: u64 = 1 << 33;

/// SET_LOG_BASE: size and offset of the bitmap, and its file. The answer is the message itself,
/// which QEMU (that wants any) and the `vhost` crate (that wants the same) both take.
pub(super) fn set_log_base(
    device: &mut Device,
    request: u32,
    body: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Reply, MessageError> {
    let fields = Body(body);
    let (size, offset) = (fields.u64(0), fields.u64(8));
    let file = File::from(single(request, fds)?);
    if offset.checked_add(size).is_none() || size > MAX_LOG {
        return Err(MessageError::LogBase { size, offset });
    }
    let log = Bitmap::map(file, offset, size).map_err(MessageError::Log)?;
    device.set_log(Arc::new(log));
    Ok(Reply::Body(body.to_vec()))
}

/// SET_LOG_FD: an eventfd to be rung when the log has grown.
pub(super) fn set_log_fd(
    device: &mut Device,
    request: u32,
    fds: Vec<OwnedFd>,
) -> Result<Reply, MessageError> {
    let fd = single(request, fds)?;
    let fd = eventfd(fd).ok_or(MessageError::LogNotAnEventfd)?;
    device.set_log_told(Arc::new(Notifier(fd)));
    Ok(Reply::Ack)
}

/// SET_BACKEND_REQ_FD: a socket for requests of ours. Nothing is requested today; it is kept open,
/// because a frontend takes its end for that of the device.
pub(super) fn set_backend_channel(
    device: &mut Device,
    request: u32,
    fds: Vec<OwnedFd>,
) -> Result<Reply, MessageError> {
    let fd = single(request, fds)?;
    match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::Stream) => device.backend_channel = Some(fd),
        _ => return Err(MessageError::NotASocket),
    }
    Ok(Reply::Ack)
}

fn description(request: u32, body: &[u8]) -> Result<Description, MessageError> {
    if !DESCRIPTION.contains(&body.len()) {
        return Err(MessageError::Length {
            request,
            got: body.len(),
            wanted: DESCRIPTION[1],
        });
    }
    let fields = Body(body);
    Ok(Description {
        size: fields.u64(0),
        offset: fields.u64(8),
        queues: fields.u32(16) as u16,
        queue_size: (fields.u32(16) >> 16) as u16,
    })
}

/// GET_INFLIGHT_FD: a new table for the frontend to keep. It gives it back with SET_INFLIGHT_FD, so
/// nothing is kept here, and asking again leaks nothing.
pub(super) fn get_inflight(
    device: &Device,
    config: &BackendConfig,
    request: u32,
    body: &[u8],
) -> Result<Reply, MessageError> {
    let asked = description(request, body)?;
    let (queues, size) = (device.rings.len(), config.max_queue_size);
    let (made, file) = inflight::make(asked, device.packed(), queues, size)?;
    let mut answer = body.to_vec();
    answer[..8].copy_from_slice(&made.size.to_ne_bytes());
    answer[8..16].copy_from_slice(&made.offset.to_ne_bytes());
    Ok(Reply::WithFd(answer, file.into()))
}

/// SET_INFLIGHT_FD: the table of this connection, new or of a backend before us.
pub(super) fn set_inflight(
    device: &mut Device,
    config: &BackendConfig,
    request: u32,
    body: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Reply, MessageError> {
    let said = description(request, body)?;
    let file = File::from(single(request, fds)?);
    let (queues, size) = (device.rings.len(), config.max_queue_size);
    let table = Table::map(file, said, device.packed(), queues, size)?;
    device.set_inflight(Arc::new(table));
    Ok(Reply::Ack)
}
