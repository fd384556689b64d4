//! DPDK's log, turned into `tracing` events, and kept for the error message of a call that fails.
//!
//! DPDK explains its refusals only in its log ("eth_af_packet: no such interface"), so a call that
//! may fail runs inside [`capture`], and what was logged at error level by this thread becomes the
//! reason in the error.

use std::cell::RefCell;

use crate::ffi;

// rte_log.h: 1 emergency, 2 alert, 3 critical, 4 error, 5 warning, 6 notice, 7 info, 8 debug.
const LEVEL_ERROR: u32 = 4;
const LEVEL_WARNING: u32 = 5;

/// Lines kept of one call: a driver in trouble may write for ever.
const MOST_LINES: usize = 8;

thread_local! {
    static CAPTURED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Routes DPDK's log here. Once, before the EAL starts.
pub(crate) fn open() {
    // SAFETY: called once, before any other thread can log; `line` lives for the program.
    if unsafe { ffi::fv_log_open(line) } != 0 {
        tracing::warn!("DPDK's log could not be redirected and goes to stderr and syslog");
    }
}

/// Runs `call` and returns what this thread logged at error level meanwhile.
pub(crate) fn capture<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    let outer = CAPTURED.with(|captured| captured.replace(Some(Vec::new())));
    let result = call();
    let lines = CAPTURED.with(|captured| captured.replace(outer));
    (result, lines.unwrap_or_default())
}

/// The reason of a failed call: the lines that it logged and the text of its error number.
pub(crate) fn reason(code: i32, lines: &[String]) -> String {
    let code = ffi::strerror(code);
    if lines.is_empty() {
        return code;
    }
    format!("{} ({code})", joined(lines))
}

/// The lines as one sentence, without function names and repetitions.
pub(crate) fn joined(lines: &[String]) -> String {
    let mut said: Vec<&str> = Vec::new();
    for line in lines {
        let line = line
            .split_once("(): ")
            .map_or(line.as_str(), |(_, rest)| rest);
        if !said.contains(&line) {
            said.push(line);
        }
    }
    said.join("; ")
}

extern "C" fn line(level: u32, text: *const u8, len: usize) {
    // SAFETY: the shim hands over a buffer of `len` bytes that lives during this call.
    let bytes = unsafe { std::slice::from_raw_parts(text, len) };
    // A panic must not unwind into C.
    let _ = std::panic::catch_unwind(|| record(level, &String::from_utf8_lossy(bytes)));
}

fn record(level: u32, text: &str) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match level {
            0..=LEVEL_ERROR => {
                let captured = CAPTURED
                    .try_with(|captured| match captured.borrow_mut().as_mut() {
                        Some(lines) => {
                            if lines.len() < MOST_LINES {
                                lines.push(line.to_owned());
                            }
                            true
                        }
                        None => false,
                    })
                    .unwrap_or(false);
                // A captured line comes back in the error, or the call succeeded in spite of it.
                if captured {
                    tracing::debug!(target: "dpdk", "{line}");
                } else {
                    tracing::error!(target: "dpdk", "{line}");
                }
            }
            LEVEL_WARNING => tracing::warn!(target: "dpdk", "{line}"),
            _ => tracing::debug!(target: "dpdk", "{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_captured_call_yields_its_own_error_lines_only() {
        let ((), lines) = capture(|| {
            record(7, "EAL: probing\n");
            record(4, "eth_af_packet_create(): no such interface\n");
            let ((), inner) = capture(|| record(4, "inner"));
            assert_eq!(inner, ["inner"]);
        });
        assert_eq!(lines, ["eth_af_packet_create(): no such interface"]);
        assert_eq!(
            reason(-libc::ENODEV, &lines),
            "no such interface (No such device)"
        );
    }

    #[test]
    fn a_flood_of_lines_is_cut() {
        let ((), lines) = capture(|| (0..100).for_each(|n| record(4, &format!("line {n}"))));
        assert_eq!(lines.len(), MOST_LINES);
    }
}
