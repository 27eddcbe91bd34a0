//! The images of a bed: what every node has from the start, and Forebay's own.

use super::binaries::Binaries;
use super::config::PAUSE_IMAGE;
use super::image::{Content, Image, program_with_libraries, write};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const BUSYBOX: &str = "bed.forebay.dev/busybox:1";

/// The tag of Forebay's image. A real registry's name would make a missing import a pull.
const FOREBAY: &str = "bed.forebay.dev/forebay:dev";

/// The archives that every node imports, made once.
pub(super) fn base(binaries: &Binaries) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for (file, image) in [
        ("pause.tar", pause as fn(&Binaries) -> Result<Image>),
        ("busybox.tar", busybox),
    ] {
        let archive = binaries.program(file);
        if !archive.is_file() {
            write(&image(binaries)?, &archive)?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

fn pause(binaries: &Binaries) -> Result<Image> {
    Ok(Image {
        tags: vec![PAUSE_IMAGE.to_owned()],
        entrypoint: vec!["/pause".to_owned()],
        files: BTreeMap::from([(
            "pause".to_owned(),
            Content::Program(binaries.program("pause")),
        )]),
    })
}

fn busybox(_binaries: &Binaries) -> Result<Image> {
    let program = shell::which("busybox").context("busybox is not installed")?;
    let mut files = program_with_libraries(&program, "bin/busybox")?;
    for applet in shell::capture(Command::new(&program).arg("--list"))?.lines() {
        let link = Content::Link("busybox".to_owned());
        files.entry(format!("bin/{applet}")).or_insert(link);
    }
    files.extend(surroundings());
    Ok(Image {
        tags: vec![BUSYBOX.to_owned()],
        entrypoint: Vec::new(),
        files,
    })
}

/// What programs expect around them.
fn surroundings() -> BTreeMap<String, Content> {
    BTreeMap::from([
        (
            "etc/passwd".to_owned(),
            Content::Text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ),
        (
            "etc/group".to_owned(),
            Content::Text("root:x:0:\nnogroup:x:65534:\n"),
        ),
        ("tmp".to_owned(), Content::Folder),
    ])
}

/// Packs a built Forebay, which need not be static.
pub(super) fn forebay(program: &Path, archive: &Path) -> Result<()> {
    if !program.is_file() {
        bail!(
            "{} is not there: cargo build --release -p forebay",
            program.display()
        );
    }
    let mut files = program_with_libraries(program, "usr/bin/forebay")?;
    files.extend(surroundings());
    let image = Image {
        tags: vec![FOREBAY.to_owned()],
        entrypoint: vec!["/usr/bin/forebay".to_owned()],
        files,
    };
    write(&image, archive)
}
