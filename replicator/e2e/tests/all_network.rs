//! A line that is dead for a minute: longer than the window lasts. The short cut is in
//! root_faults.rs.

use anyhow::Result;
use redoubt_e2e::outage;
use std::time::Duration;

#[test]
fn a_line_that_is_cut_for_a_minute_costs_no_log() -> Result<()> {
    outage::cut_for(Duration::from_secs(60))
}
