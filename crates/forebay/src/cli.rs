//! What can be typed: every command and flag with its default, its environment variable and its
//! help. Only syntax is judged here; what the values mean for the world (paths, ports) is found out
//! by the role that uses them.

pub(crate) mod epp;
pub(crate) mod kubernetes;
pub(crate) mod node;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use kubernetes::KubernetesArgs;

/// Sends each request to the model server that will answer it soonest.
#[derive(Parser, Debug)]
#[command(
    name = "forebay",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "\
Examples:
  forebay demo                              gateway and four simulated servers, compared live
  forebay gateway --config conf/            serve what the manifests in conf/ say
  forebay check conf/                       what is wrong with them
  forebay status                            what the running gateway serves, and how it is
  forebay explain --last 3                  why the last three requests went where they went")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) role: Role,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Role {
    /// Serve: routes requests as the manifests say, and follows their changes
    Gateway(Box<GatewayArgs>),
    /// Pick endpoints for another proxy, which asks over external processing (Envoy, Istio, GKE)
    Epp(Box<epp::EppArgs>),
    /// The device network of a host: what it has, what manifests ask of it, the guard of containers
    Node(node::NodeArgs),
    /// Simulate a model server that speaks vLLM's API (its numbers are a simulation's)
    Sim(SimArgs),
    /// Show the gateway at work against four simulated model servers
    Demo(DemoArgs),
    /// Read manifests and tell what is wrong with them
    Check(CheckArgs),
    /// Tell what a running gateway serves
    Status(StatusArgs),
    /// Tell why requests went where they went
    Explain(ExplainArgs),
    /// List the features of Gateway API that are supported, as a GatewayClass says them
    #[command(hide = true)]
    Features,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Address of the admin server that `status` and `explain` ask.
const ADMIN: &str = "127.0.0.1:9901";
/// The profile that was checked against a real vLLM on the same hardware (docs/simulator.md).
pub(crate) const PROFILE: &str = "rtxpro6000-llama-3.1-8b-tp1";

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay gateway --config conf/
  forebay gateway --config routes.yaml --config pools.yaml --access-log text
  FOREBAY_CONFIG=conf FOREBAY_LOG=debug forebay gateway
  forebay gateway --kubernetes
  forebay gateway --kubernetes --kubeconfig ~/.kube/config --gateway-service-type None \\
    --gateway-address 192.0.2.10             outside of the cluster, on this host's ports

Signals: TERM and INT let streams end (a second one quits at once), HUP has every file read again.

Exit status: 0 after a drain, 1 if the gateway cannot run, 2 if the command line is wrong.")]
pub(crate) struct GatewayArgs {
    /// Manifests: files, or folders with what is in them; changes are followed
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "kubernetes")]
    #[arg(env = "FOREBAY_CONFIG", value_delimiter = ',')]
    pub(crate) config: Vec<PathBuf>,
    /// Refuse to start if the manifests have errors, rather than serve what is right
    #[arg(long, env = "FOREBAY_STRICT", conflicts_with = "kubernetes")]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
    /// Address of metrics, health and explanations; it has no authentication
    #[arg(long, value_name = "ADDR", env = "FOREBAY_ADMIN", default_value = ADMIN)]
    pub(crate) admin: SocketAddr,
    /// Address on which the ports of Gateways are opened [default: every address]
    #[arg(long, value_name = "IP", env = "FOREBAY_BIND")]
    pub(crate) bind: Option<IpAddr>,
    /// Threads that serve requests [default: one per core]
    #[arg(long, value_name = "N", env = "FOREBAY_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// Form of the access log, one line per request on stdout
    #[arg(
        long,
        value_name = "FORM",
        env = "FOREBAY_ACCESS_LOG",
        default_value = "json"
    )]
    pub(crate) access_log: AccessLog,
    /// Collector that spans are sent to (OTLP over gRPC), such as http://otel-collector:4317
    #[arg(long, value_name = "URL", env = "FOREBAY_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Share of requests that are traced when the client says nothing, 0 to 1
    #[arg(
        long,
        value_name = "RATIO",
        env = "FOREBAY_OTLP_SAMPLE",
        default_value = "0.01"
    )]
    #[arg(value_parser = share)]
    pub(crate) otlp_sample: f64,
    /// Export metrics by the names of llm-d's endpoint picker (llm_d_epp_*) too
    #[arg(long, env = "FOREBAY_LLM_D_METRICS")]
    pub(crate) llm_d_metrics: bool,
    /// How long a shutdown waits, no longer ready but still taking connections, for others to notice
    /// [default: 5s with --kubernetes, otherwise 0s]
    #[arg(long, value_name = "TIME", env = "FOREBAY_LAME_DUCK")]
    #[arg(value_parser = duration)]
    pub(crate) lame_duck: Option<Duration>,
    /// How long streams may go on after a shutdown began
    #[arg(
        long,
        value_name = "TIME",
        env = "FOREBAY_DRAIN_TIMEOUT",
        default_value = "5m"
    )]
    #[arg(value_parser = duration)]
    pub(crate) drain_timeout: Duration,
    /// Largest body that is read before routing; a larger one is answered 413
    #[arg(
        long,
        value_name = "BYTES",
        env = "FOREBAY_MAX_BODY_BYTES",
        default_value = "33554432"
    )]
    pub(crate) max_body_bytes: usize,
    /// How endpoints of pools are chosen that have no policy of their own: an EndpointPickerConfig;
    /// changes are followed (docs/picker-config.md)
    #[arg(long, value_name = "FILE", env = "FOREBAY_PICKER_CONFIG")]
    pub(crate) picker_config: Option<PathBuf>,
    /// How long a pool's own picker (endpointPickerRef) may take for an answer
    #[arg(
        long,
        value_name = "TIME",
        env = "FOREBAY_PICKER_TIMEOUT",
        default_value = "10s"
    )]
    #[arg(value_parser = duration)]
    pub(crate) picker_timeout: Duration,
    /// What of responses such a picker is shown
    #[arg(
        long,
        value_name = "PARTS",
        env = "FOREBAY_PICKER_RESPONSES",
        default_value = "bodies"
    )]
    pub(crate) picker_responses: PickerResponses,
    /// Time between two reads of a busy model server's metrics
    #[arg(
        long,
        value_name = "TIME",
        env = "FOREBAY_SCRAPE_INTERVAL",
        default_value = "50ms"
    )]
    #[arg(value_parser = duration)]
    pub(crate) scrape_interval: Duration,
    /// Folder of tokenizers, a folder for each, that pools may name (docs/prefix-cache.md)
    #[arg(long, value_name = "DIR", env = "FOREBAY_TOKENIZERS")]
    pub(crate) tokenizers: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) peers: PeerArgs,
    /// Makes random choices repeatable [default: different each time]
    #[arg(long, value_name = "N", env = "FOREBAY_SEED")]
    pub(crate) seed: Option<u64>,
}

