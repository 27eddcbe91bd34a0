//! The services: messages to calls of the driver, and what comes of them to messages.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use forebay_fabric::claim::ClaimRef;
use forebay_wire::kubelet::{dra_v1, dra_v1beta1, health_v1, health_v1alpha1, registration};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use super::http2::stopped;
use super::lock::Lock;
use super::{CLAIMS_AT_ONCE, Registration};
use crate::driver::{DeviceHealth, Driver, Health, PreparedDevice};

/// Services at the endpoint, in the names that kubelets look for.
const VERSIONS: [&str; 4] = [
    "v1.DRAPlugin",
    "v1beta1.DRAPlugin",
    "v1.DRAResourceHealth",
    "v1alpha1.DRAResourceHealth",
];
/// Health is told again after this long without a change: the kubelet takes devices of which it hears
/// nothing for 30 s for unknown.
const HEALTH_REPEAT: Duration = Duration::from_secs(10);

/// Tells the kubelet where the driver is.
pub(super) struct Registrar {
    pub(super) driver: String,
    pub(super) endpoint: String,
    pub(super) status: watch::Sender<Registration>,
}

#[async_trait]
impl registration::registration_server::Registration for Registrar {
    async fn get_info(
        &self,
        _request: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.status.send_replace(match status.plugin_registered {
            true => Registration::Registered,
            false => Registration::Refused(status.error),
        });
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}

/// What the kubelet asks of the driver.
pub(super) struct Plugin<D> {
    pub(super) driver: Arc<D>,
    pub(super) lock: Lock,
    pub(super) stopping: watch::Receiver<bool>,
}

/// What came of each claim, by UID.
type Outcomes<T> = BTreeMap<String, Result<T, String>>;

impl<D: Driver> Plugin<D> {
    async fn prepare(&self, claims: Vec<ClaimRef>) -> Outcomes<Vec<PreparedDevice>> {
        let driver = &self.driver;
        self.each(claims, |claim| async move {
            driver.prepare(&claim).await.map_err(|e| e.0)
        })
        .await
    }

    async fn unprepare(&self, claims: Vec<ClaimRef>) -> Outcomes<()> {
        let driver = &self.driver;
        self.each(claims, |claim| async move {
            driver.unprepare(&claim).await.map_err(|e| e.0)
        })
        .await
    }

    /// Does it for every claim, each once, and has an outcome for each: one that is wrong takes no other
    /// with it.
    async fn each<T, F>(&self, claims: Vec<ClaimRef>, work: impl Fn(ClaimRef) -> F) -> Outcomes<T>
    where
        F: Future<Output = Result<T, String>>,
    {
        let claims: BTreeMap<String, ClaimRef> = claims
            .into_iter()
            .map(|claim| (claim.uid.clone(), claim))
            .collect();
        let _held = match self.lock.hold().await {
            Ok(held) => held,
            Err(why) => {
                return claims
                    .into_keys()
                    .map(|uid| (uid, Err(why.clone())))
                    .collect();
            }
        };
        let work = &work;
        stream::iter(claims)
            .map(|(uid, claim)| async move {
                if let Some(wrong) = wrong_with(&claim) {
                    return (uid, Err(wrong));
                }
                let name = claim.to_string();
                let outcome = work(claim).await;
                (uid, outcome.map_err(|why| naming(&name, why)))
            })
            .buffer_unordered(CLAIMS_AT_ONCE)
            .collect()
            .await
    }

    /// The health of all devices now, at every change, and every [`HEALTH_REPEAT`], until it is to end.
    fn health<T: Send + 'static>(
        &self,
        message: fn(&[DeviceHealth]) -> T,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        let mut health = self.driver.health();
        health.mark_changed();
        stream::unfold(
            (health, self.stopping.clone()),
            move |(mut health, mut stopping)| async move {
                tokio::select! {
                    // The driver is gone, or is to go.
                    () = stopped(&mut stopping) => return None,
                    changed = health.changed() => changed.ok()?,
                    () = tokio::time::sleep(HEALTH_REPEAT) => {}
                }
                let next = message(&health.borrow_and_update());
                Some((Ok(next), (health, stopping)))
            },
        )
    }
}

/// An error that names its claim, once.
fn naming(claim: &str, why: String) -> String {
    let prefix = format!("claim {claim}: ");
    match why.starts_with(&prefix) {
        true => why,
        false => prefix + &why,
    }
}

fn wrong_with(claim: &ClaimRef) -> Option<String> {
    let fields = [
        ("namespace", &claim.namespace),
        ("name", &claim.name),
        ("uid", &claim.uid),
    ];
    let empty = fields.iter().find(|(_, value)| value.is_empty());
    empty.map(|(field, _)| {
        format!("claim {claim}: its {field} is empty; the kubelet has to name it")
    })
}

fn outcome<T: Default>(result: Result<T, String>) -> (T, String) {
    match result {
        Ok(value) => (value, String::new()),
        Err(why) => (T::default(), why),
    }
}

