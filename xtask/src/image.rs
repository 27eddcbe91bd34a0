//! `cargo xtask image`: a built Forebay as a container image, without a container engine.

use crate::cluster;
use anyhow::Result;
use std::path::PathBuf;

/// What to pack, and under which name.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask image \"$(cargo xtask dist)\" --tag registry.example/forebay:0.1.0 forebay.tar\n  \
    docker load -i forebay.tar && docker push registry.example/forebay:0.1.0\n  \
    kind load image-archive forebay.tar\n\n\
    The archive is of the form that `docker save` writes, for the machine's own architecture. In it are the\n\
    program, the libraries that it needs and, if the machine has it, the bundle of certificate\n\
    authorities.")]
pub(crate) struct Args {
    /// A built Forebay
    program: PathBuf,
    /// Name and tag of the image
    #[arg(long)]
    tag: String,
    /// The archive that is written
    archive: PathBuf,
}

/// Packs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    cluster::pack_forebay(&args.program, &args.tag, &args.archive)?;
    println!("{} is {}", args.archive.display(), args.tag);
    Ok(())
}
