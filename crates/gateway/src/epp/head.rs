//! The head of a request as a proxy shows it: what is noted of it, and which pool it is for.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_decide::Slo;
use forebay_model::{ObjectName, PickerConfig};
use forebay_wire::ext_proc::{HeaderValue, Metadata};
use forebay_wire::value::Kind;
use forebay_wire::{Struct, Value};
use smallvec::SmallVec;

use super::protocol::Head;
use crate::external::destination::{NAMESPACE, SERVED, SUBSET, SUBSET_NAMESPACE};
use crate::slo;

/// The namespace and the key by which a route of the proxy names the pool.
const OWN_NAMESPACE: &str = "forebay";
const POOL: &str = "pool";
/// Endpoints of a subset that are looked at; there are no pools of so many.
const SUBSET_MAX: usize = 10_000;
/// The attribute that tells which endpoint answered, where the proxy is asked for it.
const UPSTREAM_ADDRESS: &str = "upstream.address";

/// What a decision wants to know of the fields. Found in one pass.
#[derive(Debug, Default)]
pub(super) struct Noted<'a> {
    pub(super) method: &'a str,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) authority: &'a str,
    pub(super) content_type: Option<&'a str>,
    pub(super) id: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) forwarded_for: Option<&'a str>,
    pub(super) test_selection: Option<&'a str>,
    pub(super) accepts_encodings: bool,
}

/// The field by which the conformance suite of the Inference Extension says what is to be picked.
pub(super) const TEST_SELECTION: &str = "test-epp-endpoint-selection";

impl<'a> Noted<'a> {
    pub(super) fn of(head: &'a Head) -> Self {
        let mut noted = Self::default();
        for field in fields(head) {
            let text = || str::from_utf8(value(field)).ok();
            match field.key.as_str() {
                ":method" => noted.method = text().unwrap_or_default(),
                ":path" => noted.target = text().unwrap_or_default(),
                ":authority" => noted.authority = text().unwrap_or_default(),
                "content-type" => noted.content_type = text(),
                "x-request-id" => noted.id = text(),
                "traceparent" => noted.traceparent = text(),
                "x-forwarded-for" => noted.forwarded_for = text(),
                "accept-encoding" => noted.accepts_encodings = true,
                TEST_SELECTION => noted.test_selection = text(),
                _ => {}
            }
        }
        noted
    }

    /// The path without its query.
    pub(super) fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The client, as the proxy forwards its address.
    pub(super) fn client(&self) -> Option<SocketAddr> {
        // The last one is what this proxy saw; those before it are anybody's word.
        let last = self.forwarded_for?.rsplit(',').next()?.trim();
        Some(SocketAddr::new(last.parse().ok()?, 0))
    }
}

/// The fields of a head.
pub(super) fn fields(head: &Head) -> impl Iterator<Item = &HeaderValue> {
    head.headers.headers.iter().flat_map(|map| &map.headers)
}

/// A field's value; proxies send it as bytes, old ones as text.
pub(super) fn value(field: &HeaderValue) -> &[u8] {
    match field.raw_value.is_empty() {
        true => field.value.as_bytes(),
        false => &field.raw_value,
    }
}

/// What latency the request asks for.
pub(super) fn slo(head: &Head) -> Slo {
    slo::read(|name| {
        let field = fields(head).find(|field| field.key.eq_ignore_ascii_case(name))?;
        str::from_utf8(value(field)).ok()
    })
}

/// The fields that a pool's policy wants to be told, with their values.
pub(super) fn told<'a>(
    head: &'a Head,
    picker: &'a PickerConfig,
) -> SmallVec<[(&'a str, &'a str); 2]> {
    let found = |name: &'a str| {
        let field = fields(head).find(|field| field.key.eq_ignore_ascii_case(name))?;
        Some((name, str::from_utf8(value(field)).ok()?))
    };
    let names = forebay_decide::reads_fields(picker).into_iter();
    names.filter_map(found).collect()
}

/// The pool that the proxy's route names in its metadata.
pub(super) fn named_pool(head: &Head) -> Option<&str> {
    text(metadata(head.metadata.as_ref(), OWN_NAMESPACE, POOL)?)
}

/// The endpoints that the choice is restricted to, if it is: as a list, or as a text with commas. What
/// is no address is left out.
pub(super) fn subset(head: &Head) -> Option<Vec<SocketAddr>> {
    let hint = metadata(head.metadata.as_ref(), SUBSET_NAMESPACE, SUBSET)?;
    Some(match hint.kind.as_ref()? {
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(text);
            texts.flat_map(addresses).take(SUBSET_MAX).collect()
        }
        Kind::StringValue(text) => addresses(text).take(SUBSET_MAX).collect(),
        Kind::NullValue(_) | Kind::NumberValue(_) | Kind::BoolValue(_) | Kind::StructValue(_) => {
            return None;
        }
    })
}

/// Which endpoint answered, as the head of the response tells.
pub(super) fn served(head: &Head) -> Option<SocketAddr> {
    let told = metadata(head.metadata.as_ref(), NAMESPACE, SERVED).and_then(text);
    let told = told.or_else(|| {
        let attributes = head.attributes.values();
        attributes
            .filter_map(|fields| fields.fields.get(UPSTREAM_ADDRESS))
            .find_map(text)
    });
    addresses(told?).last()
}

/// The status of a response.
pub(super) fn status(head: &Head) -> u16 {
    let status = fields(head).find(|field| field.key == ":status");
    let status = status.and_then(|field| str::from_utf8(value(field)).ok());
    status.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The content type of a response.
pub(super) fn content_type(head: &Head) -> Option<&str> {
    let field = fields(head).find(|field| field.key == "content-type")?;
    str::from_utf8(value(field)).ok()
}

fn metadata<'a>(metadata: Option<&'a Metadata>, namespace: &str, key: &str) -> Option<&'a Value> {
    let Struct { fields } = metadata?.filter_metadata.get(namespace)?;
    fields.get(key)
}

fn text(value: &Value) -> Option<&str> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}

fn addresses(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.split(',').filter_map(|part| part.trim().parse().ok())
}

/// The object that a host within a cluster names: `name.namespace`, `name.namespace.svc...`.
pub(super) fn object_of_host(authority: &str) -> Option<ObjectName> {
    let host = authority.split(':').next()?;
    let mut labels = host.split('.');
    let (name, namespace) = (labels.next()?, labels.next()?);
    let proper = |label: &str| !label.is_empty() && !label.bytes().all(|b| b.is_ascii_digit());
    (proper(name) && proper(namespace)).then(|| ObjectName {
        namespace: Arc::from(namespace),
        name: Arc::from(name),
    })
}
