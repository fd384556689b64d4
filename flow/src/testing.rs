//! Generators of packets and action lists for property tests.
