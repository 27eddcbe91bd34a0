//! Asks `nvidia-smi` of the GPUs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use forebay_fabric::gpu::{self, ANSWER_BYTES_MAX, FIELDS, GpuFacts, OLD_FIELDS};
use forebay_fabric::machine::Problem;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::cloud::NoAnswer;

/// How long the program may take. Without a persistent driver it wakes every GPU first: seconds each.
pub const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Asks `program`, which is found as a shell would find it. One that does not come to an end is killed and
/// not waited for: in the kernel, a broken GPU can hold it for ever.
///
/// # Errors
/// Nothing is known.
pub async fn ask(
    program: &Path,
    limit: Duration,
) -> Result<(Vec<GpuFacts>, Vec<Problem>), NoAnswer> {
    let answer = match query(program, FIELDS, limit).await {
        // Some field is newer than the driver.
        Err(NoAnswer(why)) if why.contains("not a valid field") => {
            query(program, OLD_FIELDS, limit).await?
        }
        answer => answer?,
    };
    Ok(gpu::parse(&answer))
}

async fn query(program: &Path, fields: &str, limit: Duration) -> Result<String, NoAnswer> {
    let failed = |error: std::io::Error| NoAnswer(error.to_string());
    let mut child = Command::new(program)
        .arg(format!("--query-gpu={fields}"))
        .arg("--format=csv,noheader")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut answer = String::new();
    let work = async {
        if let Some(output) = child.stdout.take() {
            let bound = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
            output.take(bound + 1).read_to_string(&mut answer).await?;
        }
        if answer.len() > ANSWER_BYTES_MAX {
            child.start_kill()?;
        }
        child.wait().await
    };
    let ended = tokio::time::timeout(limit, work).await;
    let late = |_| NoAnswer(format!("no answer in {} s", limit.as_secs_f32()));
    let status = ended.map_err(late)?.map_err(failed)?;
    if answer.len() > ANSWER_BYTES_MAX {
        let why = format!("an answer of more than {ANSWER_BYTES_MAX} bytes");
        return Err(NoAnswer(why));
    }
    // It says on its standard output what is wrong.
    let said = answer.lines().next().unwrap_or_default();
    match status.success() {
        true => Ok(answer),
        false => Err(NoAnswer(format!("{status}: {said}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::time::Instant;

    use forebay_fabric::gpu::Fabric;

    use super::*;

    /// A program of this text, in a folder that ends with the test.
    fn program(folder: &tempfile::TempDir, text: &str) -> PathBuf {
        let place = folder.path().join("nvidia-smi");
        fs::write(&place, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    async fn said(text: &str, limit: Duration) -> Result<Vec<GpuFacts>, NoAnswer> {
        let folder = tempfile::tempdir().unwrap();
        let program = program(&folder, text);
        loop {
            match ask(&program, limit).await {
                // A child that another test just forked has the file open for writing until it is another program.
                Err(NoAnswer(why)) if why.contains("Text file busy") => {
                    tokio::task::yield_now().await
                }
                Err(why) => return Err(why),
                Ok((gpus, problems)) => {
                    assert_eq!(problems, []);
                    return Ok(gpus);
                }
            }
        }
    }

    #[tokio::test]
    async fn an_old_driver_is_asked_for_less() {
        let text = r#"case "$*" in
            *fabric*) echo 'Field "fabric.state" is not a valid field to query.'; exit 2;;
            "--query-gpu=pci.bus_id,name --format=csv,noheader") echo '00000000:0F:00.0, Tesla T4';;
            *) exit 9;;
        esac"#;
        let gpus = said(text, ANSWER_TIME).await.unwrap();
        assert_eq!(gpus.len(), 1);
        assert_eq!(gpus[0].address.to_string(), "0000:0f:00.0");
        assert_eq!(
            (gpus[0].model.as_str(), &gpus[0].fabric),
            ("Tesla T4", &Fabric::None)
        );
    }

    #[tokio::test]
    async fn without_an_answer_it_is_said_why() {
        let text = "echo NVIDIA-SMI has failed because it could not communicate; exit 9";
        let error = said(text, ANSWER_TIME).await.unwrap_err().to_string();
        assert!(error.contains("could not communicate"), "{error}");
        let error = said("yes", ANSWER_TIME).await.unwrap_err().to_string();
        assert!(error.contains("65536 bytes"), "{error}");
        let none = ask(Path::new("/nowhere/nvidia-smi"), ANSWER_TIME).await;
        assert!(none.unwrap_err().0.contains("No such file"));
    }

    #[tokio::test]
    async fn one_that_hangs_is_left_behind() {
        let began = Instant::now();
        let limit = Duration::from_millis(200);
        let error = said("exec sleep 600", limit).await.unwrap_err().to_string();
        assert!(error.contains("no answer in 0.2 s"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(300));
    }
}
