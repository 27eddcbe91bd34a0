//! What a picker outside said of a request, for `/debug/decisions` and `forebay explain`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::record::Consultation;
use crate::telemetry::millis;

/// What came of asking a picker outside.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outside {
    /// Its Service and port.
    pub service: String,
    /// The replica that was asked.
    pub replica: Option<String>,
    /// `picked`, `answered`, or why it was of no use.
    pub outcome: String,
    /// How long it took.
    pub took_ms: f64,
    /// The endpoints that it named, best first.
    pub endpoints: Vec<String>,
    /// What it named and could not be used.
    pub dropped: Vec<Dropped>,
    /// What went wrong, or what it said beside.
    pub remark: Option<String>,
}

/// A destination that could not be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dropped {
    /// As the picker named it.
    pub name: String,
    /// Why not.
    pub reason: String,
}

impl Outside {
    pub(super) fn of(consultation: &Consultation) -> Self {
        let dropped = consultation.dropped.iter().map(|(name, reason)| Dropped {
            name: name.clone(),
            reason: (*reason).to_owned(),
        });
        Self {
            service: format!("{}:{}", consultation.picker, consultation.port),
            replica: consultation.replica.map(|replica| replica.to_string()),
            outcome: consultation.outcome.code().to_owned(),
            took_ms: millis(consultation.took),
            endpoints: consultation.order.iter().map(ToString::to_string).collect(),
            dropped: dropped.collect(),
            remark: consultation.remark.as_deref().map(str::to_owned),
        }
    }

    /// Writes it for people; `built_in` if the built-in picker chose in its place.
    pub(super) fn render(&self, text: &mut String, built_in: bool) {
        let by = if self.outcome == "picked" {
            "picked by "
        } else {
            ""
        };
        let _infallible = write!(text, "  {by}external picker {}", self.service);
        if let Some(replica) = &self.replica {
            let _infallible = write!(text, " at {replica}");
        }
        let _infallible = write!(text, " in {:.1} ms: ", self.took_ms);
        if self.endpoints.is_empty() {
            text.push_str(&self.outcome);
        } else {
            text.push_str(&self.endpoints.join(", "));
        }
        if let Some(remark) = &self.remark {
            let _infallible = write!(text, "; {}", remark.escape_debug());
        }
        if built_in {
            text.push_str("; the built-in picker chose");
        }
        text.push('\n');
        for dropped in &self.dropped {
            let name = dropped.name.escape_debug();
            let _infallible = writeln!(text, "    not used: {name}, {}", dropped.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_model::ObjectName;

    use super::super::{Entry, render_text};
    use super::*;
    use crate::record::Consulted;
    use crate::telemetry::test_record;

    #[test]
    fn the_text_says_what_a_picker_outside_said() {
        let check = |outcome, order: &[&str], remark: Option<&str>, expected: &str| {
            let mut record = test_record();
            record.report = None;
            record.consultation = Some(Box::new(Consultation {
                picker: ObjectName::new("default", "epp").into(),
                port: 9002,
                replica: Some(([10, 0, 0, 9], 9002).into()),
                outcome,
                took: std::time::Duration::from_micros(1_300),
                order: order.iter().filter_map(|a| a.parse().ok()).collect(),
                dropped: vec![("x\n:1".to_owned(), "not an address with a port")],
                remark: remark.map(Into::into),
            }));
            let text = render_text(&Entry::of(&record));
            let lines = text.lines().filter(|line| line.contains("pick"));
            let lines: Vec<_> = lines.filter(|line| !line.starts_with("  took")).collect();
            assert_eq!(lines.join("\n"), expected);
            assert!(text.contains("    not used: x\\n:1, not an address with a port\n"));
        };
        check(
            Consulted::Picked,
            &["10.0.0.2:8000", "10.0.0.3:8000"],
            None,
            "  picked by external picker default/epp:9002 at 10.0.0.9:9002 in 1.3 ms: \
             10.0.0.2:8000, 10.0.0.3:8000",
        );
        check(
            Consulted::Failed("timeout"),
            &[],
            Some("it did not answer in time"),
            "  external picker default/epp:9002 at 10.0.0.9:9002 in 1.3 ms: timeout; it did not \
             answer in time\n  no endpoint was picked",
        );
    }
}
