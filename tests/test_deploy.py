"""The files that start clusters elsewhere say what this version needs, in fields that exist. No machine is started.

The fields of the RayJob below were held against the custom resource definitions of KubeRay 1.6.2 and 1.7.0 (August
2026), which are not kept here. With KUBERAY_CRDS naming a folder that holds them (helm-chart/kuberay-operator/crds of
github.com/ray-project/kuberay), the whole manifest is validated against them again.
"""

import fnmatch
import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from quantascope.api.cli import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = get_command(app).commands
CRDS = os.environ.get("KUBERAY_CRDS")

RAY_JOB_FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata.name": str,
    "spec.entrypoint": str,
    "spec.backoffLimit": int,
    "spec.submitterConfig.backoffLimit": int,
    "spec.preRunningDeadlineSeconds": int,
    "spec.activeDeadlineSeconds": int,
    "spec.shutdownAfterJobFinishes": bool,
    "spec.ttlSecondsAfterFinished": int,
    "spec.suspend": bool,
    "spec.rayClusterSpec.rayVersion": str,
    "spec.rayClusterSpec.authOptions.mode": str,
    "spec.rayClusterSpec.enableInTreeAutoscaling": bool,
    "spec.rayClusterSpec.autoscalerOptions.idleTimeoutSeconds": int,
    "spec.rayClusterSpec.headGroupSpec.rayStartParams": dict,
    "spec.rayClusterSpec.headGroupSpec.template": dict,
    "spec.rayClusterSpec.workerGroupSpecs[].groupName": str,
    "spec.rayClusterSpec.workerGroupSpecs[].replicas": int,
    "spec.rayClusterSpec.workerGroupSpecs[].minReplicas": int,
    "spec.rayClusterSpec.workerGroupSpecs[].maxReplicas": int,
    "spec.rayClusterSpec.workerGroupSpecs[].rayStartParams": dict,
    "spec.rayClusterSpec.workerGroupSpecs[].template": dict,
}
"""Every field of KubeRay's own that the manifest uses, and its type; below `template` are pods, Kubernetes's own."""
POD_FIELDS = {"nodeSelector", "tolerations", "containers", "volumes"}
CONTAINER_FIELDS = {"name", "image", "resources", "volumeMounts"}


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ray_job():
    return read_yaml(DEPLOY / "rayjob.yaml")


def leaves(value, path=""):
    """Dotted paths and values, as far down as RAY_JOB_FIELDS goes; the items of a list share their path."""
    if path in RAY_JOB_FIELDS or not isinstance(value, dict | list):
        yield path, value
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)


def pods(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def require_command(words):
    """AssertionError unless it is a command of quantascope's with flags that exist; returns the flags."""
    assert words[0] == "quantascope"
    known = {flag for option in COMMANDS[words[1]].params for flag in option.opts}
    given = {word for word in words[2:] if word.startswith("--")}
    assert given <= known, given - known
    return given


# --- KubeRay ---


def test_the_ray_job_has_the_fields_that_were_checked_and_no_other(ray_job):
    found = dict(leaves(ray_job))
    assert found.keys() == RAY_JOB_FIELDS.keys()
    assert {path: type(value) for path, value in found.items()} == RAY_JOB_FIELDS
    for pod in pods(ray_job):
        assert pod.keys() <= POD_FIELDS
        assert all(container.keys() <= CONTAINER_FIELDS for container in pod["containers"])


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's definitions")
def test_the_ray_job_is_what_kuberay_accepts(ray_job):
    definition = read_yaml(Path(CRDS) / "ray.io_rayjobs.yaml")
    version = next(v for v in definition["spec"]["versions"] if f"ray.io/{v['name']}" == ray_job["apiVersion"])
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    jsonschema.validate(ray_job, schema)
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_job, schema)
    del ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"]


