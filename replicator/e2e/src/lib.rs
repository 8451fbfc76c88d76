//! Real processes on real disks: the oracles and the faults.
