"""The manifests for Kubernetes: they fit together, and their file is a deployment."""

from __future__ import annotations

from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"


def test_the_examples_name_each_other():
    made = {}
    for path in EXAMPLES.glob("*.yaml"):
        for each in yaml.safe_load_all(path.read_text()):
            made.setdefault((each["kind"], each["metadata"]["name"]), each)
    pool, service = made["InferencePool", "llama-8b"]["spec"], made["Service", "headway-picker"]["spec"]
    picker = pool["endpointPickerRef"]
    assert ("Service", picker["name"]) in made and picker["port"]["number"] == service["ports"][0]["port"]
    (backend,) = made["HTTPRoute", "llama-8b"]["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) in made
    (parent,) = made["HTTPRoute", "llama-8b"]["spec"]["parentRefs"]
    assert (parent["kind"], parent["name"]) in made
    pod = made["Deployment", "headway-picker"]["spec"]["template"]
    assert service["selector"] == pod["metadata"]["labels"]
    file = yaml.safe_load(made["ConfigMap", "headway-picker"]["data"]["deployment.yaml"])
    assert {each.rpartition(":")[2] for each in file["gateway"]["upstreams"]} == {str(pool["targetPorts"][0]["number"])}
    command = pod["spec"]["containers"][0]["command"]
    assert command[:2] == ["headway", "picker"]


def test_the_example_file_is_a_deployment(tmp_path):
    from headway.cli.serve import served_of
    from headway.cli.terminal import Terminal

    (config,) = [
        each for each in yaml.safe_load_all((EXAMPLES / "picker.yaml").read_text()) if each["kind"] == "ConfigMap"
    ]
    (tmp_path / "deployment.yaml").write_text(config["data"]["deployment.yaml"])
    served = served_of(str(tmp_path / "deployment.yaml"), None, Terminal(quiet=True))
    assert len(served.backings) == 2
