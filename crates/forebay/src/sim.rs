//! `forebay sim`: flags for the simulated model server of `forebay-simulate`.

use forebay_simulate::profile;
use forebay_simulate::server::{self, KvEvents, KvFormat, SimConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{KvEventsFormat, SimArgs};
use crate::{Failure, print};

/// Serves until a signal, or lists the profiles.
pub(crate) fn run(args: SimArgs) -> Result<(), Failure> {
    if args.list_profiles {
        return list_profiles();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    runtime.block_on(serve(args))
}

fn list_profiles() -> Result<(), Failure> {
    let mut text = String::new();
    for name in profile::names() {
        let profile = profile::named(name).expect("embedded profiles are sound");
        text += &format!(
            "{name}\n  {} on {} x {}, {} KV blocks of 16 tokens\n  {}\n",
            profile.model,
            profile.tensor_parallel,
            profile.hardware,
            profile.kv_blocks,
            profile.factor_note
        );
        text.extend(
            profile
                .sources
                .iter()
                .map(|source| format!("  source: {source}\n")),
        );
    }
    print(&text)
}

async fn serve(args: SimArgs) -> Result<(), Failure> {
    let address = args.listen;
    let config = config(args);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::world(format!(
            "cannot listen on {address}: {error}; choose another with --listen"
        ))
    })?;
    let address = listener.local_addr().unwrap_or(address);
    let stop = |kind| signal(kind).map_err(|e| Failure::world(format!("no signal handler: {e}")));
    let (mut terminate, mut interrupt) = (
        stop(SignalKind::terminate())?,
        stop(SignalKind::interrupt())?,
    );
    eprintln!(
        "forebay sim: SIMULATED {} on http://{address}",
        config.profile
    );
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server::serve(config, listener, shutdown)
        .await
        .map_err(|error| Failure::usage(error.to_string()))
}

fn config(args: SimArgs) -> SimConfig {
    let max_loras = args
        .max_loras
        .unwrap_or_else(|| u32::from(!args.lora.is_empty()));
    let kv_events = args.kv_events_port.map(|port| KvEvents {
        port,
        replay_port: args.kv_replay_port.unwrap_or(port + 1),
        topic: args.kv_events_topic,
        format: match args.kv_events_format {
            KvEventsFormat::Map => KvFormat::Map,
            KvEventsFormat::Array => KvFormat::Array,
        },
    });
    SimConfig {
        profile: args.profile,
        models: args.model,
        seed: args.seed,
        time_scale: args.time_scale,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        kv_blocks: args.kv_blocks,
        max_model_len: args.max_model_len,
        max_num_queued_reqs: args.max_num_queued_reqs,
        adapters: args.lora,
        max_loras,
        step_jitter: args.step_jitter,
        kv_events,
        tokenizer: args.tokenizer,
        ..SimConfig::default()
    }
}
