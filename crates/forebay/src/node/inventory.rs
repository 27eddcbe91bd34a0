//! `forebay node inventory`: reads a host, or a description of one, and prints what would be published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use forebay_fabric::cloud::{CloudFacts, Place};
use forebay_fabric::gpu;
use forebay_fabric::machine::{Machine, Problem};
use forebay_fabric::publish::{self, Attribute, Input, PublishedDevice, QualifiedName, Slice};
use forebay_fabric::synth;
use forebay_node::nvidia;
use forebay_node::sysfs::{self, Found};
use forebay_node::uplinks;
use serde_json::{Value, json};

use crate::cli::node::{InventoryArgs, Output};
use crate::table::{render, row};
use crate::{Failure, print};

/// Prints the inventory that `args` ask for.
pub(crate) fn run(args: &InventoryArgs) -> Result<(), Failure> {
    let (found, place) = match &args.machine {
        Some(file) => described(file)?,
        None => {
            let keep = uplinks::read(&args.proc_root).map_err(|e| Failure::world(e.to_string()))?;
            let mut found = sysfs::read(&args.sysfs_root, &keep);
            let place = ask_gpus(args.nvidia_smi.0.as_deref(), &mut found)?;
            (found, place)
        }
    };
    let cloud = CloudFacts {
        place,
        ..CloudFacts::default()
    };
    let input = Input {
        machine: found.machine.clone(),
        cloud,
        ..Input::default()
    };
    let (mut devices, mut problems) = publish::devices(&input);
    if let Some(filter) = &args.filter {
        problems.extend(filter.leave_out(&mut devices, &args.driver, |_| false));
    }
    problems.extend(found.problems.iter().cloned());
    for problem in &problems {
        eprintln!("warning: {problem}");
    }
    print(&match args.output {
        Output::Text => text(&found, &devices),
        Output::Json => format!("{:#}\n", list(args, &devices)),
    })
}

/// Adds what NVIDIA's driver tells of the GPUs; what it says of the machine's place is given back.
fn ask_gpus(program: Option<&Path>, found: &mut Found) -> Result<Place, Failure> {
    let mut place = Place::default();
    let Some(program) = program.filter(|_| found.machine.has_nvidia()) else {
        return Ok(place);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    match runtime.block_on(nvidia::ask(program, nvidia::ANSWER_TIME)) {
        Ok((gpus, problems)) => {
            found.problems.extend(problems);
            let no_domain = gpu::tell(&mut found.machine, &mut place, &gpus);
            found.problems.extend(no_domain);
        }
        Err(why) => found.problems.push(Problem {
            path: program.display().to_string(),
            reason: format!("{why}; of the GPUs only sysfs tells"),
        }),
    }
    Ok(place)
}

/// A machine of a description: its files are made in a folder, and read as a host's would be.
fn described(file: &Path) -> Result<(Found, Place), Failure> {
    let usage = |error: String| Failure::usage(format!("{}: {error}", file.display()));
    let yaml = fs::read_to_string(file).map_err(|e| usage(e.to_string()))?;
    let description = synth::parse(&yaml).map_err(usage)?;
    let tree = synth::tree(&description).map_err(usage)?;
    let world = |error: std::io::Error| Failure::world(format!("cannot make its files: {error}"));
    let folder = tempfile::tempdir().map_err(world)?;
    sysfs::plant(&tree, folder.path()).map_err(world)?;
    let keep: BTreeSet<String> = description.uplinks.iter().cloned().collect();
    let place = Place::from_labels(&description.labels);
    Ok((sysfs::read(folder.path(), &keep), place))
}

/// The columns for people: heading, and the attribute.
const COLUMNS: [(&str, &str); 7] = [
    ("INTERFACE", "dra.net/ifName"),
    ("RDMA", "dra.net/rdmaDevice"),
    ("MBIT/S", "forebay.dev/speed"),
    ("NUMA", "resource.kubernetes.io/numaNode"),
    ("RAIL", "forebay.dev/rail"),
    ("GPU DISTANCE", "forebay.dev/gpuDistance"),
    ("GPUS", "forebay.dev/gpuPeers"),
];

fn text(found: &Found, devices: &[PublishedDevice]) -> String {
    let mut heading = row(["DEVICE"]);
    heading.extend(COLUMNS.map(|(title, _)| title.to_owned()));
    let mut rows = vec![heading];
    rows.extend(devices.iter().map(|device| {
        let mut cells = vec![device.name.clone()];
        cells.extend(COLUMNS.map(|(_, name)| cell(device, name)));
        cells
    }));
    let mut text = render(&rows, 0, usize::MAX);
    for (name, why) in &found.left_out {
        text += &format!("left out: {name}: {why}\n");
    }
    text + &format!(
        "{} devices, {} accelerators{}, {} NUMA nodes\n",
        devices.len(),
        found.machine.accelerators.len(),
        models(&found.machine),
        found.machine.numa.len()
    )
}

/// What the accelerators are, where that is known: ` (8 NVIDIA H100 80GB HBM3)`.
fn models(machine: &Machine) -> String {
    let mut models: BTreeMap<&str, usize> = BTreeMap::new();
    for accelerator in &machine.accelerators {
        *models.entry(&accelerator.model).or_default() += 1;
    }
    models.remove("");
    let named = models
        .iter()
        .map(|(model, count)| format!("{count} {model}"));
    let named: Vec<String> = named.collect();
    match named.is_empty() {
        true => String::new(),
        false => format!(" ({})", named.join(", ")),
    }
}

/// An attribute as people read it; what is not known is a dash.
fn cell(device: &PublishedDevice, name: &str) -> String {
    let value = QualifiedName::parse(name).ok();
    match value.and_then(|name| device.attributes.get(&name)) {
        Some(Attribute::String(text)) if !text.is_empty() => text.clone(),
        Some(Attribute::Int(number)) if *number >= 0 => number.to_string(),
        Some(Attribute::Bool(value)) => value.to_string(),
        Some(Attribute::String(_) | Attribute::Int(_)) | None => "-".to_owned(),
    }
}

fn list(args: &InventoryArgs, devices: &[PublishedDevice]) -> Value {
    let slices = publish::slices(&args.node, 1, devices);
    let slice = |(number, slice): (usize, &Slice)| {
        json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": { "name": format!("{}-{}-{number}", args.node, args.driver) },
            "spec": publish::resource_slice::spec(slice, &args.driver, &args.node),
        })
    };
    let items: Vec<Value> = slices.iter().enumerate().map(slice).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}
