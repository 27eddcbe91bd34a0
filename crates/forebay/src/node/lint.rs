//! `forebay node lint`: every opaque parameter of our driver in a file, held against what a node would
//! accept, before a node sees it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use forebay_cluster::manifest::{self, FILE_BYTES_MAX};
use forebay_fabric::config::objects;

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
            for found in objects::parameters(document, &args.driver) {
                seen += 1;
                for error in found.errors() {
                    wrong += 1;
                    text += &format!(
                        "error: {} ({name}:{line}) {}\n  {}\n",
                        found.object, error.path, error.message
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
