//! Compares what routing policies decide, in simulated worlds in virtual time.
//! Usage: `decisions [--tuning] [--scenario NAME]... [--variant NAME=JSON]... [--load NAME] [--only NAME]...`
//!
//! A variant is Forebay's policy with other settings (`{"stickyShare": 0.7}`), beside those of the
//! published table.

use std::process::ExitCode;
use std::time::Instant;

use forebay_model::PickerConfig;
use forebay_simulate::world::compare::{Named, Policy, compare, published};
use forebay_simulate::world::scenario::{self, EVALUATION_SEEDS, Scenario, TUNING_SEEDS};

struct Arguments {
    seeds: Vec<u64>,
    scenarios: Vec<Scenario>,
    policies: Vec<Named>,
}

fn main() -> ExitCode {
    match arguments() {
        Ok(arguments) => {
            let began = Instant::now();
            let comparison = compare(&arguments.scenarios, &arguments.policies, &arguments.seeds);
            println!("{}", comparison.page());
            println!("{}", comparison.accuracy());
            for line in comparison.shortfalls() {
                println!("* {line}");
            }
            let cpu_s = comparison.cpu.as_secs_f64();
            eprintln!(
                "{} requests in {:.1} s, {:.1} s of thread time: {:.2} million a minute and thread",
                comparison.requests,
                began.elapsed().as_secs_f64(),
                cpu_s,
                comparison.requests as f64 / cpu_s * 60.0 / 1e6
            );
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut seeds = EVALUATION_SEEDS.to_vec();
    let mut scenarios = Vec::new();
    let mut policies = published();
    let mut variants: Vec<Named> = Vec::new();
    let mut only = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--tuning" => seeds = TUNING_SEEDS.to_vec(),
            "--more-tuning" => seeds = (11..27).collect(),
            "--scenario" => {
                let name = value()?;
                let found = Scenario::named(&name).ok_or_else(|| format!("no scenario {name}"))?;
                scenarios.push(found);
            }
            "--variant" => {
                let value = value()?;
                let (name, json) = value.split_once('=').ok_or("a variant is NAME=JSON")?;
                let config: PickerConfig =
                    serde_json::from_str(json).map_err(|error| format!("{name}: {error}"))?;
                variants.push((name.to_owned(), Policy::Forebay(Box::new(config))));
            }
            "--only" => only.push(value()?),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if !only.is_empty() {
        policies.retain(|(name, _)| only.contains(name));
    }
    policies.extend(variants);
    if scenarios.is_empty() {
        scenarios = scenario::all();
    }
    Ok(Arguments {
        seeds,
        scenarios,
        policies,
    })
}
