//! A helper process by itself, for tests that drive the real kernel without an agent
//! (the agent is its own helper: `ferrovia-agent sriov-helper`).

use std::process::ExitCode;

fn main() -> ExitCode {
    sriov_mgr::helper::close_inherited();
    match sriov_mgr::helper::serve(std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sriov-helper: {error}");
            ExitCode::FAILURE
        }
    }
}
