//! Asks a cloud's metadata service what `forebay_fabric::cloud` can read, over a seam behind which is HTTP,
//! or recorded answers.
//!
//! A question without an answer costs what it would have told; only a service that does not answer at all is
//! an error, so that one can ask again.

pub mod http;

use std::fmt;
use std::future::Future;

use forebay_fabric::cloud::{self, ANSWER_BYTES_MAX, AwsNetwork, Azure, CloudFacts, Gce, Oci};
use forebay_fabric::machine::{Nic, Problem};

/// NICs that a webhook or EC2 is asked about, one question each, at most; of the others nothing is said.
const NICS_MAX: usize = 128;

/// Who knows of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// Google Compute Engine.
    Gce,
    /// Amazon EC2.
    Aws,
    /// Microsoft Azure.
    Azure,
    /// Oracle Cloud.
    Oci,
    /// A server of the operator that speaks dranet's webhook protocol.
    Webhook,
}

impl Provider {
    /// Where its service is, without a slash at the end; none for a webhook, whose operator says.
    pub fn base(self) -> Option<&'static str> {
        match self {
            Provider::Gce | Provider::Aws | Provider::Azure | Provider::Oci => {
                Some("http://169.254.169.254")
            }
            Provider::Webhook => None,
        }
    }
}

/// A question to a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// `GET`, `PUT` or `POST`.
    pub method: &'static str,
    /// Path and query, from the service's base.
    pub path: String,
    /// A header that the service wants. Of EC2 it is a token, which is not to be logged.
    pub header: Option<(&'static str, String)>,
    /// JSON, for a `POST`.
    pub body: String,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// The body, of at most [`ANSWER_BYTES_MAX`].
    pub body: String,
}

/// No answer came: a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoAnswer(pub String);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoAnswer {}

/// A metadata service, or a recording of one. The time limit for a question is the implementation's.
pub trait Metadata {
    /// Asks.
    fn ask(&self, question: Question) -> impl Future<Output = Result<Answer, NoAnswer>> + Send;
}

/// Asks a provider for what it knows of this machine and these NICs.
///
/// # Errors
///
/// The service did not answer, or refused to be asked; asking again may help.
pub async fn discover<M: Metadata + Sync>(
    provider: Provider,
    service: &M,
    nics: &[Nic],
) -> Result<CloudFacts, NoAnswer> {
    let mut asked = Asked {
        service,
        header: None,
        problems: Vec::new(),
    };
    let mut facts = match provider {
        Provider::Gce => asked.gce().await?,
        Provider::Aws => asked.aws(nics).await?,
        Provider::Azure => asked.azure().await?,
        Provider::Oci => asked.oci().await?,
        Provider::Webhook => asked.webhook(nics).await?,
    };
    facts.problems.append(&mut asked.problems);
    Ok(facts)
}

struct Asked<'a, M> {
    service: &'a M,
    header: Option<(&'static str, String)>,
    problems: Vec<Problem>,
}

