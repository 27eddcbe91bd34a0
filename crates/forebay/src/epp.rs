//! `forebay epp`: the endpoint picker of another proxy. The wiring is that of `forebay gateway`, with
//! the ports of external processing in place of those of Gateways.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_gateway::epp::{Security, Settings as EppSettings};
use forebay_gateway::kv_events::peers::Settings as PeerSettings;
use forebay_gateway::settings::Settings;
use forebay_gateway::signals;
use forebay_gateway::telemetry::{self, OtlpSettings};
use forebay_model::ObjectName;

use crate::cli::epp::EppArgs;
use crate::gateway::{
    LAME_DUCK_IN_CLUSTER, Plan, Source, every_address, format, peers, random_seed, scrape, serve,
};
use crate::kubernetes::Cluster;
use crate::policy::PolicySource;
use crate::{Failure, config_view, logging};

/// Runs a picker until it is told to stop.
pub(crate) fn run(args: &EppArgs) -> Result<(), Failure> {
    logging::start(&args.log)?;
    config_view::check_paths(&args.config)?;
    for flag in &args.ignored {
        tracing::warn!("--{flag} has no meaning here and is ignored (docs/epp.md says why)");
    }
    let lame_duck = args.lame_duck.unwrap_or(match args.config.is_empty() {
        true => LAME_DUCK_IN_CLUSTER,
        false => Duration::ZERO,
    });
    let peers = peers(&args.peers)?;
    serve(
        async { Ok(plan(args, source(args).await?, peers)) },
        lame_duck,
    )
}

async fn source(args: &EppArgs) -> Result<Source, Failure> {
    if !args.config.is_empty() {
        return Ok(Source::Files {
            paths: args.config.clone(),
            strict: false,
        });
    }
    let mut namespaces = args.watch_namespace.clone();
    if namespaces.is_empty() && args.pool_name.is_some() {
        // Its pods are there, too, and so are its objectives and rewrites.
        namespaces.push(args.pool_namespace.clone());
    }
    let named = args.kubeconfig.iter().filter(|p| !p.as_os_str().is_empty());
    let kubeconfigs: Vec<_> = named.cloned().collect();
    let cluster = Cluster::for_picker(&kubeconfigs, namespaces).await?;
    Ok(Source::Kubernetes(Box::new(cluster)))
}

fn plan(args: &EppArgs, source: Source, peers: Option<PeerSettings>) -> Plan {
    let bind = args.bind.unwrap_or_else(every_address);
    let port = |port| SocketAddr::new(bind, port);
    let defaults = Settings::default();
    let security = match (args.secure_serving, &args.cert_path) {
        (false, _) => Security::Plaintext,
        (true, None) => Security::SelfSigned,
        (true, Some(folder)) => Security::Files {
            folder: folder.clone(),
            reload: args.enable_cert_reload,
        },
    };
    Plan {
        source,
        settings: Settings {
            workers: args.workers.map_or(defaults.workers, usize::from),
            bind,
            admin: Some(port(args.metrics_port)),
            body_bytes_max: args.max_body_bytes,
            drain_timeout: args.drain_timeout,
            tokenizers: args.tokenizers.clone(),
            peers,
            ..defaults
        },
        telemetry: telemetry::Settings {
            llm_d_names: args.llm_d_metrics,
            access_log: format(args.access_log),
            otlp: args.otlp_endpoint.clone().map(|endpoint| OtlpSettings {
                endpoint,
                ratio: args.otlp_sample,
                service_name: "forebay-epp".to_owned(),
            }),
        },
        scrape: signals::Settings {
            unrouted: true,
            ..scrape(args.refresh_metrics_interval)
        },
        seed: args.seed.unwrap_or_else(random_seed),
        policy: match (&args.config_file, &args.config_text) {
            (Some(path), _) => Some(PolicySource::File(path.clone())),
            (None, Some(text)) => Some(PolicySource::Text(text.clone())),
            (None, None) => None,
        },
        epp: Some(EppSettings {
            listen: port(args.grpc_port),
            health: Some(port(args.grpc_health_port)),
            security,
            pool: args
                .pool_name
                .as_ref()
                .map(|name| ObjectName::new(&args.pool_namespace, name)),
            namespace: args.pool_namespace.clone(),
            endpoints_max: usize::from(args.endpoints_max),
            response_bodies: args.response_bodies,
            test_selection: args.test_selection,
        }),
    }
}

/// Flags of llm-d's picker (v0.10) and of its forerunner that mean nothing here, and whether a value
/// follows them. docs/epp.md says of each why.
const WITHOUT_MEANING: [(&str, bool); 21] = [
    ("v", true),
    ("zap-encoder", true),
    ("zap-devel", false),
    ("zap-log-level", true),
    ("zap-stacktrace-level", true),
    ("zap-time-encoding", true),
    ("tracing", false),
    ("enable-pprof", false),
    ("metrics-endpoint-auth", false),
    ("metrics-client-ca-file", true),
    ("enable-grpc-stream-metrics", false),
    ("grpc-max-recv-msg-size", true),
    ("grpc-max-send-msg-size", true),
    ("tls-min-version", true),
    ("pool-group", true),
    ("ha-enable-leader-election", false),
    ("refresh-prometheus-metrics-interval", true),
    ("metrics-staleness-threshold", true),
    ("allow-experimental-plugins", false),
    ("emit-endpoint-scores", false),
    ("model-server-metrics-scheme", true),
];

/// The command line with the flags of llm-d's picker as this program spells them: one dash or two,
/// words joined by capitals or dashes. Only of `forebay epp`; every other command line is left alone.
pub(crate) fn compatible(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.peekable();
    let mut out: Vec<OsString> = arguments.by_ref().take(2).collect();
    if out.get(1).is_none_or(|role| role != "epp") {
        out.extend(arguments);
        return out;
    }
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.to_str().and_then(flag) else {
            out.push(argument);
            continue;
        };
        let known = WITHOUT_MEANING.iter().find(|(name, _)| *name == flag.name);
        let Some((name, has_value)) = known else {
            out.push(flag.spelled().into());
            continue;
        };
        if *has_value && flag.value.is_none() {
            arguments.next();
        }
        out.push(format!("--ignored={name}").into());
    }
    out
}

/// A flag as it is written.
struct Flag<'a> {
    name: String,
    value: Option<&'a str>,
}

impl Flag<'_> {
    fn spelled(&self) -> String {
        match self.value {
            Some(value) => format!("--{}={value}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

fn flag(argument: &str) -> Option<Flag<'_>> {
    let bare = argument
        .strip_prefix("--")
        .or_else(|| argument.strip_prefix('-'))?;
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    // `-h` and `-V` are ours.
    if name.is_empty() || matches!(name, "h" | "V") {
        return None;
    }
    let mut dashed = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            dashed.push('-');
        }
        dashed.push(letter.to_ascii_lowercase());
    }
    Some(Flag {
        name: dashed,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &str, expected: &str) {
        let split = arguments.split(' ').map(OsString::from);
        let found = compatible(split);
        let found: Vec<_> = found.iter().map(|a| a.to_string_lossy()).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn flags_of_other_pickers_are_spelled_as_ours() {
        check(
            "forebay epp -poolName chat --grpcPort=9002 --secure-serving=false",
            "forebay epp --pool-name chat --grpc-port=9002 --secure-serving=false",
        );
        check(
            "forebay epp -v 4 --zap-encoder=json --tracing -h",
            "forebay epp --ignored=v --ignored=zap-encoder --ignored=tracing -h",
        );
        check("forebay gateway -poolName x", "forebay gateway -poolName x");
    }
}
