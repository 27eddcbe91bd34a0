//! Single picks.

use super::*;

#[track_caller]
fn check(picker: &PickerConfig, text: &str, expected: &str) {
    let state = world(text, picker.clone());
    let order = picked(&state, &Ask::default(), ms(1), 1);
    assert_eq!(order, expected, "{text}");
}

fn default() -> PickerConfig {
    PickerConfig::default()
}

#[test]
fn the_emptiest_server_wins() {
    check(&default(), "a:3/0.2 b:1/0.9 c:2/0.1", "c b a");
}