impl<M: Metadata + Sync> Asked<'_, M> {
    /// The body of an answer of 200; none for 404, which is how services say that they have none, and for
    /// what is noted as a problem.
    async fn ask(
        &mut self,
        method: &'static str,
        path: &str,
        body: String,
    ) -> Result<Option<String>, NoAnswer> {
        let question = Question {
            method,
            path: path.to_owned(),
            header: self.header.clone(),
            body,
        };
        let answer = self.service.ask(question).await?;
        let reason = match answer.status {
            200 if answer.body.len() <= ANSWER_BYTES_MAX => return Ok(Some(answer.body)),
            200 => format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"),
            404 => return Ok(None),
            status => format!("the service answered {method} with {status}"),
        };
        let path = path.to_owned();
        self.problems.push(Problem { path, reason });
        Ok(None)
    }

    async fn get(&mut self, path: &str) -> Result<Option<String>, NoAnswer> {
        self.ask("GET", path, String::new()).await
    }

    async fn gce(&mut self) -> Result<CloudFacts, NoAnswer> {
        self.header = Some(("Metadata-Flavor", "Google".to_owned()));
        let base = "/computeMetadata/v1/instance";
        let machine_type = self.get(&format!("{base}/machine-type")).await?;
        let interfaces = self
            .get(&format!("{base}/network-interfaces/?recursive=true"))
            .await?;
        let physical_host = self
            .get(&format!("{base}/attributes/physical_host"))
            .await?;
        Ok(cloud::gce(Gce {
            machine_type: machine_type.as_deref(),
            interfaces: interfaces.as_deref(),
            physical_host: physical_host.as_deref(),
        }))
    }

    async fn aws(&mut self, nics: &[Nic]) -> Result<CloudFacts, NoAnswer> {
        let lifetime = ("X-aws-ec2-metadata-token-ttl-seconds", "60".to_owned());
        self.header = Some(lifetime);
        let token = self.ask("PUT", "/latest/api/token", String::new()).await?;
        let token = token.ok_or_else(|| {
            NoAnswer("the metadata service of EC2 gave no token: enable IMDSv2".to_owned())
        })?;
        self.header = Some(("X-aws-ec2-metadata-token", token));
        let identity = self
            .get("/latest/dynamic/instance-identity/document")
            .await?;
        let group = self.get("/latest/meta-data/placement/group-name").await?;
        let mut networks = Vec::new();
        for mac in macs(nics) {
            let base = format!("/latest/meta-data/network/interfaces/macs/{mac}");
            let subnet = self.get(&format!("{base}/subnet-id")).await?;
            let card = self.get(&format!("{base}/network-card")).await?;
            networks.push((mac, subnet, card));
        }
        let networks: Vec<AwsNetwork<'_>> = (networks.iter())
            .map(|(mac, subnet, card)| AwsNetwork {
                mac,
                subnet: subnet.as_deref(),
                network_card: card.as_deref(),
            })
            .collect();
        Ok(cloud::aws(identity.as_deref(), group.as_deref(), &networks))
    }

    async fn azure(&mut self) -> Result<CloudFacts, NoAnswer> {
        self.header = Some(("Metadata", "true".to_owned()));
        let query = "?api-version=2025-11-11&format=json";
        let compute = self
            .get(&format!("/metadata/instance/compute{query}"))
            .await?;
        let network = self
            .get(&format!("/metadata/instance/network{query}"))
            .await?;
        Ok(cloud::azure(Azure {
            compute: compute.as_deref(),
            network: network.as_deref(),
        }))
    }

    async fn oci(&mut self) -> Result<CloudFacts, NoAnswer> {
        self.header = Some(("Authorization", "Bearer Oracle".to_owned()));
        let host = self.get("/opc/v2/host/").await?;
        Ok(cloud::oci(Oci {
            host: host.as_deref(),
        }))
    }

    async fn webhook(&mut self, nics: &[Nic]) -> Result<CloudFacts, NoAnswer> {
        let health = self.get("/health").await?.unwrap_or_default();
        if !cloud::webhook_is_provider(&health).map_err(NoAnswer)? {
            let reason = "the webhook's GET /health does not say `\"cloudProvider\": true`";
            return Err(NoAnswer(reason.to_owned()));
        }
        let mut answers = Vec::new();
        for nic in nics.iter().take(NICS_MAX) {
            let Some(netdev) = &nic.netdev else { continue };
            let body = identifiers(nic).to_string();
            if let Some(answer) = self.ask("POST", "/GetDeviceAttributes", body).await? {
                answers.push((netdev.mac.as_str(), answer));
            }
        }
        let answers: Vec<(&str, &str)> = answers
            .iter()
            .map(|(mac, answer)| (*mac, answer.as_str()))
            .collect();
        Ok(cloud::webhook(&answers))
    }
}

fn macs(nics: &[Nic]) -> Vec<String> {
    let all = nics.iter().filter_map(|nic| nic.netdev.as_ref());
    // Only what is no more than an address goes into a path.
    let plain =
        |mac: &&str| !mac.is_empty() && mac.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    let macs = all.map(|netdev| netdev.mac.as_str()).filter(plain);
    macs.take(NICS_MAX).map(str::to_owned).collect()
}

/// How a webhook is told which NIC it is asked about.
pub(crate) fn identifiers(nic: &Nic) -> serde_json::Value {
    let netdev = nic.netdev.as_ref();
    serde_json::json!({
        "name": forebay_fabric::publish::device_name(nic),
        "mac": netdev.map_or("", |n| &n.mac),
        "pciAddress": nic.pci.as_ref().map_or_else(String::new, |pci| pci.address.to_string()),
        "rdma": nic.rdma.is_some(),
    })
}
