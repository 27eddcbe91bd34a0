//! `forebay node lint`: every opaque parameter of our driver in a file, held against what a node would
//! accept, before a node sees it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use forebay_cluster::manifest::{self, FILE_BYTES_MAX};
use forebay_fabric::config::{self, NetworkConfig};
use serde_json::Value;

use crate::cli::node::LintArgs;
use crate::{Failure, print};

/// Checks the files of `args`.
pub(crate) fn run(args: &LintArgs) -> Result<(), Failure> {
    let (mut text, mut seen, mut wrong) = (String::new(), 0, 0);
    for path in &args.files {
        let name = path.display().to_string();
        let content = content(path).map_err(|e| Failure::usage(format!("{name}: {e}")))?;
        let documents = manifest::documents(&name, &content)
            .map_err(|problem| Failure::usage(problem.to_string()))?;
        for (line, document) in &documents {
            for found in parameters(document, &args.driver) {
                seen += 1;
                let Err(errors) = NetworkConfig::parse(&found.value.to_string()) else {
                    continue;
                };
                wrong += errors.len();
                for error in errors {
                    let path = joined(&found.path, &error.path);
                    text += &format!(
                        "error: {} ({name}:{line}) {path}\n  {}\n",
                        found.object, error.message
                    );
                }
            }
        }
    }
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    text += &format!(
        "{seen} configuration{} of {}, {wrong} error{}\n",
        plural(seen),
        args.driver,
        plural(wrong)
    );
    print(&text)?;
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::world("")),
    }
}

fn content(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path)?),
    };
    source.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("longer than {FILE_BYTES_MAX} bytes; split it");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(text)
}

/// Parameters of our driver in an object.
struct Found<'a> {
    /// `ResourceClaim default/nics`.
    object: String,
    /// The field that holds them; empty where the object is the parameters.
    path: String,
    value: &'a Value,
}

/// Where each kind that may hold parameters has the list of them.
const PLACES: [(&str, &str); 3] = [
    ("ResourceClaim", "/spec/devices/config"),
    ("ResourceClaimTemplate", "/spec/spec/devices/config"),
    ("DeviceClass", "/spec/config"),
];

fn parameters<'a>(document: &'a Value, driver: &str) -> Vec<Found<'a>> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let object = match (text("/metadata/namespace"), text("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => config::KIND.to_owned(),
    };
    // Dranet's form has no kind; that of others is none of our business.
    if kind == config::KIND || (kind.is_empty() && document.is_object()) {
        let path = String::new();
        return vec![Found {
            object,
            path,
            value: document,
        }];
    }
    let resource = text("/apiVersion").is_some_and(|v| v.starts_with("resource.k8s.io/"));
    let place = PLACES.iter().find(|(known, _)| resource && *known == kind);
    let Some((_, pointer)) = place else {
        return Vec::new();
    };
    let list = document.pointer(pointer).and_then(Value::as_array);
    let of_driver = |(index, entry): (usize, &'a Value)| {
        let opaque = entry.get("opaque")?;
        (opaque.get("driver")?.as_str()? == driver).then_some(())?;
        Some(Found {
            object: object.clone(),
            path: format!(
                "{}[{index}].opaque.parameters",
                pointer[1..].replace('/', ".")
            ),
            value: opaque.get("parameters").unwrap_or(&Value::Null),
        })
    };
    let entries = list.into_iter().flatten().enumerate();
    entries.filter_map(of_driver).collect()
}

fn joined(outer: &str, inner: &str) -> String {
    match (outer.is_empty(), inner.is_empty()) {
        (false, false) => format!("{outer}.{inner}"),
        _ => format!("{outer}{inner}"),
    }
}
