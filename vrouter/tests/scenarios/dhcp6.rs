//! dhcp6
