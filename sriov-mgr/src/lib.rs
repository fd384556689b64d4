//! sriov-mgr
