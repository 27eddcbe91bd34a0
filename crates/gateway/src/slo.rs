//! What latency a request asks for, from its fields, for [`forebay_decide::Ask`].
//!
//! The fields go on to the endpoint: a server may want to know them too.

use forebay_decide::Slo;
use http::HeaderMap;

/// What the fields of `headers` ask for.
pub(crate) fn of(headers: &HeaderMap) -> Slo {
    read(|name| headers.get(name)?.to_str().ok())
}

/// Reads the fields by which requests name their SLO: llm-d's, and the ones that it had before. What
/// is no number of milliseconds above zero counts as absent.
pub(crate) fn read<'h>(field: impl Fn(&str) -> Option<&'h str>) -> Slo {
    let ms = |names: [&str; 2]| Slo::parse_ms(names.into_iter().find_map(&field)?);
    Slo {
        ttft_ms: ms(["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"]),
        tpot_ms: ms(["x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_slo_is_what_its_fields_say_and_nonsense_is_none() {
        let check = |fields: &[(&'static str, &'static str)], expected| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            let slo = of(&headers);
            assert_eq!((slo.ttft_ms, slo.tpot_ms), expected, "{fields:?}");
        };
        check(&[], (None, None));
        check(
            &[("x-llm-d-slo-ttft-ms", "250"), ("x-slo-tpot-ms", "12.5")],
            (Some(250.0), Some(12.5)),
        );
        check(
            &[
                ("x-llm-d-slo-ttft-ms", "fast"),
                ("x-llm-d-slo-tpot-ms", "-1"),
            ],
            (None, None),
        );
    }
}
