//! How a command ends: the six exit statuses that scripts may build on. Never another number.

use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// The exit status of a command, and the class of a failure that a role reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: it could not be done.
    Failed,
    /// 2: the command line or a configuration file is wrong.
    Usage,
    /// 3: it was done, and the answer is no.
    No,
    /// 4: it did not happen in the time given.
    TimedOut,
    /// 5: no role behind the runtime directory.
    NoRole,
}

impl ExitStatus {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::No => 3,
            Self::TimedOut => 4,
            Self::NoRole => 5,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_manual() {
        use ExitStatus::{Done, Failed, No, NoRole, TimedOut, Usage};
        let all = [Done, Failed, Usage, No, TimedOut, NoRole];
        assert_eq!(all.map(ExitStatus::code), [0, 1, 2, 3, 4, 5]);
    }
}
