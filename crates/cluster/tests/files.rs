//! Files on disk to published snapshots. Every wait is for a condition on the watch channel; the
//! limit on it only turns a hang into a failure.

use std::fs;
use std::path::Path;
use std::time::Duration;

use forebay_api::describe;
use forebay_cluster::{FileSource, Published, check};
use forebay_model::ObjectName;
use tokio::sync::watch;

fn pool(name: &str, port: u16) -> String {
    format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{matchLabels: {{app: a}}}}, targetPorts: [{{number: {port}}}]}}\n"
    )
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: a}}}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn text(published: &Published, root: &Path) -> String {
    let text = describe::snapshot(&published.snapshot);
    text.replace(&format!("{}/", root.display()), "")
}

/// Writes the way that a careful editor does: whole, then renamed into place.
fn write(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).expect("the folder is ours");
    fs::rename(&draft, path).expect("the folder is ours");
}

async fn until(receiver: &mut watch::Receiver<Published>, root: &Path, want: &str) {
    let found = receiver.wait_for(|published| text(published, root) == want);
    let limit = Duration::from_secs(20);
    let waited = tokio::time::timeout(limit, found).await.is_ok();
    if !waited {
        panic!("wanted:\n{want}\ngot:\n{}", text(&receiver.borrow(), root));
    }
}

#[test]
fn a_folder_is_read_whole_without_hidden_and_foreign_files() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir_all(path("sub/..data")).unwrap();
    fs::write(path("a.yaml"), pool("p", 80)).unwrap();
    fs::write(path("sub/b.yml"), pod("a", "10.0.0.1")).unwrap();
    fs::write(path("sub/..data/c.yaml"), pod("c", "10.0.0.3")).unwrap();
    fs::write(path(".d.yaml"), pod("d", "10.0.0.4")).unwrap();
    fs::write(path("notes.txt"), "[[[").unwrap();
    let published = check(vec![root.path().to_owned(), path("missing.yaml")]);
    assert_eq!(
        text(&published, root.path()),
        "pool default/p picker default\n  10.0.0.1:80 a\n\
         problem missing.yaml: Unreadable: No such file or directory (os error 2)\n"
    );
}

#[test]
fn the_first_file_by_name_owns_an_object_that_two_define() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("b.yaml"), pool("p", 2)).unwrap();
    fs::write(
        root.path().join("a.yaml"),
        pool("p", 1) + "---\n" + &pod("a", "10.0.0.1"),
    )
    .unwrap();
    assert_eq!(
        text(&check(vec![root.path().to_owned()]), root.path()),
        "pool default/p picker default\n  10.0.0.1:1 a\n\
         problem InferencePool default/p (b.yaml:1): Duplicate: \
         a.yaml:1 defines this object already and counts; remove one\n"
    );
}

#[tokio::test]
async fn changes_are_published_and_a_broken_file_keeps_its_last_good_state() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (pools, pods) = (root.join("pools.yaml"), root.join("pods.yaml"));
    write(&pools, &pool("p", 80));
    let (source, mut receiver) = FileSource::open(vec![root.to_owned()]);
    let running = tokio::spawn(source.run());
    until(&mut receiver, root, "pool default/p picker default\n").await;

    write(&pods, &pod("a", "10.0.0.1"));
    let one = "pool default/p picker default\n  10.0.0.1:80 a\n";
    until(&mut receiver, root, one).await;
    let generation = receiver.borrow().snapshot.generation;

    write(&pods, "kind: [\n");
    let found = receiver.wait_for(|published| !published.snapshot.problems.is_empty());
    let published = found.await.unwrap().clone();
    let seen = text(&published, root);
    assert!(
        seen.starts_with(one) && seen.contains("pods.yaml:"),
        "{seen}"
    );
    assert_eq!(published.snapshot.generation, generation + 1);

    // An object that is refused keeps its last good state; the other one of its file changes.
    let refused = pool("p", 80).replace("80", "0");
    write(&pools, &(refused + "---\n" + &pool("q", 90)));
    write(&pods, &pod("b", "10.0.0.2"));
    let want = "pool default/p picker default\n  10.0.0.2:80 b\n\
                pool default/q picker default\n  10.0.0.2:90 b\n\
                problem InferencePool default/p (pools.yaml:1) spec.targetPorts[0].number: \
                InvalidValue: a port is 1 to 65535\n";
    until(&mut receiver, root, want).await;

    fs::remove_file(&pods).unwrap();
    write(&pools, &pool("q", 90));
    until(&mut receiver, root, "pool default/q picker default\n").await;

    drop(receiver);
    running.await.unwrap();
}

#[tokio::test]
async fn unchanged_pools_keep_their_arc_across_publications() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(&root.join("p.yaml"), &pool("p", 80));
    let (source, mut receiver) = FileSource::open(vec![root.to_owned()]);
    let running = tokio::spawn(source.run());
    let name = ObjectName::new("default", "p");
    let before = receiver.borrow().snapshot.pools[&name].clone();
    write(&root.join("q.yaml"), &pool("q", 90));
    let want = "pool default/p picker default\npool default/q picker default\n";
    until(&mut receiver, root, want).await;
    let after = receiver.borrow().snapshot.pools[&name].clone();
    assert!(std::sync::Arc::ptr_eq(&before, &after));
    drop(receiver);
    running.await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn a_config_map_that_is_swapped_by_its_link_is_seen() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for (version, port) in [("..v1", 81), ("..v2", 82)] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("p.yaml"), pool("p", port)).unwrap();
    }
    fs::write(root.join("pods.yaml"), pod("a", "10.0.0.1")).unwrap();
    symlink("..v1", root.join("..data")).unwrap();
    symlink("..data/p.yaml", root.join("p.yaml")).unwrap();
    let (source, mut receiver) = FileSource::open(vec![root.to_owned()]);
    let running = tokio::spawn(source.run());
    let want = |port| format!("pool default/p picker default\n  10.0.0.1:{port} a\n");
    until(&mut receiver, root, &want(81)).await;
    symlink("..v2", root.join("..tmp")).unwrap();
    fs::rename(root.join("..tmp"), root.join("..data")).unwrap();
    until(&mut receiver, root, &want(82)).await;
    drop(receiver);
    running.await.unwrap();
}
