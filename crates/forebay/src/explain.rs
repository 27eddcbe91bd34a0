//! `forebay explain`: fetches decisions from a running gateway and prints them. What is printed is
//! made by [`forebay_gateway::explain`].

use std::fmt::Write as _;

use forebay_gateway::explain::{Entry, render_text};

use crate::cli::ExplainArgs;
use crate::{Failure, admin_client, print};

/// Explains the requests that `args` ask for.
pub(crate) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let mut path = format!("/debug/decisions?limit={}", args.last);
    for (name, value) in [("id", &args.id), ("pool", &args.pool)] {
        if let Some(value) = value {
            let _infallible = write!(path, "&{name}={}", percent_encode(value));
        }
    }
    let answer = admin_client::get(args.admin, &path)?;
    if args.json {
        return print(&format!("{answer:#}\n"));
    }
    let entries: Vec<Entry> = serde_json::from_value(answer).map_err(|error| {
        let versions = "the gateway is of another version than this command";
        Failure::world(format!(
            "{} gives decisions that cannot be read ({error}); {versions}",
            args.admin
        ))
    })?;
    if entries.is_empty() {
        return Err(Failure::world(nothing(args)));
    }
    let texts: Vec<String> = entries.iter().map(render_text).collect();
    print(&texts.join("\n"))
}

fn nothing(args: &ExplainArgs) -> String {
    match (&args.id, &args.pool) {
        (Some(id), _) => {
            format!("no request {id} among the last ones; the gateway keeps a thousand")
        }
        (None, Some(pool)) => {
            format!("no request of pool {pool} yet; forebay status lists the pools")
        }
        (None, None) => "the gateway has served no request yet".to_owned(),
    }
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_for_a_query() {
        assert_eq!(percent_encode("default/a b&c"), "default%2Fa%20b%26c");
    }
}
