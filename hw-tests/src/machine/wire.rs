//! What the two ends of the machine's serial channel say to each other.
//!
//! The host sends [`Start`] with a number of its choice; the agent inside answers with output frames of that
//! number and one [`Ended`]. Any number of commands share the channel. A frame is its length (4 bytes, little
//! endian, of what follows), its kind (1 byte), the command's number (4 bytes) and a body.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The name of the virtio-serial port, as `/sys/class/virtio-ports/*/name` shows it.
pub const PORT: &str = "ferrovia.lab";
/// The longest body. Longer output is cut into several frames.
pub const LONGEST: usize = 1 << 20;
const HEADER: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Inside → host, once: the agent is up. The body is a [`Hello`].
    Hello = 1,
    /// Host → inside: run a command. The body is a [`Start`].
    Start,
    /// Host → inside: bytes for the command's standard input.
    Input,
    /// Host → inside: its standard input ends.
    InputEnd,
    /// Host → inside: kill the command.
    Kill,
    /// Inside → host: bytes of its standard output.
    Output,
    /// Inside → host: bytes of its standard error.
    Errors,
    /// Inside → host: it ended. The body is an [`Ended`].
    Ended,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Hello,
        Kind::Start,
        Kind::Input,
        Kind::InputEnd,
        Kind::Kill,
        Kind::Output,
        Kind::Errors,
        Kind::Ended,
    ];
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The command that it belongs to.
    pub id: u32,
    /// What it carries.
    pub body: Vec<u8>,
}

/// The first words of the agent inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The running kernel's release.
    pub release: String,
}

/// A command to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Start {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables on top of the agent's own few.
    pub env: Vec<(String, String)>,
    /// The folder to run in; `/` when empty.
    pub dir: String,
    /// Milliseconds after which it is killed; none for never.
    pub limit_ms: Option<u64>,
    /// Whether [`Kind::Input`] will come; otherwise its standard input is empty.
    pub input: bool,
    /// Rows and columns of a terminal of its own; all output comes as [`Kind::Output`] then.
    pub terminal: Option<(u16, u16)>,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit code; 128 and the signal's number when a signal ended it, as in a shell.
    pub code: i32,
    /// It was killed, because it was over its limit.
    pub over_limit: bool,
    /// It was killed and did not die: where in the kernel it waits.
    pub stuck: Option<String>,
    /// It could not be started: why.
    pub failed: Option<String>,
}

/// Writes one frame.
///
/// # Errors
/// When the body is longer than [`LONGEST`] or the channel is gone.
pub fn write(to: &mut impl Write, kind: Kind, id: u32, body: &[u8]) -> io::Result<()> {
    if body.len() > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("A frame of {} bytes is too long", body.len()),
        ));
    }
    let mut bytes = Vec::with_capacity(4 + HEADER + body.len());
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(body);
    to.write_all(&bytes)
}

/// Reads the next frame; none at the channel's end.
///
/// # Errors
/// When what comes is no frame, or the channel breaks in the middle of one.
pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if !(HEADER..=HEADER + LONGEST).contains(&length) {
        return Err(bad(format!("{length} is no length of a frame")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    let (header, body) = bytes.split_at(HEADER);
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == header[0]);
    Ok(Some(Frame {
        kind: kind.ok_or_else(|| bad(format!("{} is no kind of frame", header[0])))?,
        id: u32::from_le_bytes([header[1], header[2], header[3], header[4]]),
        body: body.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let mut bytes = Vec::new();
        for kind in Kind::ALL {
            write(&mut bytes, kind, 0x0102_0304, b"body").unwrap();
        }
        let mut from = bytes.as_slice();
        for kind in Kind::ALL {
            let frame = read(&mut from).unwrap().unwrap();
            assert_eq!((frame.kind, frame.id), (kind, 0x0102_0304));
            assert_eq!(frame.body, b"body");
        }
        assert_eq!(read(&mut from).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &[0, 0, 0, 0][..],
            &[255, 255, 255, 255],
            &[5, 0, 0, 0, 99, 0, 0, 0, 0],
            &[9, 0, 0, 0, 1, 0, 0],
        ] {
            assert!(read(&mut &*bytes).is_err(), "{bytes:?}");
        }
        assert!(write(&mut Vec::new(), Kind::Input, 1, &vec![0; LONGEST + 1]).is_err());
    }
}