#[async_trait]
impl<D: Driver> dra_v1::dra_plugin_server::DraPlugin for Plugin<D> {
    async fn node_prepare_resources(
        &self,
        request: Request<dra_v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<dra_v1::NodePrepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter();
        let claims = claims.map(|claim| claim_ref(claim.namespace, claim.name, claim.uid));
        let outcomes = self.prepare(claims.collect()).await;
        let claims = outcomes.into_iter().map(|(uid, result)| {
            let (devices, error) = outcome(result);
            let devices = devices.into_iter().map(device_v1).collect();
            (uid, dra_v1::NodePrepareResourceResponse { devices, error })
        });
        let claims = claims.collect();
        Ok(Response::new(dra_v1::NodePrepareResourcesResponse {
            claims,
        }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<dra_v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<dra_v1::NodeUnprepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter();
        let claims = claims.map(|claim| claim_ref(claim.namespace, claim.name, claim.uid));
        let outcomes = self.unprepare(claims.collect()).await;
        let claims = outcomes.into_iter().map(|(uid, result)| {
            let ((), error) = outcome(result);
            (uid, dra_v1::NodeUnprepareResourceResponse { error })
        });
        let claims = claims.collect();
        Ok(Response::new(dra_v1::NodeUnprepareResourcesResponse {
            claims,
        }))
    }
}

#[async_trait]
impl<D: Driver> dra_v1beta1::dra_plugin_server::DraPlugin for Plugin<D> {
    async fn node_prepare_resources(
        &self,
        request: Request<dra_v1beta1::NodePrepareResourcesRequest>,
    ) -> Result<Response<dra_v1beta1::NodePrepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter();
        let claims = claims.map(|claim| claim_ref(claim.namespace, claim.name, claim.uid));
        let outcomes = self.prepare(claims.collect()).await;
        let claims = outcomes.into_iter().map(|(uid, result)| {
            let (devices, error) = outcome(result);
            let devices = devices.into_iter().map(device_v1beta1).collect();
            (
                uid,
                dra_v1beta1::NodePrepareResourceResponse { devices, error },
            )
        });
        let claims = claims.collect();
        Ok(Response::new(dra_v1beta1::NodePrepareResourcesResponse {
            claims,
        }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<dra_v1beta1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<dra_v1beta1::NodeUnprepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter();
        let claims = claims.map(|claim| claim_ref(claim.namespace, claim.name, claim.uid));
        let outcomes = self.unprepare(claims.collect()).await;
        let claims = outcomes.into_iter().map(|(uid, result)| {
            let ((), error) = outcome(result);
            (uid, dra_v1beta1::NodeUnprepareResourceResponse { error })
        });
        let claims = claims.collect();
        Ok(Response::new(dra_v1beta1::NodeUnprepareResourcesResponse {
            claims,
        }))
    }
}

fn claim_ref(namespace: String, name: String, uid: String) -> ClaimRef {
    ClaimRef {
        namespace,
        name,
        uid,
    }
}

fn device_v1(device: PreparedDevice) -> dra_v1::Device {
    dra_v1::Device {
        request_names: device.requests,
        pool_name: device.pool,
        device_name: device.device,
        cdi_device_ids: device.cdi_ids,
        share_id: device.share_id,
    }
}

/// Without the share, which this version does not have.
fn device_v1beta1(device: PreparedDevice) -> dra_v1beta1::Device {
    dra_v1beta1::Device {
        request_names: device.requests,
        pool_name: device.pool,
        device_name: device.device,
        cdi_device_ids: device.cdi_ids,
    }
}

#[async_trait]
impl<D: Driver> health_v1::dra_resource_health_server::DraResourceHealth for Plugin<D> {
    type NodeWatchResourcesStream =
        Pin<Box<dyn Stream<Item = Result<health_v1::NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _request: Request<health_v1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        Ok(Response::new(Box::pin(self.health(health_of_v1))))
    }
}

fn health_of_v1(devices: &[DeviceHealth]) -> health_v1::NodeWatchResourcesResponse {
    let devices = devices.iter().map(|device| health_v1::DeviceHealth {
        device: Some(health_v1::DeviceIdentifier {
            pool_name: device.pool.clone(),
            device_name: device.device.clone(),
        }),
        health: match device.health {
            Health::Healthy => health_v1::HealthStatus::Healthy,
            Health::Unhealthy => health_v1::HealthStatus::Unhealthy,
            Health::Unknown => health_v1::HealthStatus::Unknown,
        }
        .into(),
        last_updated_time: device.seen_at_s,
        health_check_timeout_seconds: 0,
        message: device.message.clone(),
    });
    let devices = devices.collect();
    health_v1::NodeWatchResourcesResponse { devices }
}

#[async_trait]
impl<D: Driver> health_v1alpha1::dra_resource_health_server::DraResourceHealth for Plugin<D> {
    type NodeWatchResourcesStream = Pin<
        Box<dyn Stream<Item = Result<health_v1alpha1::NodeWatchResourcesResponse, Status>> + Send>,
    >;

    async fn node_watch_resources(
        &self,
        _request: Request<health_v1alpha1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        Ok(Response::new(Box::pin(self.health(health_of_v1alpha1))))
    }
}

fn health_of_v1alpha1(devices: &[DeviceHealth]) -> health_v1alpha1::NodeWatchResourcesResponse {
    let devices = devices.iter().map(|device| health_v1alpha1::DeviceHealth {
        device: Some(health_v1alpha1::DeviceIdentifier {
            pool_name: device.pool.clone(),
            device_name: device.device.clone(),
        }),
        health: match device.health {
            Health::Healthy => health_v1alpha1::HealthStatus::Healthy,
            Health::Unhealthy => health_v1alpha1::HealthStatus::Unhealthy,
            Health::Unknown => health_v1alpha1::HealthStatus::Unknown,
        }
        .into(),
        last_updated_time: device.seen_at_s,
        health_check_timeout_seconds: 0,
        message: device.message.clone(),
    });
    let devices = devices.collect();
    health_v1alpha1::NodeWatchResourcesResponse { devices }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_claim_once() {
        let named = "claim team/a (u): no such NIC";
        assert_eq!(naming("team/a (u)", "no such NIC".to_owned()), named);
        assert_eq!(naming("team/a (u)", named.to_owned()), named);
    }
}
