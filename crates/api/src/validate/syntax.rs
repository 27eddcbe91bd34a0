//! The syntax of names, hosts, headers and paths.

/// RFC 1123 label: `a-z`, `0-9`, `-` inside; at most 63.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| inner(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Labels joined by dots; at most 253.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    let label = |part: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A host name without wildcard that is not an IP address.
pub(crate) fn is_precise_host(text: &str) -> bool {
    is_dns_subdomain(text) && text.parse::<std::net::Ipv4Addr>().is_err()
}

/// A host name, or `*.` and a host name.
pub(crate) fn is_host(text: &str) -> bool {
    is_precise_host(text.strip_prefix("*.").unwrap_or(text))
}

pub(crate) const HOST_HELP: &str = "write a host name in lower case, such as chat.example.com or *.example.com; no port, no address";

/// An HTTP token (RFC 9110), as header names are; at most 256.
pub(crate) fn is_token(text: &str) -> bool {
    let symbol = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || symbol(b))
}

/// `^[A-Za-z_][A-Za-z_0-9]*$`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let first = text.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The name of a gRPC service: identifiers joined by dots, perhaps with one before them.
pub(crate) fn is_grpc_service(text: &str) -> bool {
    let text = text.strip_prefix('.').unwrap_or(text);
    text.len() <= 1024 && text.split('.').all(is_identifier)
}

/// A header value without control characters; at most 4096.
pub(crate) fn is_header_value(text: &str) -> bool {
    text.len() <= 4096 && !text.bytes().any(|b| b.is_ascii_control() && b != b'\t')
}

/// What is wrong with an absolute path to match or to replace with.
pub(crate) fn path_fault(text: &str) -> Option<&'static str> {
    const FORBIDDEN: [&str; 7] = ["//", "/./", "/../", "%2f", "%2F", "#", "?"];
    if !text.starts_with('/') {
        return Some("a path starts with /");
    }
    if text.len() > 1024 {
        return Some("a path has at most 1024 characters");
    }
    let forbidden = FORBIDDEN.iter().any(|part| text.contains(part));
    if forbidden || text.ends_with("/.") || text.ends_with("/..") {
        return Some("a path has no //, /./, /../, %2F, # or ?");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&b);
    (!text.bytes().all(plain)).then_some("write other characters as %xx")
}

/// A label key: an optional DNS prefix and `/`, then a name.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// A label value: empty, or letters, digits, `-`, `_`, `.`, not at the ends; at most 63.
pub(crate) fn is_label_value(text: &str) -> bool {
    let edge = |b: &u8| b.is_ascii_alphanumeric();
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_none_or(edge)
        && bytes.last().is_none_or(edge)
        && bytes.iter().all(|b| edge(b) || b"-_.".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_in_lower_case_with_a_wildcard_label_at_most() {
        for good in ["a", "a.b", "*.a.b", "a-1.b", "1a.b"] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "", "*", "*a.b", "a.*.b", "A.b", "a..b", "-a", "a_b", "1.2.3.4", "a:80",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_already_normal() {
        for good in ["/", "/a/b/", "/a%20b", "/a:b@c"] {
            assert_eq!(path_fault(good), None, "{good}");
        }
        for bad in [
            "", "a", "//", "/a//b", "/a/../b", "/a/.", "/a%2Fb", "/a?b", "/a#b", "/ä", "/a b",
        ] {
            assert!(path_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn labels_and_tokens_keep_to_their_alphabets() {
        assert!(is_label_key("llm-d.ai/role") && is_label_key("app"));
        assert!(!is_label_key("a/b/c") && !is_label_key("/a") && !is_label_key(""));
        assert!(is_label_value("") && is_label_value("A_b.1"));
        assert!(!is_label_value("-a") && !is_label_value(&"a".repeat(64)));
        assert!(is_token("X-Model") && !is_token("a b") && !is_token("a:b") && !is_token(""));
        assert!(is_header_value("a b\tc") && !is_header_value("a\nb"));
    }
}
