//! Model servers die, hang and come back while requests run. No request may fail that had not
//! streamed a byte.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Ending, Load, World, chat, failed, sim, wait_for};

const CLIENTS: u32 = 12;
const TOKENS: u32 = 30;

fn is_ejected(endpoint: &Value) -> bool {
    !endpoint["ejected"].is_null()
}

/// Waits until every server has served something.
fn warm_up(world: &World, load: &Load) {
    for server in &world.servers {
        wait_for("every server serves", || {
            (load.served_by(*server) >= 3).then_some(())
        });
    }
}

#[track_caller]
fn check_none_failed(chats: &[support::Chat]) {
    let bad = failed(chats);
    assert!(
        bad.is_empty(),
        "{} of {} chats failed: {:?}",
        bad.len(),
        chats.len(),
        bad.first()
    );
}

#[test]
fn a_killed_server_costs_no_request_that_had_not_begun_to_stream() {
    let mut world = World::start(3);
    let load = Load::start(world.address(), CLIENTS, TOKENS);
    warm_up(&world, &load);
    let victim = world.servers[1];
    let killed = Instant::now();
    world.sims[1].as_mut().expect("running").kill();
    wait_for("the ejection", || {
        is_ejected(&world.endpoint(victim)).then_some(())
    });
    let took = killed.elapsed();
    println!("ejected after {took:?}");
    assert!(took < Duration::from_secs(1), "ejected after {took:?}");
    load.wait_for_more(50);
    let served = load.served_by(victim);
    load.wait_for_more(50);
    assert_eq!(
        load.served_by(victim),
        served,
        "nothing is sent to a dead server"
    );
    check_none_failed(&load.end());
}

#[test]
fn a_restarted_server_comes_back_without_a_herd() {
    let mut world = World::start(3);
    let load = Load::start(world.address(), CLIENTS, TOKENS);
    warm_up(&world, &load);
    let (at, address) = (2, world.servers[2]);
    world.sims[at].as_mut().expect("running").kill();
    wait_for("the ejection", || {
        is_ejected(&world.endpoint(address)).then_some(())
    });
    let before = load.served_by(address);
    world.sims[at] = Some(sim(address, &[]));
    let mut shares = Vec::new();
    wait_for("the return", || {
        let all = world.endpoints();
        let own = all
            .iter()
            .find(|e| e["address"] == address.to_string())
            .expect("in the pool");
        if let Some(share) = own["standing"]["ramping"].as_f64() {
            let inflight = own["inflight_requests"].as_u64().unwrap_or(0);
            shares.push((share, inflight));
        }
        (own["standing"] == "good" && load.served_by(address) > before).then_some(())
    });
    assert!(shares.len() > 3, "the ramp was seen: {shares:?}");
    for (share, inflight) in &shares {
        // At most its share of what the others hold on average, and one. When it was picked every
        // client may have waited, whatever this picture shows of them.
        let allowed = (f64::from(CLIENTS) * share / 2.0).max(1.0) + 1.0;
        assert!(
            *inflight as f64 <= allowed,
            "{inflight} at {share:.2} of its share"
        );
    }
    check_none_failed(&load.end());
}

#[test]
fn a_hanging_server_is_left_and_taken_back() {
    let world = World::start(3);
    let load = Load::start(world.address(), CLIENTS, TOKENS);
    warm_up(&world, &load);
    let victim = world.servers[0];
    let sim = world.sims[0].as_ref().expect("running");
    let stopped = Instant::now();
    sim.signal(Signal::STOP);
    wait_for("the ejection", || {
        is_ejected(&world.endpoint(victim)).then_some(())
    });
    println!("ejected after {:?}", stopped.elapsed());
    load.wait_for_more(50);
    sim.signal(Signal::CONT);
    wait_for("the return", || {
        (!is_ejected(&world.endpoint(victim))).then_some(())
    });
    let before = load.served_by(victim);
    wait_for("it serves again", || {
        (load.served_by(victim) > before).then_some(())
    });
    check_none_failed(&load.end());
}

#[test]
fn without_any_server_requests_are_refused_with_a_reason() {
    let mut world = World::start(1);
    world.sims[0].as_mut().expect("running").kill();
    let refused = wait_for("the refusal", || {
        Some(chat(world.address(), "anybody?", 1)).filter(|c| c.ending != Ending::Complete)
    });
    assert!(
        matches!(refused.ending, Ending::Failed(502..=504)),
        "{refused:?}"
    );
    assert!(refused.head.contains("x-forebay-reason: "), "{refused:?}");
    world.sims[0] = Some(sim(world.servers[0], &[]));
    wait_for("it is served again", || {
        (chat(world.address(), "and now?", 1).ending == Ending::Complete).then_some(())
    });
}
