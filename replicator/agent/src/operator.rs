//! What an operator orders at this machine beyond marks and copies: pause, resume, unprotect. It
//! needs no target for any of them, and deletes nothing that one keeps.

use crate::control::Control;
use crate::owner::Command;
use crate::pause::PauseOrder;
use crate::unprotect::{Ended, TargetKnows, Which};
use redoubt_control::Response;
use redoubt_log::Name;
use std::sync::mpsc;
use std::time::Duration;

/// How long the owner of the tracker may take: its loop has rounds of milliseconds, and a disk's
/// end waits for the target.
const OWNER_PATIENCE: Duration = Duration::from_secs(25);

impl Control {
    /// Pauses this machine, or ends its pause, whoever paused it.
    pub(crate) fn pause(&self, paused: bool) -> Result<Response, String> {
        self.order_owner(|reply| Command::Pause(PauseOrder::Say(paused), reply))?;
        let state = if paused { "paused" } else { "resumed" };
        let target = match self.shared.link.get().connected {
            true => "",
            false => "; the target is not connected, and hears of it then",
        };
        Ok(Response::Told { message: format!("{}: {state}{target}", self.name) })
    }

    /// Ends the protection of a disk of this machine, or of all.
    pub(crate) fn unprotect(&self, disk: Option<Name>) -> Result<Response, String> {
        let object = match &disk {
            Some(disk) => format!("{}/{disk}", self.name),
            None => self.name.to_string(),
        };
        let which = disk.map_or(Which::All, Which::Named);
        let ended = self.order_owner(|reply| Command::Unprotect(which, reply))?;
        Ok(Response::Told { message: told(&object, &ended) })
    }

    /// Gives an order to the owner of the tracker and waits for what became of it.
    fn order_owner<T: Send + 'static>(
        &self,
        command: impl FnOnce(Box<dyn FnOnce(Result<T, String>) + Send>) -> Command,
    ) -> Result<T, String> {
        let (reply, answer) = mpsc::channel();
        let reply = Box::new(move |result| {
            // Who asked may have gone.
            let _ = reply.send(result);
        });
        self.owner.send(command(reply)).map_err(|_| "the agent is stopping".to_owned())?;
        let late = |_| "not done in time, or the agent is stopping: see its log".to_owned();
        answer.recv_timeout(OWNER_PATIENCE).map_err(late)?
    }
}

/// What an end means now.
fn told(object: &str, ended: &Ended) -> String {
    let disks: Vec<&str> = ended.disks.iter().map(Name::as_str).collect();
    let target = match ended.target {
        TargetKnows::Yes => "the target knows; replica and points stay there",
        TargetKnows::NotYet => "the target has not confirmed it yet; it learns it from the log",
        TargetKnows::NotConnected if ended.is_last => {
            "the target is not connected, and shows the agent as silent until `redoubt unprotect` \
             there"
        }
        TargetKnows::NotConnected => "the target is not connected, and learns it then",
    };
    let agent = match ended.is_last {
        true => "; nothing is left to protect, and the agent ends",
        false => "",
    };
    let again = "it is protected again if --disk or agent.toml still names it at the next start";
    format!("{object}: protected no more ({}): {target}{agent}; {again}", disks.join(", "))
}
