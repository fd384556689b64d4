//! dhcp4
