//! A model server with a batch of one, and more clients than that: who waits does so in the gateway,
//! is shown there, and is served in the end. And what load teaches the gateway about its servers.

mod support;

use support::{Load, World, exchange, failed, get, manifests_with, output, stdout, wait_for};

const CLIENTS: u32 = 8;

/// A pool that is full when one request waits in its server, and an objective above the others.
fn narrow(world: &World) -> String {
    let picker = "'{saturationQueue: 1}'";
    manifests_with(world.port, &world.servers, "", picker)
        + "---\napiVersion: llm-d.ai/v1alpha2\nkind: InferenceObjective\nmetadata: {name: urgent}\n\
           spec: {priority: 7, poolRef: {name: sims}}\n"
}

#[test]
fn clients_of_a_full_server_wait_in_the_gateway_and_are_served() {
    let world = World::start_with(1, &["--max-num-seqs", "1"]);
    world.write(&narrow(&world));
    let pool = || world.admin_json("/debug/pools")[0].clone();
    wait_for("the picker's configuration", || {
        (pool()["picker"]["saturationQueue"] == 1).then_some(())
    });
    let load = Load::start(world.address(), CLIENTS, 40);
    wait_for("most of them wait in the gateway", || {
        let waiting = pool()["queue"]["requests"].as_u64().unwrap_or(0);
        (waiting >= u64::from(CLIENTS) / 2).then_some(())
    });
    wait_for("status shows it", || {
        let shown = world.status();
        (shown.contains(" queued for up to ") && shown.contains(" of priority 0)")).then_some(())
    });
    let line = "POST /v1/completions HTTP/1.1\r\nx-request-id: quick\r\n\
                x-gateway-inference-objective: urgent\r\n";
    let answer = exchange(
        world.address(),
        line,
        r#"{"model": "sim", "prompt": "now!", "max_tokens": 1}"#,
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let decisions = world.admin_json("/debug/decisions?id=quick");
    assert_eq!(decisions[0]["priority"], 7);
    let stay = &decisions[0]["queue"];
    assert!(stay.is_null() || stay["ahead"] == 0, "{stay}");
    load.wait_for_more(CLIENTS as usize);
    let admin = world.admin.to_string();
    let explained = output(&["explain", "--admin", &admin, "--last", "50"]);
    let explained = stdout(&explained);
    assert!(
        explained.contains("queued at priority 0 behind "),
        "{explained}"
    );
    let chats = load.end();
    assert_eq!(failed(&chats).len(), 0, "{:?}", failed(&chats).first());
    wait_for("nobody waits any more", || {
        (pool()["queue"]["requests"] == 0).then_some(())
    });
}

#[test]
fn how_well_latencies_are_predicted_is_a_metric_once_answers_came() {
    let world = World::start(2);
    let value = |name: &str, of: &str| {
        let series = format!("{name}{{pool=\"default/sims\",of=\"{of}\"}} ");
        let page = get(world.admin, "/metrics").expect("the admin server answers");
        let line = page.lines().find_map(|line| line.strip_prefix(&series));
        line.map(|value| value.parse::<f64>().expect("a number"))
    };
    let (error, coverage) = (
        "forebay_prediction_error_ratio",
        "forebay_prediction_coverage_ratio",
    );
    assert_eq!(value(error, "ttft"), None, "nothing was predicted yet");
    // Clients that do not ask for the server's count of tokens, as most.
    let load = Load::start(world.address(), CLIENTS, 16);
    for of in ["ttft", "tpot"] {
        let share = wait_for("an answer came that was predicted", || value(coverage, of));
        assert!((0.0..=1.0).contains(&share), "{of}: {share}");
        let error = value(error, of).expect("both are there");
        assert!((0.0..=10.0).contains(&error), "{of}: {error}");
    }
    let chats = load.end();
    assert_eq!(failed(&chats).len(), 0, "{:?}", failed(&chats).first());
}
