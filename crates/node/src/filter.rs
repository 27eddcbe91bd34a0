//! Which devices are published: an expression in the CEL of Kubernetes' device selectors, as a DeviceClass
//! has them.

use std::sync::Arc;

use forebay_fabric::machine::Problem;
use forebay_fabric::publish::{Attribute, PublishedDevice};
use forebay_k8s_cel::{self as cel, Program};

/// An expression that says whether a device is published. Clones are the same.
#[derive(Clone, Debug)]
pub struct Filter(Arc<Program>);

impl Filter {
    /// Compiles one, as an API server would.
    ///
    /// # Errors
    /// What is wrong with it, with its line and column.
    pub fn parse(text: &str) -> Result<Filter, String> {
        let program = Program::compile(text).map_err(|error| error.to_string())?;
        Ok(Filter(Arc::new(program)))
    }

    /// Leaves out the devices of `driver` that do not match, but none of which `stays` says that it is with a
    /// claim. A device of which the expression has no answer is left out, too, and told of.
    pub fn leave_out(
        &self,
        devices: &mut Vec<PublishedDevice>,
        driver: &str,
        stays: impl Fn(&PublishedDevice) -> bool,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        devices.retain(|device| {
            if stays(device) {
                return true;
            }
            self.0.matches(&seen(driver, device)).unwrap_or_else(|why| {
                problems.push(Problem {
                    path: device.name.clone(),
                    reason: format!("is not published, the filter has no answer: {why}"),
                });
                false
            })
        });
        problems
    }
}

/// A device as the scheduler would see it.
fn seen(driver: &str, device: &PublishedDevice) -> cel::Device {
    let bandwidth = device.bandwidth.bps.to_string();
    let seen = cel::Device::new(driver)
        .shared(device.allow_multiple)
        .capacity("forebay.dev/bandwidth", &bandwidth);
    let attributes = device.attributes.iter();
    attributes.fold(seen, |seen, (name, value)| {
        let value = match value {
            Attribute::String(text) => cel::Attribute::String(text.clone()),
            Attribute::Int(number) => cel::Attribute::Int(*number),
            Attribute::Bool(value) => cel::Attribute::Bool(*value),
        };
        seen.attribute(&name.to_string(), value)
    })
}

#[cfg(test)]
mod tests {
    use forebay_fabric::machine::{Machine, Netdev, Nic, Sriov};
    use forebay_fabric::publish::{self, Input};

    use super::*;

    fn nic(name: &str, speed_mbps: u64) -> Nic {
        let netdev = Netdev {
            name: name.into(),
            kind: "macvlan".into(),
            mac: String::new(),
            mtu: 1500,
            addresses: Vec::new(),
            admin_up: true,
            state: "up".into(),
            speed_mbps: Some(speed_mbps),
            alias: String::new(),
        };
        Nic {
            pci: None,
            sriov: Sriov::None,
            netdev: Some(netdev),
            rdma: None,
        }
    }

    fn check(filter: &str, held: &str, expected: &[&str]) -> Vec<Problem> {
        let machine = Machine {
            nics: vec![nic("fast", 400_000), nic("slow", 10_000)],
            ..Machine::default()
        };
        let input = Input {
            machine,
            ..Input::default()
        };
        let (mut devices, _) = publish::devices(&input);
        let filter = Filter::parse(filter).unwrap();
        let problems = filter.leave_out(&mut devices, "dra.net", |device| device.name == held);
        let names: Vec<&str> = devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, expected, "{problems:?}");
        problems
    }

    #[test]
    fn what_does_not_match_is_left_out_unless_a_claim_has_it() {
        let fast = r#"device.attributes["forebay.dev"].speed >= 100000"#;
        check(fast, "", &["fast"]);
        check(fast, "slow", &["fast", "slow"]);
        let bandwidth = r#"device.capacity["forebay.dev"].bandwidth.isLessThan(quantity("100G"))"#;
        check(bandwidth, "", &["slow"]);
        check(r#"device.driver == "dra.net""#, "", &["fast", "slow"]);
    }

    #[test]
    fn a_device_without_an_answer_is_left_out_and_told_of() {
        let problems = check(
            r#"device.attributes["dra.net"].color == "red""#,
            "fast",
            &["fast"],
        );
        assert_eq!(problems.len(), 1);
        assert!(problems[0].reason.contains("no such key"), "{problems:?}");
    }

    #[test]
    fn an_expression_that_is_none_says_where() {
        let why = Filter::parse("device.driver = 1").unwrap_err();
        assert!(why.contains("<input>:1:15"), "{why}");
    }
}
