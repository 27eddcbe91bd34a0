//! `forebay demo`: a gateway and four simulated model servers in this process, loaded twice in the
//! same way under two pickers, side by side in a table.
//!
//! Between the runs nothing is carried over: fresh servers with empty caches replace the old ones in
//! the manifests, and the gateway follows the change while it runs. What is simulated are the model
//! servers; the gateway, its configuration and the HTTP traffic are real. The workloads are in
//! `workload.rs`, the manifests in `manifests.rs`, the servers in `servers.rs`.

mod interrupt;
mod manifests;
mod report;
mod servers;
mod workload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_gateway::settings::Settings;
use forebay_gateway::signals;
use forebay_gateway::telemetry::{self, Format};
use forebay_simulate::load::{self, LoadConfig, Summary};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::cli::{DemoArgs, LogArgs, LogFormat, Workload as Kind};
use crate::gateway::{Plan, Running, Source};
use crate::{Failure, admin_client, descriptors, logging, print};
use interrupt::{Interrupt, broken_off};
use manifests::{Folder, POOL};
use report::{Progress, Run};
use servers::Servers;
use workload::Scenario;

/// How long the gateway may take to follow a change of its manifests; a second is what it promises.
const RELOAD_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const RELOAD_POLL: Duration = Duration::from_millis(20);
/// How long running answers may go on when the demo ends.
const DRAIN: Duration = Duration::from_secs(1);

/// Compares pickers, then serves on unless `--once` was given.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    logging::start(&LogArgs {
        log: "warn".to_owned(),
        log_format: LogFormat::Text,
    })?;
    // A thousand are enough here.
    let _few = descriptors::raise_limit();
    check_port(args.port)?;
    let interrupt = Interrupt::listen()?;
    let folder = Folder::create(args.port)?;
    let mut demo = Demo {
        args,
        interrupt,
        folder,
        servers: None,
        gateway: None,
    };
    print(&demo.introduction())?;
    let kinds: &[Kind] = if args.full {
        &[Kind::Shared, Kind::Mixed]
    } else {
        &[args.workload]
    };
    for kind in kinds {
        let scenario = Scenario::of(*kind, args);
        print(&format!("\n{}\n", scenario.describe()))?;
        let baseline = demo.measure(&scenario, scenario.baseline)?;
        let ours = demo.measure(&scenario, "default")?;
        print(&report::table(&scenario, &baseline, &ours))?;
    }
    if args.once {
        return Ok(());
    }
    print(&demo.invitation())?;
    demo.wait_for_interrupt()
}

/// A port that somebody else listens on would be shared with them, not refused.
fn check_port(port: u16) -> Result<(), Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        Ok(_) => Err(Failure::usage(format!(
            "port {port} is taken by another program; choose another with --port"
        ))),
        Err(_) => Ok(()),
    }
}

/// What runs.
struct Demo<'a> {
    args: &'a DemoArgs,
    interrupt: Interrupt,
    // Fields are dropped in this order: first who sends, then who answers, then what both go by.
    gateway: Option<GatewayThread>,
    servers: Option<Servers>,
    folder: Folder,
}