def strict(schema):
    """A definition's schema as plain JSON schema, with unknown fields refused as the API server drops them."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {
        key: {name: strict(item) for name, item in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    return found | ({"additionalProperties": False} if "properties" in schema and not open_ended else {})


def test_the_job_runs_a_command_that_exists_and_joins_with_a_token(ray_job):
    given = require_command(shlex.split(ray_job["spec"]["entrypoint"]))
    assert {"--ray-address", "--gpus-per-worker", "--device"} <= given
    assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_head_stays_and_workers_may_go(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    head, *workers = pods(ray_job)
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert "SPOT" not in head["nodeSelector"].values()
    for group, pod in zip(cluster["workerGroupSpecs"], workers, strict=True):
        assert "SPOT" in pod["nodeSelector"].values()
        assert 0 < group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_retries_are_bounded_and_never_two_at_once(ray_job):
    spec = ray_job["spec"]
    assert 0 < spec["backoffLimit"] < 10
    assert spec["submitterConfig"]["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] or not (spec["ttlSecondsAfterFinished"] or spec["suspend"])


def test_every_pod_sees_the_runs_on_a_volume_that_many_may_write(ray_job):
    claim = read_yaml(DEPLOY / "volume.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(ray_job):
        [volume] = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        [mount] = pod["containers"][0]["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/runs")
    words = shlex.split(ray_job["spec"]["entrypoint"])
    assert all(words[words.index(flag) + 1].startswith("/runs/") for flag in ("--model", "--dataset", "--out"))


def test_ray_is_the_tested_one_everywhere(ray_job):
    tested = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == tested
    assert arguments()["RAY_VERSION"] == tested
    assert f"rayproject/ray:{tested}-{arguments()['PYTHON']}" in (ROOT / "ray_cluster.yaml").read_text("utf-8")


# --- ray up ---


def test_every_machine_that_ray_starts_has_the_pinned_versions():
    cluster = read_yaml(ROOT / "ray_cluster.yaml")
    mounted = {Path(there).name: ROOT / here for there, here in cluster["file_mounts"].items()}
    assert mounted["constraints.txt"].is_file()
    [install] = [command for command in cluster["setup_commands"] if "pip install" in command]
    words = shlex.split(install)
    assert words[words.index("--constraint") + 1] == "$HOME/constraints.txt"
    wheel = f"$HOME/dist/{PROJECT['name']}-{PROJECT['version']}-py3-none-any.whl[cpu]"
    assert words[-1] == wheel


# --- Dockerfile ---


def instructions():
    """(instruction, its words as one line), in order; comments and continuations resolved as Docker does."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def arguments():
    """ARGs with a default, by name."""
    found = [rest.partition("=") for name, rest in instructions() if name == "ARG"]
    return {name: value for name, equals, value in found if equals}


def test_dockerfile_is_made_of_instructions_in_an_order_that_works():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "COPY", "RUN", "WORKDIR", "CMD"}
    assert names.count("FROM") == 1
    assert names[-1] == "CMD"
    assert set(names[: names.index("FROM")]) == {"ARG"}


def test_dockerfile_uses_arguments_only_where_they_are_known():
    known = set()
    for name, rest in instructions():
        used = set(re.findall(r"\$\{(\w+)\}", rest))
        assert used <= known, f"{name} {rest}"
        if name == "ARG":
            known.add(rest.partition("=")[0])
        elif name == "FROM":
            known = set()  # those before it are for it alone


def test_dockerfile_copies_what_make_wheel_makes_and_docker_sees():
    [(_, rest)] = [line for line in instructions() if line[0] == "COPY"]
    *sources, target = rest.split()
    wheel = f"dist/{PROJECT['name']}-{PROJECT['version']}-py3-none-any.whl"
    assert sorted(sources) == ["constraints.txt", wheel]
    assert "--outdir dist" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert (ROOT / "constraints.txt").is_file()
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all(any(source == name or source.startswith(f"{name}/") for name in shown) for source in sources)
    [(_, install)] = [line for line in instructions() if line[0] == "RUN"]
    for source in sources:
        assert f"{target}{Path(source).name}" in install


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_dockerfile_has_both_variants(variant):
    """The argument is an extra of the package, and a tag that Ray's images have."""
    assert variant in PROJECT["optional-dependencies"]
    assert re.match(rf"faiss-{variant}\b", PROJECT["optional-dependencies"][variant][0])
    [(_, base)] = [line for line in instructions() if line[0] == "FROM"]
    for name, value in (arguments() | {"VARIANT": variant}).items():
        base = base.replace(f"${{{name}}}", value)
    assert fnmatch.fnmatch(base, f"rayproject/ray:*-py3*-{variant}")
    assert base in (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")


def test_dockerfile_ends_in_a_command_that_exists():
    _, command = instructions()[-1]
    words = json.loads(command)
    assert words[0] in PROJECT["scripts"]
    [(_, install)] = [line for line in instructions() if line[0] == "RUN"]
    assert install.endswith("&& quantascope --version")
