//! `forebay epp check`: reads the configuration of an endpoint picker and tells what each of its plugins
//! becomes. Serves nothing and opens no port.

use std::io::Read as _;
use std::path::Path;

use forebay_api::picker_config::{self, Loaded};
use forebay_model::snapshot::Problem;
use serde_json::{Value, json};

use crate::cli::epp::{EppCheckArgs, Output};
use crate::table::{render, row};
use crate::{Failure, print};

/// Checks the configuration of `args`.
pub(crate) fn run(args: &EppCheckArgs) -> Result<(), Failure> {
    let text = text_of(&args.config)?;
    let read = picker_config::read(&text);
    print(&match args.output {
        Output::Text => match &read {
            Ok(loaded) => described(loaded),
            Err(problems) => refused(problems),
        },
        Output::Json => format!("{:#}\n", to_json(&read)),
    })?;
    read.map(|_loaded| ()).map_err(|_said| Failure::world(""))
}

fn text_of(path: &Path) -> Result<String, Failure> {
    // One byte more than is read, so that a longer one is refused and not cut.
    let limit = picker_config::TEXT_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    match read {
        Ok(_bytes) => Ok(text),
        Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
    }
}

fn described(loaded: &Loaded) -> String {
    let mut rows = vec![row(["PLUGIN", "TYPE", "BECOMES"])];
    rows.extend(loaded.plugins.iter().map(|plugin| {
        let kind = match plugin.written {
            true => plugin.kind.clone(),
            false => format!("{} (default)", plugin.kind),
        };
        vec![plugin.name.clone(), kind, plugin.became.clone()]
    }));
    let mut text = render(&rows, 0, usize::MAX);
    for note in &loaded.notes {
        text += &line("note", note);
    }
    text + &format!("{}: it holds\n", loaded.version.as_str())
}

fn refused(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| line("error", problem));
    lines.collect::<String>() + &format!("{} errors\n", problems.len())
}

fn line(weight: &str, problem: &Problem) -> String {
    let Problem {
        object,
        field,
        reason,
        message,
    } = problem;
    let gap = if field.is_empty() { "" } else { " " };
    format!("{weight}: {object}{gap}{field}\n  {reason}: {message}\n")
}

fn to_json(read: &Result<Loaded, Vec<Problem>>) -> Value {
    let list = |problems: &[Problem]| -> Value {
        let one = |p: &Problem| json!({"field": p.field, "reason": p.reason, "message": p.message});
        problems.iter().map(one).collect()
    };
    match read {
        Ok(loaded) => json!({
            "apiVersion": loaded.version.as_str(),
            "plugins": loaded.plugins,
            "notes": list(&loaded.notes),
            "picker": loaded.picker,
            "errors": [],
        }),
        Err(problems) => json!({ "errors": list(problems) }),
    }
}
