//! What a test can make go wrong, and the record of what was asked.

use std::fmt;

/// An operation of [`super::super::Kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `pfs`; its target is the empty text.
    Pfs,
    /// `pf`.
    Pf,
    /// `health`.
    Health,
    /// `vfs`.
    Vfs,
    /// `vf`.
    Vf,
    /// `set_autoprobe`.
    SetAutoprobe,
    /// `set_num_vfs`.
    SetNumVfs,
    /// `set_eswitch`.
    SetEswitch,
    /// `set_mtu`.
    SetMtu,
    /// `set_up`.
    SetUp,
    /// `set_vf`.
    SetVf,
    /// `unbind`.
    Unbind,
    /// `set_driver_override`.
    SetDriverOverride,
    /// `probe`.
    Probe,
    /// `reset`.
    Reset,
    /// `vfio_obstacles`.
    VfioObstacles,
    /// `holders`.
    Holders,
}

impl Op {
    /// Whether it changes something.
    pub fn writes(self) -> bool {
        !matches!(
            self,
            Op::Pfs | Op::Pf | Op::Health | Op::Vfs | Op::Vf | Op::VfioObstacles | Op::Holders
        )
    }

    fn name(self) -> &'static str {
        match self {
            Op::Pfs => "pfs",
            Op::Pf => "pf",
            Op::Health => "health",
            Op::Vfs => "vfs",
            Op::Vf => "vf",
            Op::SetAutoprobe => "set_autoprobe",
            Op::SetNumVfs => "set_num_vfs",
            Op::SetEswitch => "set_eswitch",
            Op::SetMtu => "set_mtu",
            Op::SetUp => "set_up",
            Op::SetVf => "set_vf",
            Op::Unbind => "unbind",
            Op::SetDriverOverride => "set_driver_override",
            Op::Probe => "probe",
            Op::Reset => "reset",
            Op::VfioObstacles => "vfio_obstacles",
            Op::Holders => "holders",
        }
    }
}

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with this error number; nothing is done.
    Errno(i32),
    /// It does not return: the caller gets `Wedged`, and so does every later write to that PF, until
    /// [`super::FakeKernel::unblock`] lets it end (it is done then).
    Block,
    /// Reported as done, but only in part: `set_num_vfs` makes this many VFs, `set_vf` sets this many of
    /// the attributes asked for (in the kernel's order: MAC, VLAN, rate, spoofchk, link state, trust),
    /// anything else is not done at all.
    Partial(u32),
    /// The process dies before it is done: the call panics with [`Killed`].
    KillBefore,
    /// The process dies when it is done, before the caller hears of it: the call panics with [`Killed`].
    KillAfter,
}

/// The panic payload of a simulated death, for `std::panic::catch_unwind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed;

/// An operation that was asked for.
///
/// Its text is operation, target and argument, such as `set_num_vfs 0000:3b:00.0 4` or
/// `set_vf 0000:3b:00.0#2 vlan=42`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub op: Op,
    /// The device (`0000:3b:00.0`), VF (`0000:3b:00.0#2`) or PCI function.
    pub target: String,
    /// The argument; empty without one.
    pub argument: String,
    /// Whether it was reported as done.
    pub ok: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op.name())?;
        for part in [&self.target, &self.argument] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        Ok(())
    }
}

/// A fault that waits for its operation.
#[derive(Clone, Debug)]
struct Armed {
    op: Op,
    target: Option<String>,
    /// Calls to let pass first.
    skip: u32,
    /// How many calls it hits.
    times: u32,
    fault: Fault,
}

/// Every fault that waits.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Armed>);

impl Faults {
    pub(super) fn arm(
        &mut self,
        op: Op,
        target: Option<String>,
        skip: u32,
        times: u32,
        fault: Fault,
    ) {
        self.0.push(Armed {
            op,
            target,
            skip,
            times,
            fault,
        });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault for this call, if one is due. Each fault counts the calls that match it.
    pub(super) fn due(&mut self, op: Op, target: &str) -> Option<Fault> {
        let mut found = None;
        for armed in &mut self.0 {
            let matches = armed.op == op && armed.target.as_deref().is_none_or(|t| t == target);
            if !matches {
                continue;
            }
            if armed.skip > 0 {
                armed.skip -= 1;
            } else if found.is_none() && armed.times > 0 {
                armed.times -= 1;
                found = Some(armed.fault);
            }
        }
        self.0.retain(|armed| armed.times > 0);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_call_it_was_armed_for() {
        let mut faults = Faults::default();
        faults.arm(Op::SetUp, Some("a".into()), 1, 2, Fault::Errno(5));
        assert_eq!(faults.due(Op::SetUp, "b"), None);
        assert_eq!(faults.due(Op::SetUp, "a"), None);
        assert_eq!(faults.due(Op::Probe, "a"), None);
        assert_eq!(faults.due(Op::SetUp, "a"), Some(Fault::Errno(5)));
        assert_eq!(faults.due(Op::SetUp, "a"), Some(Fault::Errno(5)));
        assert_eq!(faults.due(Op::SetUp, "a"), None);
    }
}
