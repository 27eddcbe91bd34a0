//! What the simulated server costs: serves in one process, loads from another.
//! Usage: `cost serve PORT [TIME_SCALE]` or `cost load URL CONVERSATIONS CONCURRENCY`.

use std::process::ExitCode;
use std::time::Duration;

use forebay_simulate::load::{self, Arrivals, Distribution, LoadConfig, SharedPrefix, Workload};
use forebay_simulate::server::{self, SimConfig};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs descriptors, and this process has just started");
    let outcome = match arguments.as_slice() {
        ["serve", port, rest @ ..] => {
            let time_scale = rest
                .first()
                .and_then(|scale| scale.parse().ok())
                .unwrap_or(1.0);
            runtime.block_on(serve(port, time_scale))
        }
        ["load", url, conversations, concurrency] => {
            let (conversations, concurrency) = (conversations.parse(), concurrency.parse());
            match (conversations, concurrency) {
                (Ok(conversations), Ok(concurrency)) => {
                    runtime.block_on(load(url, conversations, concurrency))
                }
                _ => Err("conversations and concurrency are numbers".to_owned()),
            }
        }
        _ => Err(
            "usage: cost serve PORT [TIME_SCALE] | cost load URL CONVERSATIONS CONCURRENCY"
                .to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(port: &str, time_scale: f64) -> Result<(), String> {
    let config = SimConfig {
        models: vec!["tiny".to_owned()],
        time_scale,
        ..SimConfig::default()
    };
    let address = format!("127.0.0.1:{port}");
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| error.to_string())?;
    let stop = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    server::serve(config, listener, stop)
        .await
        .map_err(|error| error.to_string())
}

async fn load(url: &str, conversations: u64, concurrency: u32) -> Result<(), String> {
    let workload = Workload::SharedPrefix(SharedPrefix {
        groups: 8,
        prompts_per_group: 16,
        system_tokens: 2000,
        question_tokens: 100,
        follow_up_tokens: Distribution::fixed(100.0),
        output_tokens: Distribution::fixed(200.0),
        turns: Distribution::fixed(2.0),
        think_s: Distribution::fixed(0.0),
    });
    let config = LoadConfig {
        base_url: url.to_owned(),
        model: "tiny".to_owned(),
        workload,
        arrivals: Arrivals::Closed { concurrency },
        conversations,
        duration_max: Duration::from_secs(600),
        request_timeout: Duration::from_secs(300),
        seed: 1,
        headers: Vec::new(),
        progress_every: Duration::from_secs(2),
    };
    let summary = load::run(config, |_| ())
        .await
        .map_err(|error| error.to_string())?;
    println!("{summary}");
    Ok(())
}