impl Demo<'_> {
    /// One run: fresh servers, the picker in force, the load.
    fn measure(&mut self, scenario: &Scenario, picker: &'static str) -> Result<Run, Failure> {
        let servers = Servers::start(scenario)?;
        self.folder.write(servers.port(), picker)?;
        if self.gateway.is_none() {
            self.gateway = Some(GatewayThread::start(self.args, &self.folder)?);
        }
        self.wait_until_live(&servers)?;
        // The servers of the run before have nothing to do any more.
        let old = self.servers.replace(servers);
        drop(old);
        let servers = self.servers.as_ref().expect("set above");
        let cpu_before = report::cpu_time();
        let summary = self.load(scenario, picker)?;
        let skipped = servers.skipped()?;
        Ok(Run {
            picker,
            cpu: report::cpu_time().saturating_sub(cpu_before),
            summary,
            skipped,
        })
    }

    fn load(&self, scenario: &Scenario, picker: &str) -> Result<Summary, Failure> {
        let config = LoadConfig {
            base_url: format!("http://127.0.0.1:{}", self.args.port),
            model: servers::MODEL.to_owned(),
            workload: scenario.workload.clone(),
            arrivals: scenario.arrivals(),
            conversations: u64::MAX,
            duration_max: scenario.duration(),
            request_timeout: Duration::from_secs(600),
            seed: self.args.seed,
            headers: Vec::new(),
            progress_every: Duration::from_millis(200),
        };
        let runtime = runtime()?;
        let mut progress = Progress::new(picker, scenario);
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = load::run(config, |so_far| progress.show(so_far)) => Ok(ended),
                name = self.interrupt.told() => Err(name),
            }
        });
        let summary = match ended {
            Ok(ended) => ended.map_err(|error| Failure::world(error.to_string()))?,
            Err(name) => {
                progress.break_off();
                return Err(broken_off(name));
            }
        };
        progress.end(&summary);
        Ok(summary)
    }

    /// Waits until the gateway has scraped each of `servers` and finds it good.
    fn wait_until_live(&self, servers: &Servers) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < RELOAD_MAX {
            self.interrupt.check()?;
            if self.gateway.as_ref().is_some_and(GatewayThread::has_failed) {
                break;
            }
            if let Ok(pools) = admin_client::get(self.args.admin, "/debug/pools")
                && is_live(&pools, servers)
            {
                return Ok(());
            }
            std::thread::sleep(RELOAD_POLL);
        }
        let folder = self.folder.path().display();
        Err(Failure::world(format!(
            "the gateway did not come up with the manifests in {folder}; the lines above say why"
        )))
    }

    fn introduction(&self) -> String {
        format!(
            "Gateway on http://127.0.0.1:{}, in front of four SIMULATED model servers \
             ({}).\nManifests: {}; they change while the gateway runs.\n",
            self.args.port,
            servers::DESCRIPTION,
            self.folder.path().display()
        )
    }

    fn invitation(&self) -> String {
        let DemoArgs { port, admin, .. } = self.args;
        let model = servers::MODEL;
        format!(
            "
Serving on http://127.0.0.1:{port} until Ctrl-C. Try:

  curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{\"model\": \"{model}\", \"max_tokens\": 20,
         \"messages\": [{{\"role\": \"user\", \"content\": \"Why is the water still?\"}}]}}'

  # Python, pip install openai
  from openai import OpenAI
  client = OpenAI(base_url=\"http://127.0.0.1:{port}/v1\", api_key=\"none\")
  question = [{{\"role\": \"user\", \"content\": \"Why is the water still?\"}}]
  print(client.chat.completions.create(model=\"{model}\", messages=question))

  forebay explain --admin {admin}           # why it went where it went
  forebay status --admin {admin}
  $EDITOR {}     # another picker, live
",
            self.folder.path().display()
        )
    }

    fn wait_for_interrupt(&self) -> Result<(), Failure> {
        let _name = runtime()?.block_on(self.interrupt.told());
        Ok(())
    }
}

/// Whether the pool has just these servers, all scraped and in good standing.
fn is_live(pools: &Value, servers: &Servers) -> bool {
    let pool = pools
        .as_array()
        .and_then(|all| all.iter().find(|pool| pool["pool"] == POOL));
    let endpoints = pool.and_then(|pool| pool["endpoints"].as_array());
    endpoints.is_some_and(|endpoints| {
        let good = |address: &SocketAddr| {
            let own = endpoints
                .iter()
                .find(|e| e["address"] == address.to_string());
            own.is_some_and(|e| e["standing"] == "good" && !e["running"].is_null())
        };
        endpoints.len() == servers.addresses().len() && servers.addresses().iter().all(good)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))
}

/// The gateway, as `forebay gateway` runs it, in a thread of its own.
struct GatewayThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GatewayThread {
    fn start(args: &DemoArgs, folder: &Folder) -> Result<Self, Failure> {
        let plan = Plan {
            source: Source::Files {
                paths: vec![folder.path().to_owned()],
                strict: true,
            },
            settings: Settings {
                bind: IpAddr::from(Ipv4Addr::LOCALHOST),
                admin: Some(args.admin),
                drain_timeout: DRAIN,
                ..Settings::default()
            },
            telemetry: telemetry::Settings {
                llm_d_names: false,
                access_log: Format::Off,
                otlp: None,
            },
            scrape: signals::Settings::default(),
            seed: args.seed,
            policy: None,
            epp: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || {
                if let Err(failure) = serve(plan, stopped) {
                    eprintln!("forebay: {}", failure.message);
                }
            });
        let thread = thread.map_err(|error| Failure::world(format!("no thread: {error}")))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for GatewayThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

fn serve(plan: Plan, stopped: oneshot::Receiver<()>) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mut running = Running::start(plan)?;
        tokio::select! {
            () = running.follow() => {}
            _dropped = stopped => {}
        }
        running.drain(std::future::pending()).await
    })
}
