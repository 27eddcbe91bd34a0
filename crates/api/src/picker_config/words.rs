//! What a plugin became, in the words of our own configuration.

use forebay_model::policy::{Fairness, Saturation};
use serde_json::Value;

use super::flow::{Ceilings, Detector};
use super::parts::Part;
use super::producers::Approximate;

/// Whether a plugin does something only where a profile refers to it.
pub(super) fn needs_reference(part: &Part) -> bool {
    match part {
        Part::Filter(_) | Part::Scorer(_) | Part::Both(..) | Part::Picker(..) => true,
        Part::SingleProfile
        | Part::HeaderProfile { .. }
        | Part::Detector(_)
        | Part::Fairness(_)
        | Part::Arrival
        | Part::Ceilings(_)
        | Part::Strict
        | Part::Admitter(_)
        | Part::SloAdmitter
        | Part::Approximate(_)
        | Part::Precise(..)
        | Part::Tokens(_)
        | Part::BuiltIn(_) => false,
    }
}

/// The words for it.
pub(super) fn of(part: &Part) -> String {
    match part {
        Part::Filter(filter) => format!("filter {}", plainly(filter)),
        Part::Scorer(scorer) => format!("scorer {}", plainly(scorer)),
        Part::Both(None, scorer) => format!("scorer {}", plainly(scorer)),
        Part::Both(Some(filter), scorer) => {
            format!("filter {}, scorer {}", plainly(filter), plainly(scorer))
        }
        Part::Picker(kind, endpoints) => {
            let endpoints = endpoints.map_or("3 endpoints".to_owned(), |n| match n {
                1 => "1 endpoint".to_owned(),
                n => format!("{n} endpoints"),
            });
            format!("picker {}, {endpoints}", plainly(kind))
        }
        Part::SingleProfile => "one profile for all requests".to_owned(),
        Part::HeaderProfile { header, default } => {
            format!("the profile that {header} names, else {default}")
        }
        Part::Detector(detector) => format!("saturation {}", detector_words(detector)),
        Part::Fairness(Fairness::Arrival) => "whoever came first goes next".to_owned(),
        Part::Fairness(Fairness::Turns) => "tenants take turns".to_owned(),
        Part::Arrival => "a tenant's requests go as they came".to_owned(),
        Part::Ceilings(ceilings) => ceilings_words(ceilings),
        Part::Strict => "higher priorities go first, always".to_owned(),
        Part::Admitter(shedding) => format!("shedGradually {}", plainly(shedding)),
        Part::SloAdmitter => {
            "requests of negative priority are refused if their SLO is out of reach".to_owned()
        }
        Part::Approximate(index) => index_words(index),
        Part::Precise(precise, scorer) => {
            let scorer = scorer.as_ref().map(|s| format!(", scorer {}", plainly(s)));
            let (port, scorer) = (precise.settings.port, scorer.unwrap_or_default());
            format!("precisePrefix from events at port {port}{scorer}")
        }
        Part::Tokens(None) => "token counts: four bytes each".to_owned(),
        Part::Tokens(Some(name)) => format!("token counts; the tokenizer {name} if it is there"),
        Part::BuiltIn(what) => (*what).to_owned(),
    }
}

fn detector_words(detector: &Detector) -> String {
    match (&detector.saturation, detector.limits) {
        (Saturation::Reported, Some((queue, kv))) => {
            format!("reported, full at queue {queue} or KV use {kv}")
        }
        (saturation, _) => plainly(saturation),
    }
}

fn ceilings_words(ceilings: &Ceilings) -> String {
    match ceilings {
        Ceilings::Same(at) => format!("requests wait from saturation {at} on"),
        Ceilings::ByRank { min, max } => {
            format!("priorities wait from {min} (lowest) to {max} (highest) on, evenly spaced")
        }
        Ceilings::ByValue { min, max } => {
            format!("priorities wait from {min} (lowest) to {max} (highest) on, by their numbers")
        }
        Ceilings::Written(ceilings) => format!("priorities wait from these on: {ceilings:?}"),
    }
}

fn index_words(index: &Approximate) -> String {
    let mut words = "prefix index".to_owned();
    if let Some(tokens) = index.block_tokens {
        words += &format!(", blocks of {tokens} tokens");
    }
    if let Some(blocks) = index.blocks_max {
        words += &format!(", {blocks} of a prompt");
    }
    if let Some(blocks) = index.blocks_per_endpoint {
        words += &format!(", {blocks} per endpoint");
        if index.capacity_from_metrics != Some(false) {
            words += " until its metrics tell";
        }
    }
    if let Some(scorer) = &index.scorer {
        words += &format!(", scorer {}", plainly(scorer));
    }
    words
}

/// As our own configuration would have it, without what is not set.
pub(super) fn plainly(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        // A name with its settings.
        Ok(Value::Object(map)) if map.len() == 1 => {
            let one = |(name, value): (&String, &Value)| format!("{name} {}", plain(value));
            map.iter().map(one).collect()
        }
        Ok(value) => plain(&value),
        // Plain values have a form in JSON.
        Err(_) => String::new(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let set = map.iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<_> = set.map(|(k, v)| format!("{k}: {}", plain(v))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            // Weights are kept in single precision.
            Some(float) if number.is_f64() => (float as f32).to_string(),
            Some(_) | None => number.to_string(),
        },
        Value::Null | Value::Bool(_) => value.to_string(),
    }
}
