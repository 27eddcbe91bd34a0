//! Which pool a request is for: the only one, the one that the proxy's route names, or the one whose
//! Service is asked.

use std::cell::RefCell;

use forebay_model::ObjectName;
use http::{HeaderMap, StatusCode, Uri};
use rustc_hash::FxHashMap;

use super::head;
use super::protocol::Head;
use crate::respond::Refusal;
use crate::view::View;

/// The field of a call's own head (gRPC's metadata) that names the pool.
const POOL_FIELD: &str = "x-forebay-pool";

/// How pools are told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Pools {
    /// The only one, if calls are for one.
    pub(super) only: Option<ObjectName>,
    /// Where a pool that is named without its namespace is.
    pub(super) namespace: String,
    by_service: RefCell<ByService>,
}

/// Pools by the Service that their `endpointPickerRef` names, in one configuration.
#[derive(Clone, Debug, Default)]
struct ByService {
    generation: Option<u64>,
    /// `None` where several pools name it.
    pools: FxHashMap<ObjectName, Option<ObjectName>>,
}

/// What the head of a call says of its pool.
#[derive(Clone, Debug, Default)]
pub(super) struct CallNames {
    pool: Option<String>,
    host: Option<ObjectName>,
}

impl CallNames {
    pub(super) fn of(uri: &Uri, fields: &HeaderMap) -> Self {
        let pool = fields.get(POOL_FIELD);
        Self {
            pool: pool.and_then(|v| v.to_str().ok()).map(str::to_owned),
            host: uri.host().and_then(head::object_of_host),
        }
    }
}

impl Pools {
    pub(super) fn new(only: Option<ObjectName>, namespace: String) -> Self {
        Self {
            only,
            namespace,
            by_service: RefCell::default(),
        }
    }

    /// The pool of a request, of those that `live` has.
    pub(super) fn of<'l>(
        &self,
        live: &'l View,
        call: &CallNames,
        head: &Head,
    ) -> Result<&'l ObjectName, Refusal> {
        let pools = &live.snapshot.pools;
        let known = |name: &ObjectName| pools.get_key_value(name).map(|(own, _)| own);
        if let Some(only) = &self.only {
            return known(only).ok_or_else(|| gone(only));
        }
        let named = head::named_pool(head).or(call.pool.as_deref());
        if let Some(named) = named {
            let name = match named.split_once('/') {
                Some((namespace, name)) => ObjectName::new(namespace, name),
                None => ObjectName::new(&self.namespace, named),
            };
            return known(&name).ok_or_else(|| gone(&name));
        }
        if pools.len() == 1
            && let Some(only) = pools.keys().next()
        {
            return Ok(only);
        }
        let authority = head::Noted::of(head).authority;
        let hosts = [head::object_of_host(authority), call.host.clone()];
        for host in hosts.iter().flatten() {
            if let Some(found) = known(host) {
                return Ok(found);
            }
            if let Some(name) = self.of_service(live, host)
                && let Some(found) = known(&name)
            {
                return Ok(found);
            }
        }
        Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "pool_unknown",
            format!(
                "none of the {} pools is named: say it in the route's metadata (forebay: pool), in the \
                 call's metadata ({POOL_FIELD}), or by the authority (NAME.NAMESPACE)",
                pools.len()
            ),
        ))
    }

    fn of_service(&self, live: &View, service: &ObjectName) -> Option<ObjectName> {
        let mut known = self.by_service.borrow_mut();
        if known.generation != Some(live.snapshot.generation) {
            let mut pools = FxHashMap::default();
            for (name, pool) in &live.snapshot.pools {
                let Some(picker) = &pool.external else {
                    continue;
                };
                pools
                    .entry(picker.service.clone())
                    .and_modify(|found| *found = None)
                    .or_insert_with(|| Some(name.clone()));
            }
            *known = ByService {
                generation: Some(live.snapshot.generation),
                pools,
            };
        }
        known.pools.get(service)?.clone()
    }
}

/// For a pool that is named and not there.
pub(super) fn gone(name: &ObjectName) -> Refusal {
    let message = format!("InferencePool {name} is not in the configuration in force");
    Refusal {
        retry_after_s: Some(1),
        dropped: Some("rejected-no-endpoints"),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "pool_not_found", message)
    }
}
