//! A gateway with a pool that the picker of the tests picks for.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_gateway::explain::Outside;
use forebay_gateway::external::Settings as PickerSettings;
use forebay_gateway::settings::Settings;
use forebay_model::pool::{ExternalPicker, FailureMode, PickerTransport};
use forebay_model::route::Target;
use forebay_model::{ObjectName, Pool};

use super::Picker;
use crate::common::*;

pub const CHAT: &str = "/v1/chat/completions";
pub const BODY: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}]}"#;
pub const EVENT: &str = "data: {\"model\":\"changed-model\",\"choices\":[]}\n\n";

/// A time limit that is soon over.
pub const SHORT: Duration = Duration::from_millis(200);

pub fn external(pickers: &[SocketAddr], failure_mode: FailureMode) -> ExternalPicker {
    ExternalPicker {
        service: ObjectName::new("default", "epp"),
        port: 9002,
        endpoints: pickers.to_vec(),
        failure_mode,
        transport: PickerTransport::Plaintext,
    }
}

pub fn picked_pool(endpoints: &[SocketAddr], external: ExternalPicker) -> Target {
    to_pool(Pool {
        external: Some(external),
        ..pool_of("pool", endpoints)
    })
}

pub fn with_timeout(answer_timeout: Duration) -> Settings {
    Settings {
        picker: PickerSettings {
            answer_timeout,
            ..PickerSettings::default()
        },
        ..settings()
    }
}

pub fn world(settings: Settings, target: Target) -> World {
    World::with(settings, vec![entry("/", rule(vec![target]))])
}

/// Endpoints that say who they are, with one picker in front of them.
pub struct Bed {
    pub picker: Picker,
    pub servers: Vec<Upstream>,
    pub world: World,
}

impl Bed {
    pub fn new(servers: usize, failure_mode: FailureMode, settings: Settings) -> Self {
        Self::of(
            (0..servers).map(|n| serving(&n.to_string())).collect(),
            failure_mode,
            settings,
        )
    }

    pub fn of(servers: Vec<Upstream>, failure_mode: FailureMode, settings: Settings) -> Self {
        let picker = Picker::plain();
        let target = picked_pool(
            &addresses(&servers),
            external(&[picker.address], failure_mode),
        );
        Self {
            world: world(settings, target),
            picker,
            servers,
        }
    }

    pub fn close() -> Self {
        Self::new(2, FailureMode::FailClose, settings())
    }

    pub fn open() -> Self {
        Self::new(2, FailureMode::FailOpen, settings())
    }

    /// Asks for the server of this number, and tells the picker what to do.
    pub fn ask(&self, server: usize, todo: &str) -> Message {
        self.ask_for(&self.servers[server].address.to_string(), todo)
    }

    pub fn ask_for(&self, pick: &str, todo: &str) -> Message {
        self.world.ask(&request(pick, todo, "", BODY))
    }

    /// The last request's record.
    pub fn outside(&self) -> Outside {
        self.world.record("r").picker.unwrap()
    }
}

pub fn request(pick: &str, todo: &str, fields: &str, body: &str) -> String {
    let fields = format!("x-pick: {pick}\r\nx-do: {todo}\r\nx-request-id: r\r\n{fields}");
    post_with(CHAT, &fields, body)
}

/// Answers with its name.
pub fn serving(name: &str) -> Upstream {
    Upstream::saying(&format!(
        r#"{{"model":"changed-model","name":"server {name}"}}"#
    ))
}

pub fn name_of(got: &Message) -> String {
    assert_eq!(got.status(), 200, "{got:?}");
    got.json()["name"].as_str().unwrap().to_owned()
}

pub fn code_of(got: &Message) -> (u16, String) {
    let code = got.json()["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (got.status(), code)
}

pub fn unavailable() -> (u16, String) {
    (503, "picker_unavailable".to_owned())
}
