"""Records what a real control plane makes of device selectors.

Reads a recording of the crate k8s-cel (devices and rows of expression and device) and writes another:
the API server says which expressions it refuses, the scheduler which devices match and which errors end
a pod's scheduling. It needs a cluster without other ResourceSlices and with two nodes, and changes both:

    cargo xtask cluster up --bed cel --control-plane-only --nodes 2
    eval "$(cargo xtask cluster env --bed cel)"
    python3 tools/cel/record.py crates/k8s-cel/tests/library.json crates/k8s-cel/tests/scheduler.json
    cargo xtask cluster down --bed cel

`main.go` asks the scheduler's library for the same rows, with what they cost.

Every row becomes a ResourceClaim and a pod. Of each device there are as many as a batch has rows, on a
node of its own, so that no row takes another's.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

# Below the number of pods that a node takes.
BATCH = 80
SETTLE_S = 120
NAMESPACE = "cel"
RESOURCE = "/apis/resource.k8s.io/v1"
CORE = "/api/v1"


class Cluster:
    """The API, through `kubectl proxy`."""

    def __init__(self):
        command = ["kubectl", "proxy", "--port=0"]
        self.proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.base = "http://" + self.proxy.stdout.readline().rsplit(" ", 1)[-1].strip()

    def call(self, method, path, body=None):
        """The answer, or the Status of a refusal."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)


def slices(devices, nodes):
    """A ResourceSlice for each device, on one node each."""
    for (name, facts), node in zip(devices.items(), nodes):
        device = {key: value for key, value in facts.items() if key != "driver"}
        copies = [dict(device, name=f"{name}-{index}") for index in range(BATCH)]
        pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
        spec = {"driver": facts["driver"], "pool": pool, "nodeName": node, "devices": copies}
        yield {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"cel-{name}"},
            "spec": spec,
        }


def claim(name, expression):
    selector = {"cel": {"expression": expression}}
    exactly = {"deviceClassName": "cel", "selectors": [selector]}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name},
        "spec": {"devices": {"requests": [{"name": "device", "exactly": exactly}]}},
    }


def pod(name, node):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "c", "image": "none", "resources": {"claims": [{"name": "d"}]}}],
            "resourceClaims": [{"name": "d", "resourceClaimName": name}],
        },
    }


def refused(status):
    """What the API server says of an expression."""
    messages = [cause["message"] for cause in status["details"]["causes"]]
    said = "\n".join(messages)
    outcome = "expensive" if "exceeds cost limit" in said else "compile"
    return {"outcome": outcome, "said": said}


def scheduled(pod):
    """What the scheduler says of a pod; none if nothing yet."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] != "PodScheduled":
            continue
        if condition["status"] == "True":
            return {"outcome": "true"}
        message = condition.get("message", "")
        if condition.get("reason") == "SchedulerError":
            return {"outcome": "runtime", "said": message}
        if "cannot allocate all claims" in message:
            return {"outcome": "false"}
    return None


def record_batch(cluster, rows, nodes):
    """The answers to some rows, in their order."""
    claims, pods = f"{RESOURCE}/namespaces/{NAMESPACE}/resourceclaims", f"{CORE}/namespaces/{NAMESPACE}/pods"
    answers = {}
    for index, row in enumerate(rows):
        made = cluster.call("POST", claims, claim(f"row-{index}", row["expression"]))
        if made["kind"] == "Status":
            answers[index] = refused(made)
        else:
            cluster.call("POST", pods, pod(f"row-{index}", nodes[row["device"]]))
    deadline = time.monotonic() + SETTLE_S
    while len(answers) < len(rows):
        if time.monotonic() > deadline:
            missing = [row["expression"] for at, row in enumerate(rows) if at not in answers]
            raise SystemExit(f"the scheduler said nothing of these: {missing}")
        for item in cluster.call("GET", pods)["items"]:
            index = int(item["metadata"]["name"].removeprefix("row-"))
            answer = scheduled(item)
            if index not in answers and answer:
                answers[index] = answer
    cluster.call("DELETE", pods + "?gracePeriodSeconds=0")
    cluster.call("DELETE", claims)
    while cluster.call("GET", pods)["items"] or cluster.call("GET", claims)["items"]:
        if time.monotonic() > deadline:
            raise SystemExit("pods and claims of a batch do not go away")
        time.sleep(0.2)
    return [answers[index] for index in range(len(rows))]


def text(recording):
    """The recording with a line for each row."""
    lines = lambda rows: ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    header = {key: value for key, value in recording.items() if key != "rows"}
    header = json.dumps(header, ensure_ascii=False)[1:-1]
    return "{\n " + header + ',\n "rows": [\n' + lines(recording["rows"]) + "\n ]\n}\n"


def main(source, target):
    with open(source, encoding="utf-8") as file:
        given = json.load(file)
    cluster = Cluster()
    try:
        version = cluster.call("GET", "/version")["gitVersion"]
        names = [node["metadata"]["name"] for node in cluster.call("GET", f"{CORE}/nodes")["items"]]
        nodes = dict(zip(given["devices"], names))
        cluster.call("POST", f"{CORE}/namespaces", {"metadata": {"name": NAMESPACE}})
        cluster.call("POST", f"{RESOURCE}/deviceclasses", {"metadata": {"name": "cel"}, "spec": {}})
        for slice in slices(given["devices"], names):
            made = cluster.call("POST", f"{RESOURCE}/resourceslices", slice)
            if made["kind"] == "Status" and made.get("reason") != "AlreadyExists":
                raise SystemExit(made["message"])
        while cluster.call("GET", f"{CORE}/namespaces/{NAMESPACE}/serviceaccounts")["items"] == []:
            time.sleep(0.2)
        rows = given["rows"]
        recorded = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for row, answer in zip(batch, record_batch(cluster, batch, nodes)):
                recorded.append({"expression": row["expression"], "device": row["device"], **answer})
            print(f"{len(recorded)} of {len(rows)} rows", file=sys.stderr)
    finally:
        cluster.proxy.terminate()
    result = {"kubernetes": version, "devices": given["devices"], "rows": recorded}
    with open(target, "w", encoding="utf-8") as file:
        file.write(text(result))


if __name__ == "__main__":
    main(*sys.argv[1:3])
