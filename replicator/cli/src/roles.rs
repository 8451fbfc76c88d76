//! The seam to the roles' crates: the only file that calls them. It adds nothing to what they do.

#[cfg(feature = "agent")]
use redoubt_control::AgentOptions;
#[cfg(feature = "agent")]
use redoubt_control::status::{CheckReport, DeviceReport};
#[cfg(feature = "target")]
use redoubt_control::{InspectOptions, Inspection, InviteOptions, TargetOptions, Token};
#[cfg(feature = "target")]
use std::net::SocketAddr;
#[cfg(feature = "agent")]
use std::path::Path;

/// Runs the agent until it is told to stop.
#[cfg(feature = "agent")]
pub fn run_agent(options: AgentOptions) -> anyhow::Result<()> {
    Ok(redoubt_agent::run(options)?)
}

/// Whether this machine and these disks can be protected.
#[cfg(feature = "agent")]
pub fn check_agent(options: &AgentOptions) -> anyhow::Result<CheckReport> {
    Ok(redoubt_agent::check(options)?)
}

/// Removes what an agent with this state directory left in the kernel.
#[cfg(feature = "agent")]
pub fn detach_agent(state: &Path) -> anyhow::Result<()> {
    Ok(redoubt_agent::detach(state)?)
}

/// The block devices of this machine.
#[cfg(feature = "agent")]
pub fn devices() -> anyhow::Result<Vec<DeviceReport>> {
    Ok(redoubt_agent::devices()?)
}

/// Runs the master target until it is told to stop; `listening` learns the address once it serves.
#[cfg(feature = "target")]
pub fn run_target(
    options: TargetOptions,
    listening: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    Ok(redoubt_master_target::run(options, listening)?)
}

/// Makes a token.
#[cfg(feature = "target")]
pub fn invite(options: &InviteOptions) -> anyhow::Result<Token> {
    Ok(redoubt_master_target::invite(options)?)
}

/// Explains a target's directory and checks every checksum in it.
#[cfg(feature = "target")]
pub fn inspect(
    options: &InspectOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Inspection> {
    Ok(redoubt_master_target::inspect(options, progress)?)
}
