//! Where a picker sends a request: the list that it answers, and what of it can be used.

use std::net::SocketAddr;

use forebay_wire::value::Kind;
use forebay_wire::{Struct, Value};

use super::mutation::{bytes_of, value_set};
use super::protocol::{HeadAnswer, Violation};

/// The field, and the key of dynamic metadata, that names endpoints.
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The namespace of dynamic metadata that has it.
pub(crate) const NAMESPACE: &str = "envoy.lb";
/// The key there that tells a picker which endpoint answered.
pub(crate) const SERVED: &str = "x-gateway-destination-endpoint-served";
/// The namespace and the key that restrict a picker to some endpoints.
pub(crate) const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
pub(crate) const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// Endpoints of an answer that are looked at; there are never that many tries.
const ENDPOINTS_MAX: usize = 16;

/// What a picker's list comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Destinations {
    /// Where the request may go, best first.
    pub order: Vec<SocketAddr>,
    /// What was named and cannot be used, and why.
    pub dropped: Vec<(String, &'static str)>,
}

/// The endpoints that `answer` names, by a header, by metadata, or equally by both.
///
/// # Errors
/// If header and metadata differ: the protocol gives that no meaning.
pub fn read(
    answer: &HeadAnswer,
    usable: impl Fn(&SocketAddr) -> bool,
) -> Result<Destinations, Violation> {
    let header = value_set(&answer.mutation, DESTINATION);
    let header = header.map(|header| String::from_utf8_lossy(&bytes_of(header)).into_owned());
    let metadata = answer.metadata.as_ref().and_then(of_metadata);
    let list = match (header, metadata) {
        (Some(header), Some(metadata)) if header != metadata => {
            let both = format!("header {}, metadata {}", short(&header), short(&metadata));
            return Err(Violation::Contradiction(both));
        }
        (Some(list), _) | (None, Some(list)) => list,
        (None, None) => String::new(),
    };
    Ok(parse(&list, usable))
}

fn of_metadata(metadata: &Struct) -> Option<String> {
    let namespace = metadata.fields.get(NAMESPACE)?.kind.as_ref()?;
    let Kind::StructValue(fields) = namespace else {
        return None;
    };
    match fields.fields.get(DESTINATION)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(text);
            Some(texts.collect::<Vec<_>>().join(","))
        }
        Kind::NullValue(_) | Kind::NumberValue(_) | Kind::BoolValue(_) | Kind::StructValue(_) => {
            None
        }
    }
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

fn parse(list: &str, usable: impl Fn(&SocketAddr) -> bool) -> Destinations {
    let mut found = Destinations::default();
    let named = list
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    for name in named.take(ENDPOINTS_MAX) {
        match name.parse::<SocketAddr>() {
            Err(_) => found
                .dropped
                .push((short(name), "not an address with a port")),
            Ok(address) if !usable(&address) => found
                .dropped
                .push((short(name), "not a ready endpoint of the pool")),
            Ok(address) if found.order.contains(&address) => {}
            Ok(address) => found.order.push(address),
        }
    }
    found
}

/// The beginning of what somebody else wrote, for a record.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use forebay_wire::ext_proc::{HeaderMutation, HeaderValue, HeaderValueOption};

    use super::*;

    fn answer(header: Option<&str>, metadata: Option<Kind>) -> HeadAnswer {
        let struct_of = |key: &str, kind| Struct {
            fields: [(key.to_owned(), Value { kind: Some(kind) })].into(),
        };
        let option = |list: &str| HeaderValueOption {
            header: Some(HeaderValue {
                key: "X-Gateway-Destination-Endpoint".to_owned(),
                raw_value: Bytes::copy_from_slice(list.as_bytes()),
                ..HeaderValue::default()
            }),
            ..HeaderValueOption::default()
        };
        HeadAnswer {
            mutation: HeaderMutation {
                set_headers: header.map(option).into_iter().collect(),
                ..HeaderMutation::default()
            },
            metadata: metadata
                .map(|kind| struct_of(NAMESPACE, Kind::StructValue(struct_of(DESTINATION, kind)))),
            ..HeadAnswer::default()
        }
    }

    fn string(text: &str) -> Kind {
        Kind::StringValue(text.to_owned())
    }

    /// Endpoints of port 80 are the pool's.
    fn check(header: Option<&str>, metadata: Option<Kind>, expected: &str) {
        let shown = match read(&answer(header, metadata), |address| address.port() == 80) {
            Err(violation) => violation.to_string(),
            Ok(found) => {
                let order = found.order.iter().map(ToString::to_string);
                let dropped = found
                    .dropped
                    .iter()
                    .map(|(name, why)| format!("-{name}: {why}"));
                order.chain(dropped).collect::<Vec<_>>().join(" ")
            }
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn header_and_metadata_each_suffice_and_must_agree() {
        let one = "10.0.0.1:80";
        check(Some(one), None, one);
        check(None, Some(string(one)), one);
        check(Some(one), Some(string(one)), one);
        check(None, None, "");
        check(
            Some(one),
            Some(string("10.0.0.2:80")),
            "it named two destinations: header 10.0.0.1:80, metadata 10.0.0.2:80",
        );
        check(None, Some(Kind::BoolValue(true)), "");
    }

    #[test]
    fn lists_are_ordered_and_cleared_of_what_cannot_be_used() {
        check(
            Some("10.0.0.2:80, [2001:db8::1]:80,10.0.0.1:80,,10.0.0.2:80"),
            None,
            "10.0.0.2:80 [2001:db8::1]:80 10.0.0.1:80",
        );
        check(
            Some("10.0.0.1:81,10.0.0.1,pod-a:80,10.0.0.1:80"),
            None,
            "10.0.0.1:80 -10.0.0.1:81: not a ready endpoint of the pool \
             -10.0.0.1: not an address with a port -pod-a:80: not an address with a port",
        );
        let values = ["10.0.0.3:80", "10.0.0.1:80"].map(|text| Value {
            kind: Some(string(text)),
        });
        let list = forebay_wire::ListValue {
            values: values.into(),
        };
        check(None, Some(Kind::ListValue(list)), "10.0.0.3:80 10.0.0.1:80");
    }

    #[test]
    fn no_more_is_looked_at_than_can_be_tried() {
        let many: Vec<String> = (0..100).map(|n| format!("10.0.1.{n}:80")).collect();
        let found = parse(&many.join(","), |_| true);
        assert_eq!(found.order.len(), ENDPOINTS_MAX);
    }
}
