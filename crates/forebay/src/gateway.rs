//! `forebay gateway`: flags to settings, then the parts wired together: source → snapshot →
//! data plane, with the scraper and the admin server beside it, until a signal ends it.
//!
//! A configuration with errors is served as far as it is right, unless `--strict` says otherwise:
//! one object's mistake must not keep the others from being served after a restart either.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use forebay_cluster::{FileSource, Published, Reread};
use forebay_gateway::Gateway;
use forebay_gateway::admin::{Admin, AdminState, Readiness, Told};
use forebay_gateway::kv_events::{self, peers};
use forebay_gateway::settings::Settings;
use forebay_gateway::shared::Shared;
use forebay_gateway::signals::{self, Scraper};
use forebay_gateway::telemetry::{self, Format, OtlpSettings, Telemetry};
use forebay_gateway::{epp, external};
use forebay_model::snapshot::Problem;
use forebay_model::{ObjectName, Snapshot};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{AccessLog, GatewayArgs, PeerArgs, PickerResponses};
use crate::config_view::{self, counts};
use crate::kubernetes::{Cluster, Following};
use crate::policy::{Policy, PolicySource};
use crate::{Failure, descriptors, logging};

/// How long connections are still taken after a shutdown began, in a cluster: until the removal of
/// the endpoint has come through to every node.
pub(crate) const LAME_DUCK_IN_CLUSTER: Duration = Duration::from_secs(5);
/// How long queued log lines and spans may take at the end, each.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that a gateway is started with.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) settings: Settings,
    pub(crate) telemetry: telemetry::Settings,
    pub(crate) scrape: signals::Settings,
    pub(crate) seed: u64,
    /// The policy of pools that name none of their own, if it is not ours.
    pub(crate) policy: Option<PolicySource>,
    /// The ports of a picker; there are none of Gateways then.
    pub(crate) epp: Option<epp::Settings>,
}

/// Where the configuration comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Files and folders. `strict`: errors in them at the start are fatal.
    Files { paths: Vec<PathBuf>, strict: bool },
    /// An API server.
    Kubernetes(Box<Cluster>),
}

/// Runs a gateway until it is told to stop.
pub(crate) fn run(args: &GatewayArgs) -> Result<(), Failure> {
    logging::start(&args.log)?;
    config_view::check_paths(&args.config)?;
    let lame_duck = args.lame_duck.unwrap_or(match args.kubernetes.kubernetes {
        true => LAME_DUCK_IN_CLUSTER,
        false => Duration::ZERO,
    });
    let peers = peers(&args.peers)?;
    let plan = async { Ok(plan(args, source(args).await?, peers)) };
    serve(plan, lame_duck)
}

/// Starts what `plan` comes to and serves until a signal ends it; after that for `lame_duck` more, so
/// that others learn of it.
pub(crate) fn serve(
    plan: impl Future<Output = Result<Plan, Failure>>,
    lame_duck: Duration,
) -> Result<(), Failure> {
    descriptors::raise_limit_or_warn();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut running = Running::start(plan.await?)?;
        let reread = running.reread.clone();
        tokio::select! {
            () = running.follow() => {}
            name = signals.stop(reread.as_ref()) => tracing::info!("{name}: shutting down"),
        }
        running.retire();
        if !lame_duck.is_zero() {
            tracing::info!("not ready any more; connections are taken for another {lame_duck:?}");
            tokio::select! {
                () = running.follow() => {}
                () = tokio::time::sleep(lame_duck) => {}
                name = signals.stop(reread.as_ref()) => return Err(cut_off(name)),
            }
        }
        tracing::info!("no new connections, streams end");
        running.drain(signals.stop(reread.as_ref())).await
    });
    // After a second signal the workers may still be busy; they end with the process.
    runtime.shutdown_background();
    ended
}

async fn source(args: &GatewayArgs) -> Result<Source, Failure> {
    Ok(match args.kubernetes.kubernetes {
        true => Source::Kubernetes(Box::new(Cluster::find(&args.kubernetes).await?)),
        false => Source::Files {
            paths: args.config.clone(),
            strict: args.strict,
        },
    })
}

/// How replicas tell each other what they know of caches, if they do.
pub(crate) fn peers(args: &PeerArgs) -> Result<Option<peers::Settings>, Failure> {
    let Some(file) = &args.peer_token_file else {
        return Ok(None);
    };
    let token = std::fs::read_to_string(file).map_err(|error| {
        Failure::world(format!("--peer-token-file {}: {error}", file.display()))
    })?;
    let token = token.trim();
    if token.len() < peers::TOKEN_BYTES_MIN {
        return Err(Failure::usage(format!(
            "--peer-token-file {}: a token has {} characters or more",
            file.display(),
            peers::TOKEN_BYTES_MIN
        )));
    }
    Ok(Some(peers::Settings {
        listen: args.peer_listen,
        peers: args.peers.clone(),
        token: token.into(),
    }))
}

