//! Keeps what NVIDIA's driver tells of the GPUs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use forebay_fabric::gpu::{Fabric, GpuFacts};
use forebay_node::nvidia::{ANSWER_TIME, ask};
use forebay_node::sysfs;
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two questions: a machine gets another NVLink domain only with its GPUs reset.
const EVERY: Duration = Duration::from_secs(600);
/// While there is no answer yet, or a GPU joins its fabric: the driver may be installed after us.
const SOON: Duration = Duration::from_secs(30);

/// Asks `program` again and again where there are GPUs of NVIDIA's; without a program, nobody.
pub(super) async fn follow(
    program: Option<PathBuf>,
    sysfs: PathBuf,
    facts: watch::Sender<Option<Vec<GpuFacts>>>,
) {
    let are_there = || sysfs::read(&sysfs, &BTreeSet::new()).machine.has_nvidia();
    let Some(program) = program.filter(|_| are_there()) else {
        facts.send_replace(Some(Vec::new()));
        return;
    };
    let mut told = String::new();
    loop {
        let wait = match ask(&program, ANSWER_TIME).await {
            Ok((gpus, problems)) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                tell_once(&mut told, problems.join("; "));
                let joining = gpus.iter().any(|gpu| gpu.fabric == Fabric::Joining);
                facts.send_if_modified(|known| {
                    let differs = known.as_ref() != Some(&gpus);
                    *known = Some(gpus);
                    differs
                });
                if joining { SOON } else { EVERY }
            }
            Err(why) => {
                let what = format!("{}: {why}; of the GPUs only sysfs tells", program.display());
                tell_once(&mut told, what);
                // What was known stays known.
                facts.send_if_modified(|known| {
                    let first = known.is_none();
                    known.get_or_insert_default();
                    first
                });
                SOON
            }
        };
        sleep(wait).await;
    }
}

/// Warns when there is something new to warn of.
fn tell_once(told: &mut String, what: String) {
    if *told != what && !what.is_empty() {
        tracing::warn!("{what}");
    }
    *told = what;
}
