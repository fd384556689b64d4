//! What tests of the SR-IOV manager run on the target itself, where a command for each step would take too long:
//! the program `ferrovia-lab-vfs`. It prints one line of JSON for each thing it found.
//!
//! | file | is |
//! |---|---|
//! | `truth` | PF and VFs as sysfs, `ip` and `devlink` show them: nothing of sriov-mgr's own reading is in it |
//! | `sweep` | one operation, killed after each journal record, and what there is after the next start |
//! | `clients` | many clients of one agent, which allocate and release at the same time |

pub mod clients;
pub mod sweep;
pub mod truth;
