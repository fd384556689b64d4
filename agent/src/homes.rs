//! Where flows can live on this host, and why not elsewhere.

use api::v1;

/// Looks at the host and at the interface of the uplink.
pub fn probe(uplink: Option<&str>) -> Vec<v1::HomeStatus> {
    offload::Placement::probe(uplink)
        .availability()
        .iter()
        .map(|(home, available)| v1::HomeStatus {
            home: home.to_string(),
            available: available.is_ok(),
            reason: available.clone().err().unwrap_or_default(),
        })
        .collect()
}
