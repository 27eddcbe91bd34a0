//! Compares the simulator with real vLLM runs, or with `calibrate` makes the profiles anew.
//! Usage: `fidelity [calibrate|check] DATA_DIR`.

use std::path::Path;
use std::process::ExitCode;

use forebay_simulate::{calibrate, fidelity};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mode, data) = match arguments.as_slice() {
        [data] => ("compare", data.as_str()),
        [mode, data] => (mode.as_str(), data.as_str()),
        _ => ("compare", "../shared/data/vllm-serving-truth"),
    };
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let outcome = match mode {
        "compare" => fidelity::run_fidelity(Path::new(data))
            .map(|report| (report.to_string(), report.passed())),
        _ => calibrate::run_calibrate(Path::new(data), &profiles, mode == "check")
            .map(|report| (report, true)),
    };
    match outcome {
        Ok((report, passed)) => {
            println!("{report}");
            if passed {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
