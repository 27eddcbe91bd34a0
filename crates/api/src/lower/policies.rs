//! BackendTLSPolicies: which one counts for a port of a Service, what it asks for, and what each
//! says of itself to the Gateways whose routes lead to its Services.
//!
//! Of several for one target the oldest counts. One for a port by name goes before one for the
//! whole Service. A policy that does not hold still counts: its Service gets no requests, since
//! without it they would go in cleartext.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::{BackendTls, SubjectName, Trust};

use super::Notes;
use super::references::{Look, kind_of};
use super::trust::Authorities;
use crate::kinds::policy::{BackendTlsPolicy, SubjectKind, TargetRef};
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus, ParentStatus};

/// Gateways in the status of one policy, by the CRD. Of more, those first by name are written.
const ANCESTORS_MAX: usize = 16;

/// Which Gateways lead to which ports of a Service.
pub(super) type ServiceUses = BTreeMap<ObjectName, BTreeMap<ObjectName, BTreeSet<u16>>>;

/// Every policy.
pub(super) struct Policies<'a> {
    /// In order of precedence.
    all: Vec<Policy<'a>>,
    /// The policy that counts for a Service, or for its port of a name.
    winners: HashMap<(ObjectName, Option<&'a str>), usize>,
}

struct Policy<'a> {
    name: &'a ObjectName,
    object: &'a BackendTlsPolicy,
    /// What it asks for, or why that cannot be had.
    tls: Result<Arc<BackendTls>, Fault>,
    unresolved: Option<Fault>,
}

impl<'a> Policies<'a> {
    pub(super) fn new(look: &Look<'a>, notes: &mut Notes) -> Self {
        let mut objects: Vec<_> = look.objects.policies.iter().collect();
        objects.sort_by(|(_, a), (_, b)| a.metadata.precedence(&b.metadata));
        let mut policies = Self {
            all: Vec::with_capacity(objects.len()),
            winners: HashMap::new(),
        };
        for (name, object) in objects {
            let at = policies.all.len();
            for (i, target) in object.spec.target_refs.iter().enumerate() {
                match service_of(name, target) {
                    Some(service) => {
                        let key = (service, target.section_name.as_deref());
                        policies.winners.entry(key).or_insert(at);
                    }
                    None => {
                        let message = format!("{} is no target; only Services are", target.kind);
                        let fault = Fault::new(reason::UNSUPPORTED_VALUE, message);
                        let field = format!("spec.targetRefs[{i}]");
                        notes.add(Kind::BackendTlsPolicy, name, field, &fault);
                    }
                }
            }
            let (tls, unresolved) = lower(look, name, object);
            if let Some(fault) = tls.as_ref().err().or(unresolved.as_ref()) {
                notes.add(Kind::BackendTlsPolicy, name, "spec.validation", fault);
            }
            policies.all.push(Policy {
                name,
                object,
                tls,
                unresolved,
            });
        }
        policies
    }

    /// What is asked for a port of a Service, by the name of the port; an error if a policy counts
    /// that does not hold.
    pub(super) fn of(
        &self,
        service: &ObjectName,
        port: Option<&str>,
    ) -> Option<Result<Arc<BackendTls>, Fault>> {
        let winner = |section| self.winners.get(&(service.clone(), section));
        let at = port.and_then(|name| winner(Some(name)));
        let policy = &self.all[*at.or_else(|| winner(None))?];
        Some(policy.tls.clone().map_err(|fault| {
            let message = format!("BackendTLSPolicy {}: {}", policy.name, fault.message);
            Fault::new(reason::INVALID_BACKEND_TLS, message)
        }))
    }

    /// The status of every policy, towards each Gateway that leads to what it is for.
    pub(super) fn statuses(
        &self,
        look: &Look<'_>,
        uses: &ServiceUses,
        notes: &mut Notes,
    ) -> Vec<ObjectStatus> {
        let all = self.all.iter().enumerate();
        all.map(|(at, policy)| self.status(at, policy, look, uses, notes))
            .collect()
    }

