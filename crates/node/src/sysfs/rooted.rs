//! Files below a folder, and none outside of it: every symbolic link on the way is followed by hand, and one
//! that leads above the root, or is absolute, is refused.
//!
//! Bounded, and never waits: only regular files are opened. What is wrong is noted as a [`Problem`] and
//! reads as absent.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use forebay_fabric::machine::Problem;

/// Bytes of a file at most: sysfs has pages of 4 KiB. Of a longer one the first ones are read, and that is a
/// problem.
const FILE_BYTES_MAX: u64 = 4096;
/// Entries of a folder at most; more are a problem, and which are read is up to the file system.
const ENTRIES_MAX: usize = 16_384;
/// Symbolic links on the way to one file at most: as the kernel's own limit.
const LINKS_MAX: usize = 40;
/// Problems that are noted at most; the last one then says that there are more.
const PROBLEMS_MAX: usize = 256;

/// Why something cannot be read.
enum Fault {
    /// It is not there, which is common.
    Missing,
    /// What is wrong.
    Wrong(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::NotFound => Fault::Missing,
            _ => Fault::Wrong(error.to_string()),
        }
    }
}

/// A tree of files, read from its root on. Paths are relative to that, without `.` and `..`.
pub(super) struct Rooted {
    root: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

impl Rooted {
    pub(super) fn new(root: &Path) -> Rooted {
        Rooted {
            root: root.to_owned(),
            problems: RefCell::default(),
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Notes what is wrong with a file.
    pub(super) fn problem(&self, path: &str, reason: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        let reason = match problems.len() {
            PROBLEMS_MAX.. => return,
            len if len + 1 == PROBLEMS_MAX => "and more problems, which are not told".to_owned(),
            _ => reason.into(),
        };
        let path = path.to_owned();
        problems.push(Problem { path, reason });
    }

    fn noted<T>(&self, path: &str, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Fault::Missing) => None,
            Err(Fault::Wrong(reason)) => {
                self.problem(path, reason);
                None
            }
        }
    }

    /// The path without symbolic links that a path leads to, which exists.
    pub(super) fn real(&self, path: &str) -> Option<String> {
        self.noted(path, self.resolve(path))
    }

    fn resolve(&self, path: &str) -> Result<String, Fault> {
        let mut to_go: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = to_go.pop_front() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    let outside =
                        || Fault::Wrong("leads out of the tree, so it is not followed".into());
                    done.pop().ok_or_else(outside)?;
                    continue;
                }
                _ => done.push(part),
            }
            let here = self.root.join(done.join("/"));
            if !fs::symlink_metadata(&here)?.file_type().is_symlink() {
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Fault::Wrong(format!(
                    "more than {LINKS_MAX} symbolic links"
                )));
            }
            let target = fs::read_link(&here)?;
            let target = target
                .to_str()
                .filter(|target| !target.starts_with('/'))
                .ok_or_else(|| {
                    Fault::Wrong("leads out of the tree, so it is not followed".into())
                })?;
            done.pop();
            for part in target.split('/').rev() {
                to_go.push_front(part.to_owned());
            }
        }
        Ok(done.join("/"))
    }

    /// Names in a folder in their order; none if it is not there.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        self.noted(path, self.names(path)).unwrap_or_default()
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Fault> {
        let folder = self.root.join(self.resolve(path)?);
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            if names.len() == ENTRIES_MAX {
                let reason = format!("more than {ENTRIES_MAX} entries; the others are not read");
                self.problem(path, reason);
                break;
            }
            match entry?.file_name().into_string() {
                Ok(name) => names.push(name),
                Err(name) => self.problem(path, format!("{name:?} is no name in UTF-8")),
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn is_folder(&self, path: &str) -> bool {
        let metadata = |real: String| fs::symlink_metadata(self.root.join(real));
        (self.real(path)).is_some_and(|real| metadata(real).is_ok_and(|m| m.is_dir()))
    }

    /// The text of a file without blanks around it; none if it is not there.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.noted(path, self.content(path))
    }

    /// As [`Rooted::text`], of a file that the kernel may refuse to read: the speed of a link that is down.
    pub(super) fn text_if_readable(&self, path: &str) -> Option<String> {
        self.content(path).ok()
    }

    fn content(&self, path: &str) -> Result<String, Fault> {
        let file = self.root.join(self.resolve(path)?);
        // A pipe would block, a device would answer without an end.
        if !fs::symlink_metadata(&file)?.is_file() {
            return Err(Fault::Wrong("is no regular file".to_owned()));
        }
        let mut bytes = Vec::new();
        fs::File::open(&file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Fault::Wrong(format!("longer than {FILE_BYTES_MAX} bytes")));
        }
        let text =
            String::from_utf8(bytes).map_err(|_| Fault::Wrong("is no text in UTF-8".to_owned()))?;
        Ok(text.trim().to_owned())
    }

    /// A file that holds a value of a type; one that cannot be read as such is a problem.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        let text = self.text(path)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(path, format!("{text:?} is not what was expected"));
        }
        value
    }

    /// A file that holds a number such as `0x15b3`.
    pub(super) fn hex(&self, path: &str) -> Option<u32> {
        let text = self.text(path)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let value = u32::from_str_radix(digits, 16).ok();
        if value.is_none() {
            self.problem(path, format!("{text:?} is no hexadecimal number"));
        }
        value
    }

    /// The last part of what a symbolic link points to; none if it is not there.
    pub(super) fn target_name(&self, path: &str) -> Option<String> {
        let real = self.real(path)?;
        real.rsplit('/').next().map(str::to_owned)
    }
}