fn plan(args: &GatewayArgs, source: Source, peers: Option<peers::Settings>) -> Plan {
    let defaults = Settings::default();
    let otlp = args.otlp_endpoint.clone().map(|endpoint| OtlpSettings {
        endpoint,
        ratio: args.otlp_sample,
        service_name: "forebay".to_owned(),
    });
    Plan {
        source,
        settings: Settings {
            workers: match args.kubernetes.controller_only {
                // They have no port to open.
                true => 1,
                false => args.workers.map_or(defaults.workers, usize::from),
            },
            bind: args.bind.unwrap_or_else(every_address),
            admin: Some(args.admin),
            body_bytes_max: args.max_body_bytes,
            drain_timeout: args.drain_timeout,
            tokenizers: args.tokenizers.clone(),
            peers,
            picker: external::Settings {
                answer_timeout: args.picker_timeout,
                response_bodies: args.picker_responses == PickerResponses::Bodies,
                ..defaults.picker
            },
            ..defaults
        },
        telemetry: telemetry::Settings {
            llm_d_names: args.llm_d_metrics,
            access_log: format(args.access_log),
            otlp,
        },
        scrape: scrape(args.scrape_interval),
        seed: args.seed.unwrap_or_else(random_seed),
        policy: args.picker_config.clone().map(PolicySource::File),
        epp: None,
    }
}

pub(crate) fn format(form: AccessLog) -> Format {
    match form {
        AccessLog::Off => Format::Off,
        AccessLog::Text => Format::Text,
        AccessLog::Json => Format::Json,
    }
}

/// Idle endpoints are read less often, but never more often than busy ones.
pub(crate) fn scrape(interval: Duration) -> signals::Settings {
    let defaults = signals::Settings::default();
    signals::Settings {
        interval,
        idle_interval: defaults.idle_interval.max(interval),
        ..defaults
    }
}

