//! The real kernel, whose helper processes are this program behind a hidden verb.

use sriov_mgr::helper::HelperCommand;
use sriov_mgr::kernel::Kernel;
use sriov_mgr::kernel::real::RealKernel;
use std::sync::Arc;
use std::time::Duration;

/// The hidden verb of `ferrovia-agent` behind which [`sriov_mgr::helper::serve`] is.
pub const HELPER_VERB: &str = "sriov-helper";

/// The kernel; one change of a NIC may take as long as `deadline`.
pub fn real(deadline: Duration) -> Arc<dyn Kernel> {
    let command = HelperCommand {
        // Also when the program's file was replaced by an update meanwhile.
        program: "/proc/self/exe".into(),
        args: vec![HELPER_VERB.into()],
    };
    Arc::new(RealKernel::new(command, deadline))
}
