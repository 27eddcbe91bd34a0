//! Who may speak to whom: the certificates of one cluster.
//!
//! `subjects` says which certificates there are and is a function of the plan; `issue` makes a
//! fresh authority, signs them and writes the files. The authority's key lives as long as the bed.

use super::plan::Cluster;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The authority's certificate and key, also the ones that the controller manager signs with.
pub(super) const CA: &str = "ca";
pub(super) const API_SERVER: &str = "apiserver";
pub(super) const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
pub(super) const ADMIN: &str = "admin";
pub(super) const CONTROLLER_MANAGER: &str = "controller-manager";
pub(super) const SCHEDULER: &str = "scheduler";
pub(super) const PROXY: &str = "kube-proxy";
/// The key that ServiceAccount tokens are signed with; no certificate belongs to it.
pub(super) const SERVICE_ACCOUNTS: &str = "service-accounts";

/// One certificate to be signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// File name without an ending.
    pub(super) file: String,
    pub(super) common_name: String,
    /// The group, as Kubernetes reads it.
    pub(super) organization: Option<&'static str>,
    pub(super) usage: Usage,
}

/// What the certificate proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Client,
    /// A server under these names; kubelets are clients under the same certificate.
    Server {
        names: Vec<String>,
        addresses: Vec<Ipv4Addr>,
        also_client: bool,
    },
}

/// The certificates of a cluster.
pub(super) fn subjects(cluster: &Cluster) -> Vec<Subject> {
    let client = |file: &str, common_name: &str, organization| Subject {
        file: file.to_owned(),
        common_name: common_name.to_owned(),
        organization,
        usage: Usage::Client,
    };
    let mut subjects = vec![
        Subject {
            file: API_SERVER.to_owned(),
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            usage: Usage::Server {
                names: [
                    "localhost",
                    "kubernetes",
                    "kubernetes.default",
                    "kubernetes.default.svc",
                ]
                .map(str::to_owned)
                .to_vec(),
                addresses: vec![Ipv4Addr::LOCALHOST, cluster.api, cluster.api_service()],
                also_client: false,
            },
        },
        client(
            KUBELET_CLIENT,
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
        ),
        client(ADMIN, "admin", Some("system:masters")),
        client(CONTROLLER_MANAGER, "system:kube-controller-manager", None),
        client(SCHEDULER, "system:kube-scheduler", None),
        client(PROXY, "system:kube-proxy", None),
    ];
    subjects.extend(cluster.nodes.iter().map(|node| Subject {
        file: node.name.clone(),
        common_name: format!("system:node:{}", node.name),
        organization: Some("system:nodes"),
        usage: Usage::Server {
            names: vec![node.name.clone()],
            addresses: vec![node.address],
            also_client: true,
        },
    }));
    subjects
}

/// The folder with the files of a cluster.
pub(super) fn dir(cluster: &Cluster) -> PathBuf {
    cluster.dir.join("pki")
}

/// `<file>.crt` of a cluster.
pub(super) fn certificate(cluster: &Cluster, file: &str) -> PathBuf {
    dir(cluster).join(format!("{file}.crt"))
}

/// `<file>.key` of a cluster.
pub(super) fn key(cluster: &Cluster, file: &str) -> PathBuf {
    dir(cluster).join(format!("{file}.key"))
}

/// `<file>.pub` of a cluster.
pub(super) fn public_key(cluster: &Cluster, file: &str) -> PathBuf {
    dir(cluster).join(format!("{file}.pub"))
}

/// Makes a new authority, and everything in `subjects` signed by it.
pub(super) fn issue(cluster: &Cluster) -> Result<()> {
    let dir = dir(cluster);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let ca = authority(&cluster.name).context("cannot make the certificate authority")?;
    write_public(&certificate(cluster, CA), &ca.pem())?;
    write_secret(&key(cluster, CA), ca.key())?;
    for subject in subjects(cluster) {
        let pair = KeyPair::generate()?;
        let signed = parameters(&subject)
            .and_then(|parameters| Ok(parameters.signed_by(&pair, &ca)?))
            .with_context(|| format!("cannot sign the certificate of {}", subject.common_name))?;
        write_public(&certificate(cluster, &subject.file), &signed.pem())?;
        write_secret(&key(cluster, &subject.file), &pair)?;
    }
    let tokens = KeyPair::generate()?;
    write_secret(&key(cluster, SERVICE_ACCOUNTS), &tokens)?;
    write_public(
        &public_key(cluster, SERVICE_ACCOUNTS),
        &tokens.public_key_pem(),
    )
}

fn authority(cluster: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(
        DnType::CommonName,
        format!("forebay bed, cluster {cluster}"),
    );
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

fn parameters(subject: &Subject) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::default();
    let name = &mut parameters.distinguished_name;
    name.push(DnType::CommonName, subject.common_name.clone());
    if let Some(organization) = subject.organization {
        name.push(DnType::OrganizationName, organization);
    }
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let usages = &mut parameters.extended_key_usages;
    match &subject.usage {
        Usage::Client => usages.push(ExtendedKeyUsagePurpose::ClientAuth),
        Usage::Server {
            names,
            addresses,
            also_client,
        } => {
            usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            if *also_client {
                usages.push(ExtendedKeyUsagePurpose::ClientAuth);
            }
            for name in names {
                parameters
                    .subject_alt_names
                    .push(SanType::DnsName(name.as_str().try_into()?));
            }
            let addresses = addresses.iter().map(|a| SanType::IpAddress(IpAddr::V4(*a)));
            parameters.subject_alt_names.extend(addresses);
        }
    }
    Ok(parameters)
}

fn write_public(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_secret(path: &Path, pair: &KeyPair) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(pair.serialize_pem().as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Bed, Nodes};
    use super::*;

    fn cluster() -> Cluster {
        Bed::small(Nodes::Real).clusters().remove(0)
    }

    #[test]
    fn a_kubelet_is_a_server_and_a_client_under_its_nodes_name() {
        let kubelet = subjects(&cluster()).pop().expect("the node comes last");
        assert_eq!(
            kubelet,
            Subject {
                file: "c1-n1".to_owned(),
                common_name: "system:node:c1-n1".to_owned(),
                organization: Some("system:nodes"),
                usage: Usage::Server {
                    names: vec!["c1-n1".to_owned()],
                    addresses: vec![Ipv4Addr::new(10, 201, 0, 11)],
                    also_client: true,
                },
            }
        );
    }

    #[test]
    fn only_the_administrator_and_the_api_server_are_masters() {
        let masters: Vec<String> = subjects(&cluster())
            .into_iter()
            .filter(|subject| subject.organization == Some("system:masters"))
            .map(|subject| subject.file)
            .collect();
        assert_eq!(masters, [KUBELET_CLIENT, ADMIN]);
    }

    #[test]
    fn every_subject_can_be_signed() {
        let ca = authority("c1").expect("an authority");
        for subject in subjects(&cluster()) {
            let pair = KeyPair::generate().expect("a key");
            parameters(&subject)
                .expect("valid names")
                .signed_by(&pair, &ca)
                .expect("a certificate");
        }
    }
}
