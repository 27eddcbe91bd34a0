//! The text of one file to objects: YAML of several documents (JSON is YAML too), `List` objects
//! taken apart. One broken document makes the whole file unreadable, since nobody knows where the
//! next one starts; a refused object is a matter of that object alone.

use forebay_api::{Kind, Object};
use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use serde_json::Value;
use serde_saphyr::{Options, Spanned};

/// Bytes of one file; a larger one is not read. A ConfigMap holds 1 MiB, and 8 MiB of objects are
/// more than one file should be.
pub const FILE_BYTES_MAX: u64 = 8 << 20;
/// Documents of one file; a file with more is refused.
pub const DOCUMENTS_MAX: usize = 10_000;
/// Objects in one `List`; the rest is refused.
pub const LIST_ITEMS_MAX: usize = 10_000;
/// YAML nodes of one file, aliases followed; a file with more is refused.
const NODES_MAX: usize = 2_000_000;
/// Aliases of one file, and nodes that they may stand for: enough to share a few labels, too few
/// for a bomb.
const ALIASES_MAX: usize = 1_000;
const ALIAS_NODES_MAX: usize = 100_000;

/// What one file holds.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Objects that were accepted, in the order written, with the line on which they start.
    pub objects: Vec<(u64, Object)>,
    /// Objects that were refused, as far as they can be named.
    pub refused: Vec<(Kind, ObjectName)>,
    /// Everything that is wrong or has no effect; objects are named with file and line.
    pub problems: Vec<Problem>,
}

/// Reads the text of `file`.
///
/// # Errors
/// The problem if the text is not YAML or is over a bound; nothing of it counts then.
pub fn read(file: &str, text: &str) -> Result<Manifest, Problem> {
    let mut manifest = Manifest::default();
    for (line, value) in spanned(file, text)? {
        match list_items(value) {
            Ok(items) => {
                if items.len() > LIST_ITEMS_MAX {
                    let message =
                        format!("only the first {LIST_ITEMS_MAX} items are read; split the list");
                    manifest
                        .problems
                        .push(problem(&place(file, line), "TooLarge", message));
                }
                for item in items.into_iter().take(LIST_ITEMS_MAX) {
                    manifest.add(file, line, item);
                }
            }
            Err(single) => manifest.add(file, line, single),
        }
    }
    Ok(manifest)
}

/// The objects in the text of `file` as they stand, of whatever kind, `List`s taken apart, each with the
/// line on which its document starts.
///
/// # Errors
/// The problem if the text is not YAML or is over a bound.
pub fn documents(file: &str, text: &str) -> Result<Vec<(u64, Value)>, Problem> {
    let mut objects = Vec::new();
    for (line, value) in spanned(file, text)? {
        let items = list_items(value).unwrap_or_else(|single| vec![single]);
        objects.extend(items.into_iter().map(|item| (line, item)));
    }
    Ok(objects)
}

fn spanned(file: &str, text: &str) -> Result<impl Iterator<Item = (u64, Value)>, Problem> {
    let documents: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|e| broken(file, &e))?;
    Ok(documents
        .into_iter()
        .map(|document| (document.referenced.line(), document.value)))
}

impl Manifest {
    fn add(&mut self, file: &str, line: u64, value: Value) {
        let key = Object::key_of(&value);
        let problems = match Object::parse(value) {
            Ok(parsed) => {
                self.objects.push((line, parsed.object));
                parsed.warnings
            }
            Err(problems) => {
                self.refused.extend(key);
                problems
            }
        };
        self.problems
            .extend(problems.into_iter().map(|problem| Problem {
                object: format!("{} ({})", problem.object, place(file, line)),
                ..problem
            }));
    }
}

/// The items of a `List`, or the value itself if it is none.
fn list_items(mut value: Value) -> Result<Vec<Value>, Value> {
    let text = |field| value.get(field).and_then(Value::as_str);
    if (text("apiVersion"), text("kind")) != (Some("v1"), Some("List")) {
        return Err(value);
    }
    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_aliases: ALIASES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_NODES_MAX,
        },
        // `n` is a name, not a truth value.
        strict_booleans: true,
        with_snippet: false,
    }
}

fn broken(file: &str, error: &serde_saphyr::Error) -> Problem {
    let at = error.location().map(|at| (at.line(), at.column()));
    let place = match at {
        Some((line, column)) if line > 0 => format!("{file}:{line}:{column}"),
        _ => file.to_owned(),
    };
    // The first line says it, and its place is in ours already.
    let message = error.to_string();
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or_default();
    problem(
        &place,
        "Unreadable",
        format!("{message}; the objects of this file stay as they were"),
    )
}

/// `file:line`.
pub(crate) fn place(file: &str, line: u64) -> String {
    format!("{file}:{line}")
}

/// A problem of a file as a whole.
pub(crate) fn problem(object: &str, reason: &'static str, message: String) -> Problem {
    Problem {
        object: object.to_owned(),
        field: String::new(),
        reason,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `text` and expects its objects and problems, one a line.
    fn check(text: &str, want: &str) {
        let got = match read("f.yaml", text) {
            Err(problem) => problem.to_string(),
            Ok(manifest) => {
                let objects = manifest.objects.iter();
                let objects = objects.map(|(line, o)| format!("{line} {} {}", o.kind(), o.name()));
                let refused = manifest
                    .refused
                    .iter()
                    .map(|(kind, name)| format!("refused {kind} {name}"));
                let problems = manifest.problems.iter().map(ToString::to_string);
                objects
                    .chain(refused)
                    .chain(problems)
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        assert_eq!(got, want.trim_start_matches('\n').trim_end());
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

    #[test]
    fn documents_and_lists_are_taken_apart() {
        check(
            &format!(
                "{POD}---\n# nothing\n---\n{}",
                POD.replace("a}", "b, namespace: n}")
            ),
            "1 Pod default/a\n7 Pod n/b",
        );
        check(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n",
            "1 Pod default/a\n1 Namespace default/b",
        );
        check(
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#,
            "1 Pod default/a",
        );
        check("", "");
    }

    #[test]
    fn a_broken_document_is_named_by_line_and_column() {
        check(
            &format!("{POD}---\nkind: [Pod\nname: x\n"),
            "f.yaml:6:5: Unreadable: illegal placement of ':' indicator; the objects of this file stay as they were",
        );
    }

    #[test]
    fn a_refused_object_is_named_and_the_others_count() {
        let pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\nspec: {selector: {matchLabels: {}}, targetPorts: [{number: 1}]}\n";
        check(
            &format!("{POD}---\n{pool}"),
            "
1 Pod default/a
refused InferencePool default/p
InferencePool default/p (f.yaml:5) spec.selector.matchLabels: InvalidValue: has 0 items, 1 to 64 are allowed",
        );
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..8 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{refs}]\n");
        }
        let problem = read("f.yaml", &text).unwrap_err();
        assert_eq!(problem.reason, "Unreadable", "{problem}");
    }
}
