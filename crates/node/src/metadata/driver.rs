//! A driver whose claims are described to their containers.

use std::io;

use forebay_fabric::claim::{ClaimRef, parent};
use tokio::sync::watch;

use super::{Files, Subject};
use crate::driver::{DeviceHealth, Driver, DriverError, Hook, PreparedDevice, Sandbox};
use crate::inventory::Known;
use crate::ledger::{ClaimRecord, Ledger};
use crate::report;

/// The driver, with metadata files for what it prepares.
#[derive(Debug)]
pub struct Described<D> {
    driver: D,
    files: Files,
    known: Known,
    ledger: Ledger,
}

impl<D: Driver> Described<D> {
    /// `driver` over `ledger`, whose devices are `known`.
    pub fn new(driver: D, files: Files, (known, ledger): (Known, Ledger)) -> Described<D> {
        Described {
            driver,
            files,
            known,
            ledger,
        }
    }

    /// Tells the containers of `records` how the devices look that are in the pod.
    async fn tell(&self, of: impl Fn(&ClaimRecord) -> bool + Send + 'static) {
        let (files, ledger) = (self.files.clone(), self.ledger.clone());
        let told = blocking(move || {
            let (records, _) = ledger.all()?;
            let records: Vec<ClaimRecord> = records.into_iter().filter(of).collect();
            for status in report::statuses(&records, |_| Vec::new()) {
                let devices = status.devices.into_iter();
                let network = devices.filter_map(|d| {
                    let key = (d.pool, d.device, d.share_id);
                    Some((key, d.network?))
                });
                files.attached(&status.claim.uid, &network.collect())?;
            }
            Ok(())
        });
        // The NICs are there and verified, and the claim's status says the same: no reason to end a pod.
        if let Err(error) = told.await {
            tracing::warn!("metadata files lack how NICs look in their pods: {error}");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}

impl<D: Driver> Driver for Described<D> {
    async fn prepare(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, DriverError> {
        let mut devices = self.driver.prepare(claim).await?;
        let mut subjects = Vec::new();
        for device in &devices {
            let subject = |request: &String| Subject {
                request: request.clone(),
                pool: device.pool.clone(),
                device: device.device.clone(),
                share_id: device.share_id.clone(),
                attributes: self.known.attributes(&device.device).unwrap_or_default(),
            };
            subjects.extend(device.requests.iter().map(subject));
        }
        let (files, ledger, own) = (self.files.clone(), self.ledger.clone(), claim.clone());
        let written = blocking(move || {
            let record = ledger.read(&own.uid)?;
            let name = record.and_then(|record| record.claim_name_in_pod);
            files.write(&own, name.as_deref(), &subjects)
        });
        let written = written.await;
        let names = written.map_err(|error| {
            DriverError(format!(
                "claim {claim}: its metadata files cannot be written: {error}"
            ))
        })?;
        for device in &mut devices {
            let own = device
                .requests
                .iter()
                .filter_map(|r| names.get(parent(r)).cloned());
            device.cdi_ids.extend(own);
        }
        // The kubelet asks again while the pod runs.
        let uid = claim.uid.clone();
        self.tell(move |record| record.uid == uid).await;
        Ok(devices)
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), DriverError> {
        self.driver.unprepare(claim).await?;
        let (files, uid) = (self.files.clone(), claim.uid.clone());
        blocking(move || files.remove(&uid)).await.map_err(|error| {
            DriverError(format!("claim {claim}: its metadata files stay: {error}"))
        })
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        if !self.driver.concerns(sandbox) {
            return self.driver.attach(sandbox).await;
        }
        self.driver.attach(sandbox).await?;
        let pod = sandbox.uid.clone();
        self.tell(move |record| record.pod_uid == pod).await;
        Ok(())
    }

    async fn detach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        self.driver.detach(sandbox).await
    }

    async fn synchronize(&self, sandboxes: &[Sandbox]) -> Result<(), DriverError> {
        self.driver.synchronize(sandboxes).await?;
        self.tell(|_| true).await;
        Ok(())
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
