//! `forebay status`: one screen about a running gateway: listeners, routes, pools with the health
//! and load of their endpoints, problems. Everything comes from the admin server.

use serde_json::Value;

use crate::cli::StatusArgs;
use crate::table::{render, row};
use crate::{Failure, admin_client, print};

/// Prints the state of the gateway at `args.admin`.
pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let version = admin_client::get(args.admin, "/version")?;
    let config = admin_client::get(args.admin, "/debug/config")?;
    let pools = admin_client::get(args.admin, "/debug/pools")?;
    if args.json {
        let all = serde_json::json!({ "version": version, "config": config, "pools": pools });
        return print(&format!("{all:#}\n"));
    }
    let mut text = summary(args, &version, &config);
    text += &listeners(&config["statuses"]);
    text += &routes(&config["statuses"]["objects"]);
    for pool in list(&pools) {
        text += &describe_pool(pool);
    }
    text += &problems(&config);
    print(&text)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn summary(args: &StatusArgs, version: &Value, config: &Value) -> String {
    let ready = match &config["ready"] {
        Value::String(why) => format!("NOT READY: {why}"),
        _ => "ready".to_owned(),
    };
    let sources: Vec<&str> = list(&config["statuses"]["sources"])
        .iter()
        .map(text_of)
        .collect();
    format!(
        "forebay {} at {}: {ready}\nconfiguration: generation {}, from {}\n",
        text_of(&version["version"]),
        args.admin,
        config["generation"],
        sources.join(", ")
    )
}

fn listeners(statuses: &Value) -> String {
    let mut rows = Vec::new();
    for port in list(&statuses["ports"]) {
        let protocol = if port["tls"] == true { "https" } else { "http" };
        for listener in list(&port["listeners"]) {
            let gateway = text_of(&listener["gateway"]);
            let name = text_of(&listener["name"]);
            let attached = attached_routes(&statuses["objects"], gateway, name);
            rows.push(vec![
                format!("port {}", port["port"]),
                protocol.to_owned(),
                format!("Gateway {gateway} listener {name}"),
                format!("{attached} routes"),
            ]);
        }
    }
    if rows.is_empty() {
        return "\nno listener: nothing is served\n".to_owned();
    }
    "\n".to_owned() + &render(&rows, 0, 4)
}

fn attached_routes(objects: &Value, gateway: &str, listener: &str) -> u64 {
    let gateway = list(objects)
        .iter()
        .find(|o| o["kind"] == "Gateway" && o["name"] == gateway);
    let listeners = gateway.map_or(&[][..], |gateway| list(&gateway["listeners"]));
    let listener = listeners.iter().find(|own| own["name"] == listener);
    listener
        .and_then(|own| own["attachedRoutes"].as_u64())
        .unwrap_or(0)
}

/// Every route with what keeps it from being served, if anything does.
fn routes(objects: &Value) -> String {
    let mut rows = Vec::new();
    for route in list(objects).iter().filter(|o| o["kind"] == "HTTPRoute") {
        let name = format!("HTTPRoute {}", text_of(&route["name"]));
        for parent in list(&route["parents"]) {
            let unmet = list(&parent["conditions"])
                .iter()
                .filter(|c| c["status"] == false);
            let unmet: Vec<&str> = unmet.map(|c| text_of(&c["reason"])).collect();
            let state = if unmet.is_empty() {
                "ok".to_owned()
            } else {
                unmet.join(", ")
            };
            rows.push(vec![
                name.clone(),
                match text_of(&parent["kind"]) {
                    "Gateway" => format!("at {}", text_of(&parent["name"])),
                    kind => format!("at {kind} {}", text_of(&parent["name"])),
                },
                state,
            ]);
        }
    }
    render(&rows, 0, 3)
}