/// `::` takes IPv4 too; a kernel without IPv6 has only `0.0.0.0`.
pub(crate) fn every_address() -> IpAddr {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// From the keys that the standard library draws for its hash maps.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A gateway that serves.
#[derive(Debug)]
pub(crate) struct Running {
    serves: Serves,
    /// What pools that name no policy of their own are picked by, if it is not ours.
    policy: Option<Policy>,
    gateway: Gateway,
    telemetry: Arc<Telemetry>,
    readiness: Arc<Readiness>,
    /// What is in force, for whoever asks the admin server.
    in_force: Arc<ArcSwapOption<Published>>,
    published: watch::Receiver<Published>,
    reread: Option<Reread>,
    following: Option<Following>,
    open: BTreeSet<u16>,
    // All stop when dropped.
    _scraper: Scraper,
    _kv_events: kv_events::Following,
    _admin: Option<Admin>,
}

impl Running {
    /// Starts every part; must be called within a runtime, which runs the source.
    pub(crate) fn start(plan: Plan) -> Result<Self, Failure> {
        let policy = plan.policy.map(Policy::open).transpose()?;
        let origin = Origin::open(plan.source, plan.epp.is_some())?;
        let telemetry = Telemetry::new(&plan.telemetry).map_err(|error| {
            Failure::world(format!(
                "telemetry cannot start (--otlp-endpoint?): {error}"
            ))
        })?;
        let telemetry = Arc::new(telemetry);
        let address = plan.settings.admin;
        let gateway = Gateway::start(plan.settings, Arc::clone(&telemetry), plan.seed)
            .map_err(|error| Failure::world(format!("the workers cannot start: {error}")))?;
        let live = Arc::clone(&gateway.shared().live);
        let readiness = Arc::<Readiness>::default();
        let in_force = Arc::<ArcSwapOption<Published>>::default();
        let (shown, sources) = (Arc::clone(&in_force), origin.names);
        let tell = move || match &*shown.load() {
            Some(published) => config_view::to_json(&sources, published),
            None => Value::Null,
        };
        let state = AdminState {
            telemetry: Arc::clone(&telemetry),
            live: Arc::clone(&live),
            readiness: Arc::clone(&readiness),
            statuses: Told::by(tell),
        };
        let admin = address.map(|address| {
            Admin::start(address, state).map_err(|error| {
                let help = "choose another address with --admin";
                Failure::world(format!(
                    "the admin server cannot listen on {address}: {error}; {help}"
                ))
            })
        });
        let admin = admin.transpose()?;
        let scraper = signals::spawn(live, Arc::clone(&telemetry), plan.scrape)
            .map_err(|error| Failure::world(format!("the scraper cannot start: {error}")))?;
        let kv_events = kv_events::spawn(Arc::clone(gateway.shared()))
            .map_err(|error| Failure::world(format!("KV events cannot be followed: {error}")))?;
        if let Some(admin) = &admin {
            tracing::info!("admin server on http://{}", admin.address());
        }
        if let Some(cluster) = &origin.cluster {
            telemetry.metrics.add(cluster.metrics.registry());
        }
        let serves = match (&plan.epp, &origin.cluster) {
            (Some(epp), _) => Serves::Calls(epp.pool.clone()),
            (None, Some(cluster)) if !cluster.serves => Serves::Nothing,
            (None, Some(_) | None) => Serves::Requests,
        };
        if let Some(settings) = &plan.epp {
            start_epp(gateway.shared(), settings, &readiness)?;
        }
        let mut running = Self {
            serves,
            policy,
            gateway,
            telemetry,
            readiness,
            in_force,
            published: origin.published,
            reread: origin.reread,
            following: origin.cluster.map(|cluster| cluster.start()),
            open: BTreeSet::new(),
            _scraper: scraper,
            _kv_events: kv_events,
            _admin: admin,
        };
        // Of an API server nothing is known yet; it publishes when it is.
        if running.following.is_none() {
            running.publish();
        }
        Ok(running)
    }

    /// Puts what the source holds into force.
    fn publish(&mut self) {
        let mut published = self.published.borrow_and_update().clone();
        if let Some(policy) = &mut self.policy {
            published.snapshot = policy.put_into(&published.snapshot);
            if let Some(sound) = policy.news() {
                let metrics = &self.telemetry.metrics;
                metrics.picker_config_loaded(sound, SystemTime::now());
            }
        }
        self.in_force.store(Some(Arc::new(published.clone())));
        let sound = counts(&published.snapshot.problems).errors == 0;
        self.gateway.publish(match &self.serves {
            Serves::Requests => published.snapshot,
            Serves::Calls(pool) => Arc::new(pools_only(&published.snapshot, pool.as_ref())),
            Serves::Nothing => Arc::new(without_ports(&published.snapshot)),
        });
        self.note_ports();
        self.telemetry
            .metrics
            .config_loaded(sound, SystemTime::now());
        self.readiness.set_config_loaded();
    }

    /// Follows the source and the ports, for ever.
    pub(crate) async fn follow(&mut self) {
        let mut ports = self.gateway.shared().watch_ports();
        self.note_ports();
        let mut has_source = true;
        loop {
            tokio::select! {
                changed = self.published.changed(), if has_source => match changed {
                    Ok(()) => self.publish(),
                    // It has logged why; what it gave last is served on.
                    Err(_) => has_source = false,
                },
                () = changed(&mut self.policy) => self.publish(),
                // Whoever opens ports is in `shared`, as long as there is a gateway.
                Ok(()) = ports.changed() => self.note_ports(),
            }
        }
    }

    /// Logs ports as they open, and tells readiness whether all are.
    fn note_ports(&mut self) {
        let shared = self.gateway.shared();
        let (workers, states) = (shared.settings.workers, shared.ports());
        let wanted: BTreeSet<u16> = shared.live.load().snapshot.ports.keys().copied().collect();
        let is_open = |port: &&u16| {
            states
                .get(port)
                .is_some_and(|s| s.error.is_none() && s.bound >= workers)
        };
        let open: BTreeSet<u16> = wanted.iter().filter(is_open).copied().collect();
        self.readiness.set_listeners_bound(open == wanted);
        for port in open.difference(&self.open) {
            let address = std::net::SocketAddr::new(shared.settings.bind, *port);
            tracing::info!(workers, "listening on {address}");
        }
        for port in self.open.difference(&wanted) {
            tracing::info!("no longer listening on port {port}");
        }
        self.open = open;
    }

    /// Tells load balancers to look elsewhere and lets another process write, and goes on serving.
    pub(crate) fn retire(&mut self) {
        self.readiness.set_draining();
        if let Some(following) = &mut self.following {
            following.stop_writing();
        }
    }

    /// Stops listening and waits for exchanges to end, up to the drain timeout or until `cut` ends.
    pub(crate) async fn drain(
        self,
        cut: impl Future<Output = &'static str>,
    ) -> Result<(), Failure> {
        self.readiness.set_draining();
        self.gateway.drain();
        let Self {
            gateway,
            telemetry,
            following,
            ..
        } = self;
        let workers = tokio::task::spawn_blocking(move || gateway.join());
        let ended = tokio::select! {
            _joined = workers => Ok(()),
            name = cut => Err(cut_off(name)),
        };
        if let Some(following) = following {
            following.ended().await;
        }
        telemetry.flush(FLUSH_TIMEOUT);
        ended
    }
}

/// Returns when the policy has changed; never, if there is none.
async fn changed(policy: &mut Option<Policy>) {
    match policy {
        Some(policy) => policy.changed().await,
        None => std::future::pending().await,
    }
}

fn cut_off(signal: &str) -> Failure {
    Failure::world(format!("{signal} again: open streams were cut off"))
}

/// What a process does with requests.
#[derive(PartialEq, Eq, Debug)]
enum Serves {
    /// It takes them.
    Requests,
    /// It is asked about them, those of one pool or of any.
    Calls(Option<ObjectName>),
    /// None of it.
    Nothing,
}

fn start_epp(
    shared: &Arc<Shared>,
    settings: &epp::Settings,
    readiness: &Arc<Readiness>,
) -> Result<(), Failure> {
    let started = epp::Epp::start(shared, settings, Arc::clone(readiness));
    let epp = started.map_err(|error| {
        Failure::world(format!("external processing cannot be served: {error}"))
    })?;
    tracing::info!(security = ?settings.security, "external processing on {}", epp.address);
    if let Some(health) = epp.health {
        tracing::info!("gRPC health on {health}");
    }
    Ok(())
}

/// What a picker needs: its pool, or all of them, and no port to open.
fn pools_only(snapshot: &Snapshot, only: Option<&ObjectName>) -> Snapshot {
    let problems = snapshot.problems.iter().filter(|p| !names_a_picker(p));
    Snapshot {
        generation: snapshot.generation,
        pools: match only {
            Some(name) => {
                let own = snapshot.pools.get_key_value(name).into_iter();
                own.map(|(name, pool)| (name.clone(), Arc::clone(pool)))
                    .collect()
            }
            None => snapshot.pools.clone(),
        },
        problems: problems.cloned().collect(),
        ..Snapshot::default()
    }
}

/// Whether it is about the Service of a picker: which for a picker is itself.
fn names_a_picker(problem: &Problem) -> bool {
    problem.field == "spec.endpointPickerRef"
}

/// What a process that serves nothing shows: everything that is wrong, and no port to open.
fn without_ports(snapshot: &Snapshot) -> Snapshot {
    Snapshot {
        generation: snapshot.generation,
        problems: snapshot.problems.clone(),
        ..Snapshot::default()
    }
}

/// A source that is open, and that the runtime follows.
struct Origin {
    names: Vec<String>,
    published: watch::Receiver<Published>,
    reread: Option<Reread>,
    /// Not yet started.
    cluster: Option<Box<Cluster>>,
}

impl Origin {
    fn open(source: Source, picks: bool) -> Result<Self, Failure> {
        let (paths, strict) = match source {
            Source::Kubernetes(cluster) => {
                return Ok(Self {
                    names: vec![cluster.name.clone()],
                    published: cluster.published.clone(),
                    reread: None,
                    cluster: Some(cluster),
                });
            }
            Source::Files { paths, strict } => (paths, strict),
        };
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let names = paths.iter().map(|p| absolute(p).display().to_string());
        let names = names.collect();
        let (source, published) = FileSource::open(paths);
        let mut problems = published.borrow().snapshot.problems.clone();
        problems.retain(|problem| !(picks && names_a_picker(problem)));
        report(&problems, strict)?;
        let reread = Some(source.reread());
        tokio::spawn(source.run());
        Ok(Self {
            names,
            published,
            reread,
            cluster: None,
        })
    }
}

/// Says what is wrong with the first configuration.
fn report(problems: &[Problem], strict: bool) -> Result<(), Failure> {
    let counts = counts(problems);
    if strict && counts.errors > 0 {
        let text = config_view::render_problems(problems);
        return Err(Failure::world(format!(
            "not started, since --strict was given and the manifests have {} errors:\n{}",
            counts.errors,
            text.trim_end()
        )));
    }
    for problem in problems {
        match config_view::weight(problem) {
            "error" => tracing::error!("{problem}"),
            "warning" => tracing::warn!("{problem}"),
            _ => tracing::info!("{problem}"),
        }
    }
    Ok(())
}

/// The signals that end the process, and one that makes it read its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::world(format!("no signal handler: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The name of the next signal that asks to stop.
    async fn stop(&mut self, reread: Option<&Reread>) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => match reread {
                    Some(reread) => {
                        tracing::info!("SIGHUP: reading every file of the configuration again");
                        reread.ask();
                    }
                    None => tracing::info!("SIGHUP: the API server is followed anyway"),
                }
            }
        }
    }
}