    fn status(
        &self,
        at: usize,
        policy: &Policy<'_>,
        look: &Look<'_>,
        uses: &ServiceUses,
        notes: &mut Notes,
    ) -> ObjectStatus {
        let mut gateways: BTreeMap<&ObjectName, Vec<Result<(), Fault>>> = BTreeMap::new();
        for target in &policy.object.spec.target_refs {
            let Some(service) = service_of(policy.name, target) else {
                continue;
            };
            for (gateway, ports) in uses.get(&service).into_iter().flatten() {
                if let Some(outcome) = self.outcome(at, look, &service, target, ports) {
                    gateways.entry(gateway).or_default().push(outcome);
                }
            }
        }
        let name = policy.name;
        if gateways.len() > ANCESTORS_MAX {
            let message = format!("only {ANCESTORS_MAX} Gateways have room in its status");
            let fault = Fault::new(reason::TOO_MANY_PARENTS, message);
            notes.add(Kind::BackendTlsPolicy, name, "", &fault);
        }
        let gateways = gateways.into_iter().take(ANCESTORS_MAX);
        let ancestors = gateways.map(|(gateway, outcomes)| {
            // What is lost for one target of several is still in force for the others.
            let lost = outcomes.iter().all(Result::is_err);
            let lost = outcomes.into_iter().find_map(Result::err).filter(|_| lost);
            let refused = lost.as_ref().or_else(|| policy.tls.as_ref().err());
            let conditions = vec![
                Condition::of(reason::ACCEPTED, refused),
                Condition::of(reason::RESOLVED_REFS, policy.unresolved.as_ref()),
            ];
            ParentStatus::of_gateway(gateway, conditions)
        });
        ObjectStatus {
            parents: ancestors.collect(),
            ..ObjectStatus::new(
                Kind::BackendTlsPolicy,
                name,
                policy.object.metadata.generation,
            )
        }
    }

    /// How the policy at `at` fares with one of its targets where a Gateway leads to `ports` of it;
    /// nothing if none of these is meant.
    fn outcome(
        &self,
        at: usize,
        look: &Look<'_>,
        service: &ObjectName,
        target: &TargetRef,
        ports: &BTreeSet<u16>,
    ) -> Option<Result<(), Fault>> {
        let section = target.section_name.as_deref();
        let not_found = |what: String| Some(Err(Fault::new(reason::TARGET_NOT_FOUND, what)));
        let Some(object) = look.service(service) else {
            return not_found(format!("Service {service} does not exist"));
        };
        if let Some(section) = section {
            let named = |p: &&crate::kinds::core::ServicePort| p.name.as_deref() == Some(section);
            match object.spec.ports.iter().find(named) {
                None => return not_found(format!("Service {service} has no port {section}")),
                Some(port) if !ports.contains(&port.port) => return None,
                Some(_) => {}
            }
        }
        let winner = self.winners.get(&(service.clone(), section)).copied();
        let winner = winner.filter(|winner| *winner != at);
        Some(winner.map_or(Ok(()), |winner| {
            let message = format!(
                "BackendTLSPolicy {} is older and for the same target",
                self.all[winner].name
            );
            Err(Fault::new(reason::CONFLICTED, message))
        }))
    }
}

/// The Service that a target names.
fn service_of(policy: &ObjectName, target: &TargetRef) -> Option<ObjectName> {
    let kind = (target.group.as_str(), target.kind.as_str());
    (kind == ("", "Service")).then(|| ObjectName::new(&policy.namespace, &target.name))
}

/// What the policy asks for, and a reference in it that does not hold.
fn lower(
    look: &Look<'_>,
    name: &ObjectName,
    policy: &BackendTlsPolicy,
) -> (Result<Arc<BackendTls>, Fault>, Option<Fault>) {
    let validation = &policy.spec.validation;
    let (trust, unresolved) = match validation.well_known.as_str() {
        "System" => (Ok(Trust::System), None),
        "" => {
            let refs = validation.ca_certificate_refs.iter().map(|to| {
                if (to.group.as_str(), to.kind.as_str()) != ("", "ConfigMap") {
                    let kind = kind_of(&to.group, &to.kind);
                    let message = format!("{kind} holds no authorities; use a ConfigMap");
                    return Err(Fault::new(reason::INVALID_KIND, message));
                }
                let to = ObjectName::new(&name.namespace, &to.name);
                look.authorities(&to, reason::INVALID_CA_CERTIFICATE_REF)
            });
            let found = Authorities::join(refs);
            let trust = found.bundle.map(Trust::Bundle).ok_or_else(|| {
                let why = found.fault.as_ref().map_or("", |fault| &fault.message);
                let message = format!("no certificate of an authority can be had: {why}");
                Fault::new(reason::NO_VALID_CA_CERTIFICATE, message)
            });
            (trust, found.fault)
        }
        other => {
            let message = format!("wellKnownCACertificates {other} are not known; use System");
            (Err(Fault::new(reason::INVALID, message)), None)
        }
    };
    let names = validation
        .subject_alt_names
        .iter()
        .map(|own| match own.kind {
            SubjectKind::Hostname => {
                SubjectName::Hostname(own.hostname.to_ascii_lowercase().into())
            }
            SubjectKind::Uri => SubjectName::Uri(own.uri.as_str().into()),
        });
    let tls = trust.map(|trust| {
        Arc::new(BackendTls {
            hostname: validation.hostname.as_str().into(),
            trust,
            names: names.collect(),
            client: None,
        })
    });
    (tls, unresolved)
}