fn describe_pool(pool: &Value) -> String {
    let header = [
        "endpoint",
        "pod",
        "state",
        "waiting",
        "running",
        "kv used",
        "in flight",
        "backlog ms",
        "cached blocks",
    ];
    let mut rows = vec![row(header)];
    rows.extend(list(&pool["endpoints"]).iter().map(endpoint));
    let saturation = pool["saturation"].as_f64().unwrap_or(0.0);
    format!(
        "\nInferencePool {}: saturation {saturation:.2}{}, prefix index {} blocks in {:.1} MiB\n{}",
        text_of(&pool["pool"]),
        queue(&pool["queue"]),
        pool["prefix_index_blocks"],
        pool["prefix_index_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
        render(&rows, 2, 3)
    )
}

/// Who waits for a place in the pool, if anybody does.
fn queue(queue: &Value) -> String {
    let requests = queue["requests"].as_u64().unwrap_or(0);
    if requests == 0 {
        return String::new();
    }
    let longest_ms = queue["longest_wait_ms"].as_f64().unwrap_or(0.0);
    let bands = list(&queue["priorities"]).iter();
    let bands = bands.map(|band| format!("{} of priority {}", band["requests"], band["priority"]));
    let bands: Vec<_> = bands.collect();
    format!(
        ", {requests} queued for up to {:.1} s ({})",
        longest_ms / 1e3,
        bands.join(", ")
    )
}

fn endpoint(endpoint: &Value) -> Vec<String> {
    let number = |key: &str| match &endpoint[key] {
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let share = endpoint["kv_used"]
        .as_f64()
        .map(|used| format!("{:.0} %", used * 100.0));
    let backlog = endpoint["backlog_ms"].as_f64().map(|ms| format!("{ms:.0}"));
    vec![
        text_of(&endpoint["address"]).to_owned(),
        endpoint["pod"].as_str().unwrap_or("-").to_owned(),
        state(endpoint),
        number("waiting"),
        number("running"),
        share.unwrap_or_else(|| "-".to_owned()),
        number("inflight_requests"),
        backlog.unwrap_or_else(|| "-".to_owned()),
        number("prefix_blocks"),
    ]
}

/// `good`, or why the endpoint gets less than others.
fn state(endpoint: &Value) -> String {
    if endpoint["ready"] == false {
        return "not ready".to_owned();
    }
    if let Some(ejected) = endpoint["ejected"].as_object() {
        let cause = match &ejected["cause"] {
            Value::String(cause) => cause.clone(),
            Value::Object(cause) => cause.values().map(text_of).collect::<Vec<_>>().join(" "),
            other => other.to_string(),
        };
        let left = match ejected["left_ms"].as_u64() {
            Some(ms) => format!("for {:.1} s more", ms as f64 / 1e3),
            None => "until it answers".to_owned(),
        };
        return format!("ejected ({cause}) {left}");
    }
    match &endpoint["standing"] {
        Value::String(standing) => standing.clone(),
        Value::Object(standing) => {
            let share = standing
                .get("ramping")
                .and_then(Value::as_f64)
                .unwrap_or(0.0);
            format!("ramping ({:.0} %)", share * 100.0)
        }
        _ => "?".to_owned(),
    }
}

fn problems(config: &Value) -> String {
    let problems = list(&config["statuses"]["problems"]);
    if problems.is_empty() {
        return "\nno problems\n".to_owned();
    }
    let mut text = format!("\n{} problems\n", problems.len());
    for problem in problems {
        let field = text_of(&problem["field"]);
        let field = if field.is_empty() {
            String::new()
        } else {
            format!(" {field}")
        };
        text += &format!(
            "  {}: {}{field}: {}: {}\n",
            text_of(&problem["severity"]),
            text_of(&problem["object"]),
            text_of(&problem["reason"]),
            text_of(&problem["message"]),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_queue_is_shown_by_priority() {
        let bands = json!([{"priority": 5, "requests": 2}, {"priority": 0, "requests": 10}]);
        let some = json!({"requests": 12, "longest_wait_ms": 3210, "priorities": bands});
        assert_eq!(
            queue(&some),
            ", 12 queued for up to 3.2 s (2 of priority 5, 10 of priority 0)"
        );
        let none = json!({"requests": 0, "longest_wait_ms": null, "priorities": []});
        assert_eq!(queue(&none), "");
    }

    #[test]
    fn the_state_says_why_an_endpoint_gets_less() {
        let check = |endpoint: Value, want: &str| assert_eq!(state(&endpoint), want);
        check(json!({"ready": true, "standing": "good"}), "good");
        check(json!({"ready": false, "standing": "good"}), "not ready");
        check(
            json!({"ready": true, "standing": {"ramping": 0.4}}),
            "ramping (40 %)",
        );
        let silent = json!({"cause": "silence", "for_ms": 10, "left_ms": null});
        check(
            json!({"ready": true, "ejected": silent}),
            "ejected (silence) until it answers",
        );
        let failing = json!({"cause": {"failures": "connect"}, "left_ms": 1500});
        check(
            json!({"ready": true, "ejected": failing}),
            "ejected (connect) for 1.5 s more",
        );
    }
}
