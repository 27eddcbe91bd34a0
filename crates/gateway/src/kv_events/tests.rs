use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_model::picker::PrecisePrefix;
use forebay_model::{AppProtocol, Endpoint, ObjectName, PickerConfig, Pool, Role, Topology};

use super::*;

fn endpoint(address: &str, labels: &[(&str, &str)]) -> Endpoint {
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Endpoint {
        address: address.parse().expect("an address"),
        pod: "pod".into(),
        labels: Arc::new(labels.collect()),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    }
}

#[test]
fn labels_have_the_last_word_on_ports_and_ranks_follow_each_other() {
    let pool = |precise_prefix| Pool {
        name: ObjectName::new("default", "p"),
        endpoints: vec![
            endpoint("10.0.0.1:8000", &[]),
            endpoint("10.0.0.1:8001", &[]),
            endpoint(
                "10.0.0.2:8000",
                &[(PORT_LABEL, "6000"), (REPLAY_LABEL, "0")],
            ),
            endpoint("10.0.0.3:8000", &[(PORT_LABEL, "no number")]),
        ],
        protocol: AppProtocol::Http,
        picker: PickerConfig {
            precise_prefix,
            ..PickerConfig::default()
        },
        objectives: BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    };
    assert!(sources(&pool(None)).is_empty());
    let shown: Vec<String> = sources(&pool(Some(PrecisePrefix::default())))
        .into_iter()
        .map(|(_, source)| {
            let replay = source.replay.map_or(0, |replay| replay.port());
            format!("{} {replay}", source.events)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "10.0.0.1:5557 5558",
            "10.0.0.1:5558 5559",
            "10.0.0.2:6000 0",
            "10.0.0.3:5557 5558",
        ]
    );
}