/// How replicas tell each other what they know of caches.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct PeerArgs {
    /// Address on which other replicas may ask what this one knows of caches
    #[arg(
        long,
        value_name = "ADDR",
        env = "FOREBAY_PEER_LISTEN",
        requires = "peer_token_file"
    )]
    pub(crate) peer_listen: Option<SocketAddr>,
    /// Replicas to ask at the start: HOST:PORT, where a name may stand for several (a headless
    /// Service)
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "FOREBAY_PEERS",
        value_delimiter = ','
    )]
    #[arg(requires = "peer_token_file")]
    pub(crate) peers: Vec<String>,
    /// File with the token that replicas show each other
    #[arg(long, value_name = "FILE", env = "FOREBAY_PEER_TOKEN_FILE")]
    pub(crate) peer_token_file: Option<PathBuf>,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct LogArgs {
    /// What to log on stderr: off, error, warn, info, debug, or by crate (info,forebay_gateway=debug)
    #[arg(
        long,
        value_name = "LEVEL",
        env = "FOREBAY_LOG",
        default_value = "info"
    )]
    pub(crate) log: String,
    /// Form of the log
    #[arg(
        long,
        value_name = "FORM",
        env = "FOREBAY_LOG_FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum LogFormat {
    /// For eyes, in colour on a terminal
    Text,
    /// One JSON object per line
    Json,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum AccessLog {
    /// None
    Off,
    /// For eyes
    Text,
    /// One JSON object per line
    Json,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PickerResponses {
    /// Status and headers, which tell it where a request was served
    Heads,
    /// Bodies too, as the protocol has it: it may read usage there, and change them
    Bodies,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay check conf/
  forebay check --dump routes.yaml pools.yaml

Exit status: 0 without errors (warnings are allowed), 1 with errors, 2 if a path does not exist.")]
pub(crate) struct CheckArgs {
    /// Manifests: files, or folders with what is in them
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Also print what would be served: ports, rules in order of precedence, pools
    #[arg(long)]
    pub(crate) dump: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: 0 if the gateway answered, 1 if not.")]
pub(crate) struct StatusArgs {
    /// Admin address of the gateway
    #[arg(long, value_name = "ADDR", env = "FOREBAY_ADMIN", default_value = ADMIN)]
    pub(crate) admin: SocketAddr,
    /// Print what the gateway answered, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay explain                           the last request
  forebay explain --last 5 --pool chat      the last five of one pool
  forebay explain --id 01J8...              the one with this x-request-id")]
pub(crate) struct ExplainArgs {
    /// Admin address of the gateway
    #[arg(long, value_name = "ADDR", env = "FOREBAY_ADMIN", default_value = ADMIN)]
    pub(crate) admin: SocketAddr,
    /// How many requests, newest first
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) last: u32,
    /// Only the request with this id (the response header x-request-id)
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Only requests of this InferencePool: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay sim --list-profiles
  forebay sim --listen 127.0.0.1:8001 --profile h100-llama-3.1-8b-tp1
  forebay sim --lora sql,chat --max-loras 2 --time-scale 0.25

What is simulated, and how well, is in docs/simulator.md.")]
pub(crate) struct SimArgs {
    /// Hardware and model whose speed is simulated; see --list-profiles
    #[arg(long, value_name = "NAME", default_value = PROFILE)]
    pub(crate) profile: String,
    /// Name the profiles and where their numbers come from
    #[arg(long)]
    pub(crate) list_profiles: bool,
    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,
    /// Names of the model in the API [default: the profile's]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) model: Vec<String>,
    /// Real seconds per simulated second: 0.25 is four times as fast
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = positive)]
    pub(crate) time_scale: f64,
    /// Makes texts, jitter and failures repeatable
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// KV blocks of 16 tokens [default: what fits beside the profile's model]
    #[arg(long, value_name = "N")]
    pub(crate) kv_blocks: Option<u32>,
    /// Longest context, in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<u32>,
    /// Sequences in one batch
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) max_num_seqs: u32,
    /// New tokens in one step
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) max_num_batched_tokens: u32,
    /// Requests in the server; one more is answered 503
    #[arg(long, value_name = "N", default_value = "8192")]
    pub(crate) max_num_queued_reqs: u32,
    /// LoRA adapters that requests may name as their model
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) lora: Vec<String>,
    /// Adapters in one batch [default: 1 with --lora, otherwise 0]
    #[arg(long, value_name = "N")]
    pub(crate) max_loras: Option<u32>,
    /// Relative deviation of step times
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub(crate) step_jitter: f64,
    /// Folder with a model's tokenizer.json and chat template [default: four bytes are a token]
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Publish KV cache events on this port, as vLLM does over ZMQ [default: none]
    #[arg(long, value_name = "PORT")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..65535))]
    pub(crate) kv_events_port: Option<u16>,
    /// Port of their replay [default: the one after]
    #[arg(long, value_name = "PORT", requires = "kv_events_port")]
    pub(crate) kv_replay_port: Option<u16>,
    /// Topic of the events
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) kv_events_topic: String,
    /// Encoding of the events
    #[arg(long, value_name = "FORM", default_value = "map")]
    pub(crate) kv_events_format: KvEventsFormat,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KvEventsFormat {
    /// Maps, as vLLM since 0.32
    Map,
    /// Arrays, as older vLLM and SGLang
    Array,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay demo                              about three minutes, then it serves on
  forebay demo --once                       ends after the comparison
  forebay demo --once --workload mixed      prompts that share nothing
  forebay demo --once --full                both workloads
  forebay demo --seconds 900 --think 1      users who take as long as real ones

The model servers are simulated; docs/demo.md says how, and where the workload comes from.")]
pub(crate) struct DemoArgs {
    /// End after the comparison instead of serving on
    #[arg(long)]
    pub(crate) once: bool,
    /// What the clients ask for
    #[arg(long, value_name = "KIND", default_value = "shared")]
    pub(crate) workload: Workload,
    /// Compare under both workloads
    #[arg(long, conflicts_with = "workload")]
    pub(crate) full: bool,
    /// Simulated seconds during which requests are sent, in each run [default: that of the workload]
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<u32>,
    /// Requests a second of simulated time [default: that of the workload]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Pauses between the turns of a conversation, as a share of published ones of 45 s on average
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = positive)]
    pub(crate) think: f64,
    /// Real seconds per simulated second: 0.5 is twice as fast, and takes twice the CPU [default: that of the workload]
    #[arg(long, value_name = "FACTOR", value_parser = positive)]
    pub(crate) time_scale: Option<f64>,
    /// Same seed, same prompts and arrivals
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
    /// Port of the gateway
    #[arg(long, default_value = "8080", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Address of the gateway's admin server
    #[arg(long, value_name = "ADDR", default_value = ADMIN)]
    pub(crate) admin: SocketAddr,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Workload {
    /// Conversations that share long system prompts
    Shared,
    /// Requests that share nothing
    Mixed,
}

/// A duration such as `250ms`, `1.5s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let help = || "write a number and a unit, such as 250ms, 1.5s, 5m or 1h".to_owned();
    let (unit, seconds) = UNITS
        .iter()
        .find(|(u, _)| text.ends_with(u))
        .ok_or_else(help)?;
    let number: f64 = text[..text.len() - unit.len()]
        .parse()
        .map_err(|_| help())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| help())
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above zero is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["5", "s", "-1s", "1 year", "", "1e300h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_and_factors_have_limits() {
        assert!(share("0.5").is_ok() && share("1.1").is_err() && share("x").is_err());
        assert!(positive("4").is_ok() && positive("0").is_err() && positive("inf").is_err());
    }
}
