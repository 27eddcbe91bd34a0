//! The configuration changes while requests run.

mod support;

use std::time::Instant;

use support::{Ending, Load, World, chat, failed, manifests, wait_for};

const MARK: &str =
    "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-mark, value: new}]}}";

#[test]
fn a_change_is_live_at_once_and_drops_nothing() {
    let world = World::start(2);
    let load = Load::start(world.address(), 8, 20);
    load.wait_for_more(20);
    let changed = Instant::now();
    world.write(&manifests(world.port, &world.servers, MARK));
    let marked = || {
        chat(world.address(), "is it there?", 1)
            .head
            .contains("x-mark: new")
    };
    wait_for("the new header", || marked().then_some(()));
    println!("live after {:?}", changed.elapsed());
    // Endpoints that go and come back are a change as well.
    world.write(&manifests(world.port, &world.servers[..1], MARK));
    wait_for("one endpoint", || {
        (world.endpoints().len() == 1).then_some(())
    });
    world.write(&manifests(world.port, &world.servers, MARK));
    wait_for("two endpoints", || {
        (world.endpoints().len() == 2).then_some(())
    });
    load.wait_for_more(20);
    let chats = load.end();
    let bad: Vec<_> = chats
        .iter()
        .filter(|chat| chat.ending != Ending::Complete)
        .collect();
    assert!(
        bad.is_empty(),
        "{} of {} chats: {bad:?}",
        bad.len(),
        chats.len()
    );
}

#[test]
fn a_broken_file_leaves_the_last_good_state_in_force_and_status_says_so() {
    let world = World::start(1);
    let good = manifests(world.port, &world.servers, "");
    world.write(&format!("{good}---\nkind: [Pod\n"));
    let shown = wait_for("the broken file is noticed", || {
        Some(world.status()).filter(|status| status.contains("Unreadable"))
    });
    assert!(
        shown.contains("world.yaml:") && shown.contains("stay as they were"),
        "{shown}"
    );
    let after = chat(world.address(), "still there?", 2);
    assert!(failed(std::slice::from_ref(&after)).is_empty(), "{after:?}");
    world.write(&good);
    wait_for("the file is whole again", || {
        world.status().contains("no problems").then_some(())
    });
}

#[test]
fn a_hangup_has_the_configuration_read_again() {
    let world = World::start_logging(1);
    world.gateway.signal(rustix::process::Signal::HUP);
    wait_for("the log says what came of it", || {
        let log = world.log();
        log.contains("every file was read again; nothing has changed")
            .then_some(())
    });
    let after = chat(world.address(), "still there?", 2);
    assert_eq!(after.ending, Ending::Complete, "{after:?}");
}

#[test]
fn a_signal_lets_streams_end() {
    let mut world = World::start(1);
    let address = world.address();
    let server = world.servers[0];
    let stream = std::thread::spawn(move || chat(address, "a long story", 600));
    wait_for("the stream runs", || {
        (world.endpoint(server)["inflight_requests"] == 1).then_some(())
    });
    world.gateway.signal(rustix::process::Signal::TERM);
    let story = stream.join().expect("the client does not panic");
    assert_eq!(story.ending, Ending::Complete, "{story:?}");
    assert_eq!(wait_for("the gateway ends", || world.gateway.ended()), 0);
}

#[test]
fn a_lame_duck_takes_connections_while_it_is_not_ready() {
    let mut world = World::start_with_arguments(1, &["--lame-duck", "1h"]);
    world.gateway.signal(rustix::process::Signal::TERM);
    wait_for("it says that it is going", || {
        let ready = support::get(world.admin, "/readyz");
        ready
            .is_err_and(|why| why.contains("draining"))
            .then_some(())
    });
    let after = chat(world.address(), "still there?", 2);
    assert_eq!(after.ending, Ending::Complete, "{after:?}");
    // Nobody who asks twice is kept waiting.
    world.gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(wait_for("the gateway ends", || world.gateway.ended()), 1);
}
