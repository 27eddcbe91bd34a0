//! The load driver against the simulated server: what goes in comes out of the summary.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_simulate::load::{
    self, Arrivals, Distribution, Failure, LoadConfig, LoadError, SharedPrefix, Summary, Workload,
};
use forebay_simulate::server::{self, Failures, SimConfig};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

fn shared() -> SharedPrefix {
    SharedPrefix {
        groups: 2,
        prompts_per_group: 4,
        system_tokens: 800,
        question_tokens: 40,
        follow_up_tokens: Distribution::fixed(40.0),
        output_tokens: Distribution::fixed(16.0),
        turns: Distribution::fixed(3.0),
        think_s: Distribution::fixed(0.0),
    }
}

fn config(address: SocketAddr) -> LoadConfig {
    LoadConfig {
        base_url: format!("http://{address}"),
        model: "tiny".to_owned(),
        workload: Workload::SharedPrefix(shared()),
        arrivals: Arrivals::Closed { concurrency: 4 },
        conversations: 20,
        duration_max: Duration::from_secs(60),
        request_timeout: Duration::from_secs(30),
        seed: 3,
        headers: Vec::new(),
        progress_every: Duration::from_millis(5),
    }
}

/// Runs a load against a fresh server; the summary and how often progress was reported.
fn measure(failures: Failures, change: impl FnOnce(&mut LoadConfig)) -> (Summary, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let sim = SimConfig {
            models: vec!["tiny".to_owned()],
            time_scale: 0.001,
            failures,
            ..SimConfig::default()
        };
        let server = tokio::spawn(server::serve(sim, listener, async {
            let _dropped = stopped.await;
        }));
        let mut config = config(address);
        change(&mut config);
        let mut seen = 0;
        let summary = load::run(config, |_| seen += 1)
            .await
            .expect("a sane configuration");
        drop(stop);
        server.await.expect("no panic").expect("served");
        (summary, seen)
    })
}

#[test]
fn a_closed_loop_counts_tokens_times_and_cache_hits() {
    let (summary, progress) = measure(Failures::default(), |_| ());
    assert_eq!(
        (summary.started, summary.completed, summary.failed()),
        (60, 60, 0)
    );
    assert_eq!(summary.output_tokens, 60 * 16);
    assert_eq!((summary.ttft.count(), summary.itl.count()), (60, 60 * 15));
    assert_eq!(summary.endpoints.get("direct"), Some(&60));
    // Two beginnings of 800 tokens are computed once or a few times, then found; so is history.
    assert!(
        summary.prefix_hit_rate() > 0.7,
        "{}",
        summary.prefix_hit_rate()
    );
    assert!(summary.ttft.mean_ms() > 0.0 && summary.output_tokens_per_s() > 0.0);
    assert!(progress >= 1);
    assert!(
        summary
            .to_string()
            .starts_with("60 requests answered, 0 failed"),
        "{summary}"
    );
}

#[test]
fn an_open_loop_sends_everything_whatever_the_server_does() {
    let (summary, _) = measure(Failures::default(), |config| {
        config.arrivals = Arrivals::Poisson {
            per_s: 500.0,
            in_flight_max: 100,
        };
        config.conversations = 30;
    });
    assert_eq!((summary.completed, summary.in_flight()), (90, 0));
    assert_eq!(summary.lag.count(), 30);
}

#[test]
fn each_turn_goes_on_where_the_last_one_and_its_answer_ended() {
    // One after the other, with nothing in common: what is found in the cache is history.
    let (summary, _) = measure(Failures::default(), |config| {
        config.workload = Workload::SharedPrefix(SharedPrefix {
            groups: 10_000,
            system_tokens: 0,
            question_tokens: 16,
            follow_up_tokens: Distribution::fixed(16.0),
            output_tokens: Distribution::fixed(320.0),
            turns: Distribution::fixed(4.0),
            ..shared()
        });
        config.arrivals = Arrivals::Closed { concurrency: 1 };
    });
    assert_eq!((summary.completed, summary.in_flight()), (80, 0));
    // Four prompts of about 16, 352, 688 and 1024 tokens: in each, all but the last answer has been
    // computed as a prompt, and that as an answer. Only the questions are new.
    let new = summary.prompt_tokens - summary.cached_tokens;
    assert!(
        new < 80 * 64,
        "{new} of {} tokens were new",
        summary.prompt_tokens
    );
}

#[test]
fn users_think_between_turns() {
    let (summary, _) = measure(Failures::default(), |config| {
        let think_s = Distribution::normal(0.002, 0.001, 0.001, 0.003);
        config.workload = Workload::SharedPrefix(SharedPrefix {
            think_s,
            ..shared()
        });
    });
    assert_eq!(summary.completed, 60);
    assert_eq!(summary.lag.count(), 40, "one planned moment for each pause");
}

#[test]
fn a_run_ends_in_time_although_users_would_go_on() {
    let (summary, _) = measure(Failures::default(), |config| {
        config.workload = Workload::SharedPrefix(SharedPrefix {
            think_s: Distribution::fixed(3600.0),
            ..shared()
        });
    });
    assert_eq!((summary.started, summary.completed), (20, 20));
    assert_eq!((summary.failed(), summary.in_flight()), (0, 0));
}

#[test]
fn failures_are_told_apart() {
    let errors = Failures {
        error_rate: 1.0,
        error_status: 429,
        ..Failures::default()
    };
    let (summary, _) = measure(errors, |_| ());
    assert_eq!(summary.failures.get(&Failure::Status(429)), Some(&20));
    let breaks = Failures {
        break_rate: 1.0,
        break_after_tokens: 3,
        ..Failures::default()
    };
    let (summary, _) = measure(breaks, |_| ());
    assert_eq!(summary.failures.get(&Failure::BrokenOff), Some(&20));
    let stalls = Failures {
        stall_rate: 1.0,
        ..Failures::default()
    };
    let (summary, _) = measure(stalls, |config| {
        config.request_timeout = Duration::from_millis(20);
        config.conversations = 4;
    });
    assert_eq!(summary.failures.get(&Failure::Timeout), Some(&4));
    let (summary, _) = measure(Failures::default(), |config| {
        config.base_url = "http://127.0.0.1:1".to_owned();
    });
    assert_eq!(summary.failures.get(&Failure::Connect), Some(&20));
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let address = "127.0.0.1:1".parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let refused = |change: &dyn Fn(&mut LoadConfig)| {
        let mut config = config(address);
        change(&mut config);
        runtime
            .block_on(load::run(config, |_| ()))
            .expect_err("refused")
    };
    assert_eq!(
        refused(&|config| config.arrivals = Arrivals::Closed { concurrency: 0 }),
        LoadError::Arrivals
    );
    assert_eq!(
        refused(&|config| config.base_url = "https://x".to_owned()).to_string(),
        "base URL https://x: only http:// is spoken"
    );
}
