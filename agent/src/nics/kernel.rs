//! The real kernel, whose helper processes are this program behind a hidden verb.

use crate::config;
use sriov_mgr::helper::HelperCommand;
use sriov_mgr::kernel::Kernel;
use sriov_mgr::kernel::real::RealKernel;
use std::sync::Arc;

/// The hidden verb of `ferrovia-agent` behind which [`sriov_mgr::helper::serve`] is.
pub const HELPER_VERB: &str = "sriov-helper";

/// The kernel, as the file has it.
pub fn real(config: &config::Nic) -> Arc<dyn Kernel> {
    let command = HelperCommand {
        // Also when the program's file was replaced by an update meanwhile.
        program: "/proc/self/exe".into(),
        args: vec![HELPER_VERB.into()],
    };
    let kernel = RealKernel::new(command, config.deadline);
    Arc::new(kernel.accepting(config.vfio_force.clone()))
}
