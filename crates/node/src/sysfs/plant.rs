//! A synthesised tree as real files, for tests and for trying things out without the hardware.

use std::fs;
use std::io;
use std::path::{Component, Path};

use forebay_fabric::synth::{Entry, Tree};

/// Writes a tree below a folder, which is made if it is not there.
///
/// # Errors
///
/// What the file system says; of a path that leads out of the folder, nothing is written.
pub fn plant(tree: &Tree, root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    for (path, entry) in tree {
        let relative = Path::new(path);
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !relative.components().all(inside) {
            let message = format!("`{path}` leads out of the folder");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let at = root.join(relative);
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        match entry {
            Entry::File(content) => fs::write(at, content)?,
            Entry::Link(target) => std::os::unix::fs::symlink(target, at)?,
            Entry::Folder => fs::create_dir_all(at)?,
        }
    }
    Ok(())
}
