//! Flags of `forebay epp`: its own, and those of llm-d's endpoint picker by their names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::{AccessLog, LogArgs, PeerArgs, duration, share};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay epp --pool-name chat --pool-namespace ai     in place of another picker, in its Deployment
  forebay epp --config conf/ --secure-serving=false    from files, without TLS
  forebay epp --kubernetes                             every pool of the cluster
  forebay epp check epp-config.yaml                    what each plugin becomes

Flags of llm-d's picker are taken in its spelling too (-poolName, --grpcPort 9002); those without a
meaning here are named in the log. docs/epp.md has the list, and configurations of proxies.

Signals: TERM and INT let calls end (a second one quits at once).")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EppArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub(crate) command: Option<EppCommand>,
    /// How endpoints are chosen: an EndpointPickerConfig; changes are followed (docs/picker-config.md)
    /// [default: our own policy, docs/picking.md]
    #[arg(long, value_name = "FILE", env = "CONFIG_FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// The same as a text
    #[arg(
        long,
        value_name = "YAML",
        env = "CONFIG_TEXT",
        conflicts_with = "config_file"
    )]
    pub(crate) config_text: Option<String>,
    /// Manifests: files, or folders with what is in them; changes are followed
    #[arg(long, value_name = "PATH", num_args = 1.., env = "FOREBAY_CONFIG", value_delimiter = ',')]
    pub(crate) config: Vec<PathBuf>,
    /// Take the configuration from the Kubernetes API, which is the default without --config
    #[arg(long, env = "FOREBAY_KUBERNETES", conflicts_with = "config")]
    pub(crate) kubernetes: bool,
    /// How to reach the API server [default: as the pod that this is]
    #[arg(long, value_name = "PATH", env = "KUBECONFIG", value_delimiter = ':')]
    pub(crate) kubeconfig: Vec<PathBuf>,
    /// Follow only these namespaces [default: that of the pool, or all]; may be repeated
    #[arg(
        long,
        value_name = "NAME",
        env = "FOREBAY_WATCH_NAMESPACE",
        value_delimiter = ','
    )]
    pub(crate) watch_namespace: Vec<String>,
    /// InferencePool that every call is for [default: each call names its own]
    #[arg(long, value_name = "NAME", env = "POOL_NAME")]
    pub(crate) pool_name: Option<String>,
    /// Its namespace, and that of pools that calls name without one
    #[arg(
        long,
        value_name = "NAME",
        env = "NAMESPACE",
        default_value = "default"
    )]
    pub(crate) pool_namespace: String,
    /// Port of external processing
    #[arg(long, value_name = "PORT", env = "GRPC_PORT", default_value = "9002")]
    pub(crate) grpc_port: u16,
    /// Port of gRPC health, without TLS
    #[arg(
        long,
        value_name = "PORT",
        env = "GRPC_HEALTH_PORT",
        default_value = "9003"
    )]
    pub(crate) grpc_health_port: u16,
    /// Port of metrics and explanations; they have no authentication
    #[arg(
        long,
        value_name = "PORT",
        env = "METRICS_PORT",
        default_value = "9090"
    )]
    pub(crate) metrics_port: u16,
    /// Address that the ports are opened on [default: every address]
    #[arg(long, value_name = "IP", env = "FOREBAY_BIND")]
    pub(crate) bind: Option<IpAddr>,
    /// Whether external processing has TLS
    #[arg(
        long,
        value_name = "BOOL",
        env = "SECURE_SERVING",
        default_value = "true"
    )]
    #[arg(default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(action = ArgAction::Set)]
    pub(crate) secure_serving: bool,
    /// Folder of its certificate, tls.crt and tls.key [default: one made at the start]
    #[arg(long, value_name = "FOLDER", env = "CERT_PATH")]
    pub(crate) cert_path: Option<PathBuf>,
    /// Whether changes of that are followed
    #[arg(
        long,
        value_name = "BOOL",
        env = "ENABLE_CERT_RELOAD",
        default_value = "true"
    )]
    #[arg(default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(action = ArgAction::Set)]
    pub(crate) enable_cert_reload: bool,
    /// Endpoints in an answer, the choice and its fallbacks; 1 for proxies that take one address, such
    /// as Envoy with a cluster of type ORIGINAL_DST
    #[arg(
        long,
        value_name = "N",
        env = "FOREBAY_ENDPOINTS_MAX",
        default_value = "3"
    )]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) endpoints_max: u8,
    /// Have proxies show the bodies of responses, for token counts; see docs/epp.md for the cost
    #[arg(long, env = "FOREBAY_RESPONSE_BODIES")]
    pub(crate) response_bodies: bool,
    /// Let requests say where they go, as the conformance suite of the Inference Extension does
    #[arg(long, hide = true, env = "FOREBAY_TEST_SELECTION")]
    pub(crate) test_selection: bool,
    /// Whether metrics are exported by the names of llm-d's picker (llm_d_epp_*) too
    #[arg(
        long,
        value_name = "BOOL",
        env = "FOREBAY_LLM_D_METRICS",
        default_value = "true"
    )]
    #[arg(default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(action = ArgAction::Set)]
    pub(crate) llm_d_metrics: bool,
    /// Threads that serve calls [default: one per core]
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
        default_value = "off"
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
    /// How long calls may go on after a shutdown began
    #[arg(
        long,
        value_name = "TIME",
        env = "DRAIN_TIMEOUT",
        default_value = "30s"
    )]
    #[arg(value_parser = duration)]
    pub(crate) drain_timeout: Duration,
    /// How long a shutdown waits, no longer ready but still taking calls, for others to notice
    /// [default: 5s with Kubernetes, otherwise 0s]
    #[arg(long, value_name = "TIME", env = "FOREBAY_LAME_DUCK")]
    #[arg(value_parser = duration)]
    pub(crate) lame_duck: Option<Duration>,
    /// Largest body that is read; the request of a larger one is answered 413
    #[arg(
        long,
        value_name = "BYTES",
        env = "FOREBAY_MAX_BODY_BYTES",
        default_value = "33554432"
    )]
    pub(crate) max_body_bytes: usize,
    /// Time between two reads of a busy model server's metrics
    #[arg(
        long,
        value_name = "TIME",
        env = "REFRESH_METRICS_INTERVAL",
        default_value = "50ms"
    )]
    #[arg(value_parser = duration)]
    pub(crate) refresh_metrics_interval: Duration,
    /// Folder of tokenizers, a folder for each, that pools may name (docs/prefix-cache.md)
    #[arg(long, value_name = "DIR", env = "FOREBAY_TOKENIZERS")]
    pub(crate) tokenizers: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) peers: PeerArgs,
    /// Makes random choices repeatable [default: different each time]
    #[arg(long, value_name = "N", env = "FOREBAY_SEED")]
    pub(crate) seed: Option<u64>,
    /// Flags of llm-d's picker that mean nothing here.
    #[arg(long, hide = true)]
    pub(crate) ignored: Vec<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum EppCommand {
    /// Read an EndpointPickerConfig and tell what each of its plugins becomes
    Check(EppCheckArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay epp check epp-config.yaml
  kubectl get configmap epp -o jsonpath='{.data.default-plugins\\.yaml}' | forebay epp check -

Exit status: 0 if the configuration holds, 1 if not, 2 if there is no such file.")]
pub(crate) struct EppCheckArgs {
    /// The configuration, of llm-d.ai/v1, llm-d.ai/v1alpha1 or inference.networking.x-k8s.io/v1alpha1;
    /// - is stdin
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    /// For eyes
    Text,
    /// One JSON object
    Json,
}
