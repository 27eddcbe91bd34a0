//! A driver whose calls are counted, timed, logged and told of.

use std::time::{Duration, Instant, SystemTime};

use forebay_fabric::claim::ClaimRef;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::driver::{DeviceHealth, Driver, DriverError, Hook, PreparedDevice, Sandbox};

/// Upper bounds of the histogram's buckets, seconds: around 5 ms for a prepare and 150 ms for an attach of
/// eight NICs, which are promised, up to the limit of an attach.
const BUCKETS_S: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.3, 0.75, 1.5,
];

/// What was asked of the driver.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// By the kubelet.
    Prepare(&'a ClaimRef),
    /// By the kubelet.
    Unprepare(&'a ClaimRef),
    /// By the runtime.
    Attach(&'a Sandbox),
    /// By the runtime.
    Detach(&'a Sandbox),
    /// By the runtime, which has so many sandboxes.
    Synchronize(usize),
}

impl Call<'_> {
    fn name(&self) -> &'static str {
        match self {
            Call::Prepare(_) => "prepare",
            Call::Unprepare(_) => "unprepare",
            Call::Attach(_) => "attach",
            Call::Detach(_) => "detach",
            Call::Synchronize(_) => "synchronize",
        }
    }

    fn subject(&self) -> String {
        match self {
            Call::Prepare(claim) | Call::Unprepare(claim) => format!("claim {claim}"),
            Call::Attach(pod) | Call::Detach(pod) => format!("pod {}/{}", pod.namespace, pod.name),
            Call::Synchronize(sandboxes) => format!("{sandboxes} sandboxes"),
        }
    }
}

/// When something was, and how long it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Took {
    /// Its beginning, by the host's clock.
    pub began: SystemTime,
    /// Its duration, by a clock that nobody sets.
    pub took: Duration,
}

/// Who is told of calls after they were answered.
pub trait Observer: Send + Sync + 'static {
    /// This is what came of a call.
    fn after(&self, call: Call<'_>, done: Result<(), &DriverError>, took: Took);
}

/// Counters and gauges of a driver; clones count as one.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<CallLabel, Histogram, fn() -> Histogram>,
    devices: Gauge,
    tainted: Gauge,
    connected: Family<PeerLabel, Gauge>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
    result: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PeerLabel {
    to: &'static str,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS_S)),
            devices: Gauge::default(),
            tainted: Gauge::default(),
            connected: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds them to a page of metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "forebay_node_calls",
            "Calls of the kubelet and the runtime by what came of them; pods without claims are left out",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "forebay_node_call_duration",
            "How long these calls took",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "forebay_node_devices",
            "Devices that are published",
            self.devices.clone(),
        );
        registry.register(
            "forebay_node_tainted_devices",
            "Devices of these with a taint",
            self.tainted.clone(),
        );
        registry.register(
            "forebay_node_connected",
            "Whether the kubelet has registered the driver, and the runtime its plugin",
            self.connected.clone(),
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        registry.register_with_unit(
            "process_start_time",
            "When this process began to keep count, since 1970: the name that every exporter has it under",
            Unit::Seconds,
            ConstGauge::new(now.map_or(0.0, |now| now.as_secs_f64())),
        );
    }

    /// So many devices are published, so many of them tainted.
    pub fn set_devices(&self, devices: usize, tainted: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.devices.set(count(devices));
        self.tainted.set(count(tainted));
    }

    /// How the connection to `kubelet` or `runtime` is.
    pub fn set_connected(&self, to: &'static str, connected: bool) {
        let gauge = self.connected.get_or_create(&PeerLabel { to });
        gauge.set(connected.into());
    }

    fn note(&self, call: Call<'_>, ok: bool, took: Duration) {
        let result = if ok { "success" } else { "failure" };
        let call = call.name();
        self.calls.get_or_create(&CallLabels { call, result }).inc();
        self.seconds
            .get_or_create(&CallLabel { call })
            .observe(took.as_secs_f64());
    }
}

/// The driver, observed.
#[derive(Debug)]
pub struct Observed<D, O> {
    driver: D,
    observer: O,
    metrics: Metrics,
}

impl<D: Driver, O: Observer> Observed<D, O> {
    /// `driver` with its calls counted in `metrics` and told to `observer`.
    pub fn new(driver: D, observer: O, metrics: Metrics) -> Observed<D, O> {
        Observed {
            driver,
            observer,
            metrics,
        }
    }

    async fn timed<T>(
        &self,
        call: Call<'_>,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let (since, began) = (Instant::now(), SystemTime::now());
        let done = work.await;
        let took = since.elapsed();
        self.metrics.note(call, done.is_ok(), took);
        let (name, ms) = (call.name(), took.as_secs_f64() * 1e3);
        match &done {
            Ok(_) => tracing::info!("{}: {name} done in {ms:.1} ms", call.subject()),
            Err(error) => tracing::warn!(
                "{}: {name} failed after {ms:.1} ms: {error}",
                call.subject()
            ),
        }
        let whole = Took { began, took };
        self.observer.after(call, done.as_ref().map(|_| ()), whole);
        done
    }
}

impl<D: Driver, O: Observer> Driver for Observed<D, O> {
    async fn prepare(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, DriverError> {
        self.timed(Call::Prepare(claim), self.driver.prepare(claim))
            .await
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), DriverError> {
        self.timed(Call::Unprepare(claim), self.driver.unprepare(claim))
            .await
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        if !self.concerns(sandbox) {
            return self.driver.attach(sandbox).await;
        }
        self.timed(Call::Attach(sandbox), self.driver.attach(sandbox))
            .await
    }

    async fn detach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        if !self.concerns(sandbox) {
            return self.driver.detach(sandbox).await;
        }
        self.timed(Call::Detach(sandbox), self.driver.detach(sandbox))
            .await
    }

    async fn synchronize(&self, sandboxes: &[Sandbox]) -> Result<(), DriverError> {
        let call = Call::Synchronize(sandboxes.len());
        self.timed(call, self.driver.synchronize(sandboxes)).await
    }

    async fn guards(&self, sandbox: &Sandbox) -> Result<Vec<Hook>, DriverError> {
        self.driver.guards(sandbox).await
    }

    fn concerns(&self, sandbox: &Sandbox) -> bool {
        self.driver.concerns(sandbox)
    }

    fn health(&self) -> watch::Receiver<Vec<DeviceHealth>> {
        self.driver.health()
    }
}
