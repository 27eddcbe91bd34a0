//! The images of a bed: what every node has from the start, and Forebay's own.

use super::binaries::{self, Binaries, Module, Part};
use super::config::PAUSE_IMAGE;
use super::image::{Content, Image, program_with_libraries, write};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BUSYBOX: &str = "bed.forebay.dev/busybox:1";

/// The tag of Forebay's image. A real registry's name would make a missing import a pull.
pub(super) const FOREBAY: &str = "bed.forebay.dev/forebay:dev";

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
    Ok(Image {
        tags: vec![BUSYBOX.to_owned()],
        entrypoint: Vec::new(),
        files: shell_and_tools()?,
    })
}

/// The machine's busybox under all its names.
fn shell_and_tools() -> Result<BTreeMap<String, Content>> {
    let program = shell::which("busybox").context("busybox is not installed")?;
    let mut files = program_with_libraries(&program, "bin/busybox")?;
    for applet in shell::capture(Command::new(&program).arg("--list"))?.lines() {
        let link = Content::Link("busybox".to_owned());
        files.entry(format!("bin/{applet}")).or_insert(link);
    }
    files.extend(surroundings());
    Ok(files)
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

/// Where programs look for certificate authorities that the system trusts.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Packs a built Forebay, which need not be static.
pub(super) fn forebay(program: &Path, tag: &str, archive: &Path) -> Result<()> {
    packed(program, vec![tag.to_owned()], &[], archive)
}

/// Packs a built Forebay as the picker of the Inference Extension's suite: under the name that its manifests use,
/// with the header by which its tests choose switched on.
pub(super) fn forebay_as_picker(program: &Path, archive: &Path) -> Result<()> {
    let tags = images_of_suites(PICKER)?;
    packed(program, tags, &["epp", "--test-selection"], archive)
}

fn packed(program: &Path, tags: Vec<String>, arguments: &[&str], archive: &Path) -> Result<()> {
    if !program.is_file() {
        bail!(
            "{} is not there: cargo build --release -p forebay",
            program.display()
        );
    }
    let mut files = program_with_libraries(program, "usr/bin/forebay")?;
    files.extend(surroundings());
    let authorities = Path::new("/").join(AUTHORITIES);
    if authorities.is_file() {
        files.insert(AUTHORITIES.to_owned(), Content::File(authorities));
    }
    let mut entrypoint = vec!["/usr/bin/forebay".to_owned()];
    entrypoint.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let image = Image {
        tags,
        entrypoint,
        files,
    };
    write(&image, archive)
}

/// What the manifests of the public conformance suites run: the end of the image's name, and the program.
const BACKENDS: [&str; 2] = ["echo-basic", "coredns"];

/// The reference picker of the Inference Extension.
const PICKER: &str = "lwepp";

/// The public suites.
const SUITES: [&str; 2] = [
    "sigs.k8s.io/gateway-api/conformance",
    "sigs.k8s.io/gateway-api-inference-extension/conformance",
];

/// The archives of the conformance suites' backends. They have the names under which the manifests
/// of the pinned suites ask for them, so that these apply unchanged.
pub(super) fn backends() -> Result<Vec<PathBuf>> {
    let built = binaries::ensure(Module::Conformance, &[Part::Backends])?;
    BACKENDS
        .iter()
        .map(|name| archive_for_suites(&built, name))
        .collect()
}

/// The archive of the Inference Extension's reference picker.
pub(super) fn reference_picker() -> Result<PathBuf> {
    let built = binaries::ensure(Module::Conformance, &[Part::ReferencePicker])?;
    archive_for_suites(&built, PICKER)
}

fn archive_for_suites(built: &Binaries, name: &str) -> Result<PathBuf> {
    let archive = built.program(&format!("{name}.tar"));
    if !archive.is_file() {
        let image = Image {
            tags: images_of_suites(name)?,
            entrypoint: vec![format!("/{name}")],
            files: BTreeMap::from([(name.to_owned(), Content::Program(built.program(name)))]),
        };
        write(&image, &archive)?;
    }
    Ok(archive)
}

/// What the manifests of our own inference suite run.
const INFERENCE_BACKENDS: [&str; 2] = ["picker", "model"];

/// The archives of the inference suite's picker and model servers.
pub(super) fn inference_backends() -> Result<Vec<PathBuf>> {
    let built = binaries::ensure(Module::Conformance, &[Part::InferenceBackends])?;
    let mut archives = Vec::new();
    for name in INFERENCE_BACKENDS {
        let archive = built.program(&format!("{name}.tar"));
        if !archive.is_file() {
            let image = Image {
                tags: vec![format!("bed.forebay.dev/{name}:1")],
                entrypoint: vec![format!("/{name}")],
                files: BTreeMap::from([(name.to_owned(), Content::Program(built.program(name)))]),
            };
            write(&image, &archive)?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// What the manifests of upstream's dranet run: the driver, and a program that test pods wait in.
const DRANET: &str = "registry.k8s.io/networking/dranet:stable";
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.54";

/// An archive of upstream's dranet under the name in its `install.yaml`, built if need be.
pub(super) fn dranet() -> Result<PathBuf> {
    let built = binaries::ensure(Module::Dranet, &[Part::Dranet])?;
    let archive = built.program("dranet.tar");
    if !archive.is_file() {
        let mut files = surroundings();
        files.insert(
            "dranet".to_owned(),
            Content::Program(built.program("dranet")),
        );
        let image = Image {
            tags: vec![DRANET.to_owned()],
            // As upstream's: the manifest names the program among its arguments.
            entrypoint: Vec::new(),
            files,
        };
        write(&image, &archive)?;
    }
    Ok(archive)
}

/// A stand-in for the image of the pods in upstream's tests: it has a shell and `ip`, and its program waits
/// whatever it is told to do.
pub(super) fn agnhost(archive: &Path) -> Result<()> {
    let mut files = shell_and_tools()?;
    let waits = "#!/bin/sh\ntrap 'exit 0' TERM\nsleep 36000 &\nwait\n";
    files.insert("agnhost".to_owned(), Content::Script(waits));
    let image = Image {
        tags: vec![AGNHOST.to_owned()],
        entrypoint: vec!["/agnhost".to_owned()],
        files,
    };
    write(&image, archive)
}

/// Every tag of one image in the suites' manifests.
fn images_of_suites(name: &str) -> Result<Vec<String>> {
    let mut tags = BTreeSet::new();
    for suite in SUITES {
        let folder = shell::capture(
            Command::new("go")
                .args(["list", "-m", "-f", "{{.Dir}}", suite])
                .current_dir(Module::Conformance.dir()),
        )?;
        find_images(Path::new(&folder), &format!("/{name}:"), &mut tags)?;
    }
    if tags.is_empty() {
        bail!(
            "no manifest of {} uses an image {name}: tools/conformance is out of step with them",
            SUITES.join(" or ")
        );
    }
    Ok(tags.into_iter().collect())
}

/// The images with this in their name that manifests in a folder use.
fn find_images(folder: &Path, part: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_images(&path, part, found)?;
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let images = text.lines().filter_map(image_of);
            found.extend(
                images
                    .filter(|image| image.contains(part))
                    .map(str::to_owned),
            );
        }
    }
    Ok(())
}

/// The image that a line of a manifest names.
fn image_of(line: &str) -> Option<&str> {
    let value = line
        .trim_start()
        .trim_start_matches("- ")
        .strip_prefix("image:")?;
    Some(value.trim().trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_from_the_lines_of_manifests() {
        assert_eq!(
            image_of("        image: a.example/echo:v1"),
            Some("a.example/echo:v1")
        );
        assert_eq!(image_of("      - image: \"echo:v1\""), Some("echo:v1"));
        assert_eq!(image_of("        imagePullPolicy: Always"), None);
    }

    #[test]
    fn every_manifest_below_a_folder_is_searched_and_each_image_is_found_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("tests");
        fs::create_dir(&inner).expect("a folder in it");
        let manifest = "image: r.example/echo-basic:v1\nimage: r.example/other:v1\n";
        for path in [folder.path().join("base.yaml"), inner.join("one.yaml")] {
            fs::write(path, manifest).expect("a manifest");
        }
        fs::write(inner.join("notes.txt"), "image: r.example/echo-basic:v9").expect("notes");
        let mut found = BTreeSet::new();
        find_images(folder.path(), "/echo-basic:", &mut found).expect("a search");
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["r.example/echo-basic:v1"]
        );
    }
}
