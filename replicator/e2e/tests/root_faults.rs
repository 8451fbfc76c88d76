//! Faults from outside: the line is cut, the target's disk fails, the clock jumps, either role is
//! replaced while the machine writes.

use anyhow::Result;
use redoubt_e2e::outage;
use std::time::Duration;

#[test]
fn a_cut_line_is_told_and_the_same_log_goes_on() -> Result<()> {
    outage::cut_for(Duration::from_secs(20))
}
