//! Container images made from files of this machine: one layer, written as the archive that
//! `docker save` writes and every runtime reads. The same files give the same bytes.

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// What becomes an image.
#[derive(Debug)]
pub(super) struct Image {
    /// `name:tag`, one or more.
    pub(super) tags: Vec<String>,
    pub(super) entrypoint: Vec<String>,
    /// By their place in the image, without a leading slash.
    pub(super) files: BTreeMap<String, Content>,
}

/// What is at one place.
#[derive(Debug)]
pub(super) enum Content {
    /// An executable copy of a file of this machine.
    Program(PathBuf),
    /// A copy of a file of this machine that everybody may read.
    File(PathBuf),
    Text(&'static str),
    /// A text that can be run.
    Script(&'static str),
    Link(String),
    /// A folder that everybody may write to.
    Folder,
}

/// Writes the archive.
pub(super) fn write(image: &Image, archive: &Path) -> Result<()> {
    let layer = layer(image)?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": image.entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
    }))?;
    let config_name = format!("{}.json", digest(&config));
    let manifest = serde_json::to_vec(&json!([{
        "Config": config_name,
        "RepoTags": image.tags,
        "Layers": ["layer.tar"],
    }]))?;
    // Written beside and moved, so that an archive that is there is whole.
    let fresh = archive.with_extension("new");
    let file = File::create(&fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    let mut tar = Builder::new(BufWriter::new(file));
    for (name, bytes) in [
        (config_name.as_str(), &config),
        ("layer.tar", &layer),
        ("manifest.json", &manifest),
    ] {
        add(&mut tar, name, EntryType::Regular, 0o644, bytes)?;
    }
    tar.into_inner()?.flush()?;
    fs::rename(&fresh, archive).with_context(|| format!("cannot write {}", archive.display()))
}

fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (place, content) in &image.files {
        match content {
            Content::Program(file) => {
                add(&mut tar, place, EntryType::Regular, 0o755, &read(file)?)?
            }
            Content::File(file) => add(&mut tar, place, EntryType::Regular, 0o644, &read(file)?)?,
            Content::Text(text) => {
                add(&mut tar, place, EntryType::Regular, 0o644, text.as_bytes())?
            }
            Content::Script(text) => {
                add(&mut tar, place, EntryType::Regular, 0o755, text.as_bytes())?
            }
            Content::Folder => add(
                &mut tar,
                &format!("{place}/"),
                EntryType::Directory,
                0o1777,
                &[],
            )?,
            Content::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, place, target)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn add<W: Write>(
    tar: &mut Builder<W>,
    place: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = header(kind, mode, bytes.len() as u64);
    tar.append_data(&mut header, place, bytes)
        .with_context(|| format!("cannot pack {place}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A program with the shared libraries that it asks for, so that it runs where there is nothing.
pub(super) fn program_with_libraries(
    program: &Path,
    place: &str,
) -> Result<BTreeMap<String, Content>> {
    let mut files = BTreeMap::from([(place.to_owned(), Content::Program(program.to_owned()))]);
    let output = std::process::Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot start ldd")?;
    // ldd fails for a static program: it has nothing to list.
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        let inside = library.trim_start_matches('/').to_owned();
        if !Path::new(&library).is_file() {
            bail!("{} needs {library}, which is not there", program.display());
        }
        files.insert(inside, Content::Program(library.into()));
    }
    Ok(files)
}

/// The paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x...)` or `/lib64/ld.so (0x...)`.
fn libraries(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_read_from_either_form_of_line() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(
            libraries(text),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn an_archive_names_its_layer_by_the_digest_of_its_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = Image {
            tags: vec!["bed.forebay.dev/t:1".to_owned()],
            entrypoint: vec!["/hello".to_owned()],
            files: BTreeMap::from([
                ("etc/passwd".to_owned(), Content::Text("root:x:0:0::/:\n")),
                ("hello".to_owned(), Content::Link("etc/passwd".to_owned())),
                ("tmp".to_owned(), Content::Folder),
            ]),
        };
        let (one, two) = (folder.path().join("one.tar"), folder.path().join("two.tar"));
        write(&image, &one).expect("an archive");
        write(&image, &two).expect("an archive");
        assert_eq!(fs::read(&one).expect("one"), fs::read(&two).expect("two"));

        let mut parts = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(&one).expect("the archive"));
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("its bytes");
            parts.insert(name, bytes);
        }
        let manifest: serde_json::Value =
            serde_json::from_slice(&parts["manifest.json"]).expect("JSON");
        let config = manifest[0]["Config"]
            .as_str()
            .expect("the configuration's name");
        let config: serde_json::Value = serde_json::from_slice(&parts[config]).expect("JSON");
        let layer = format!("sha256:{}", digest(&parts["layer.tar"]));
        assert_eq!(config["rootfs"]["diff_ids"], json!([layer]));
    }
}
