"""What the documentation says is true: its code runs, its commands and flags exist, its links lead somewhere.

Code and commands run in a folder where the example (`examples/own_model.py own`) has been run, since that is what the
documentation tells its readers to do first. What is not run is in NOT_RUN, with the reason.
"""

import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

import quantascope
from quantascope import errors
from quantascope.api.cli import app

ROOT = Path(__file__).parent.parent
ROOMS = ("attribution", "storage", "jobs", "api", "tests", "examples", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / room / "README.md" for room in ROOMS)])
COMMANDS = get_command(app).commands

NOT_RUN = {
    "make ": "takes minutes, or makes an environment; that the target exists is checked",
    "source .venv/bin/activate": "the tests run in an environment already",
    "python examples/own_model.py own": "the fixture has run it: it makes the folder that everything else runs in",
    "python benchmarks/": "takes minutes; that the file exists is checked",
    "quantascope demo": "takes minutes; `make test` runs the quick one",
    "quantascope collect --model own/model --dataset own/data.jsonl --device cuda": "needs a GPU",
    "quantascope collect --model own/model --dataset own/data.jsonl --out /runs/own": "needs a cluster",
    "export RAY_AUTH": "belongs to the command on the cluster after it",
    "ray ": "needs a cluster; that command and flags exist is checked",
    "cd api/report/web": "needs Node and a network",
    "quantascope import bergson-index": "needs bergson's index; tests/jobs/test_importing.py imports one",
    "quantascope cluster runs/theirs": "belongs to the import before it",
    "docker ": "needs Docker; tests/test_deploy.py checks the Dockerfile",
    "kubectl ": "needs a cluster; tests/test_deploy.py checks the manifests",
    "KUBERAY_CRDS=": "needs KubeRay's definitions",
}
"""Beginning of a command → why the tests do not run it."""


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code blocks of these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands(page: Path) -> list[str]:
    """The lines of the shell blocks."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def reason_not_to_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_any(found):
    return pytest.mark.parametrize("page", [page for page in PAGES if found(page)], ids=name_of)


@pytest.fixture(scope="module")
def workplace(ray_cluster, tmp_path_factory):
    """A folder in which the example has made `own`, as the pages tell their readers to."""
    folder = tmp_path_factory.mktemp("docs")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is quickest so, above all beside other processes
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["own_model.py", "own"])
        runpy.run_path(str(ROOT / "examples" / "own_model.py"), run_name="__main__")
        yield folder
    torch.set_num_threads(num_threads)


@pytest.mark.ray
def test_example_leaves_a_report_of_skills_that_the_data_has(workplace, capsys):
    client = quantascope.connect(workplace / "own" / "run")
    targets = {quantum.target for quantum in client.quanta()}
    assert {" five", " woof"} <= targets
    trace = client.trace("The dog says woof. The cow says", " moo", k=5)
    assert {unit.target for unit in trace.units} == {" moo"}
    assert (workplace / "own" / "report.html").stat().st_size > 50_000


@pytest.mark.ray
@with_any(lambda page: blocks(page, "python"))
def test_python_code_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), namespace)


@pytest.mark.ray
@with_any(lambda page: any(reason_not_to_run(c) is None for c in commands(page)))
def test_commands_run(page, workplace, monkeypatch, tmp_path):
    """On copies of the example's run: `collect` finds that nothing is left to do, and checks that it is the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").symlink_to(workplace / "own")
    for name in ("own", "quick", "two"):
        shutil.copytree(workplace / "own" / "run", tmp_path / "runs" / name)
    for command in commands(page):
        if reason_not_to_run(command) is None:
            program, *arguments = shlex.split(command)
            assert program == "quantascope", f"{command}: say in NOT_RUN why it is not run"
            app(arguments, standalone_mode=False)


def test_what_is_not_run_is_still_in_the_documentation():
    everything = [command for page in PAGES for command in commands(page)]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in everything), f"NOT_RUN has {start!r}, no page does"


@with_any(commands)
def test_commands_and_flags_in_shell_blocks_exist(page):
    for command in commands(page):
        words = shlex.split(command)
        while "--" in words and words[0] == "ray":  # what `ray job submit -- …` runs is a command too
            at = words.index("--")
            require_flags(words[:at])
            words = words[at + 1 :]
        require_flags(words)


def require_flags(words: list[str]) -> None:
    """AssertionError unless program, subcommand and flags exist."""
    if words[0] == "quantascope":
        assert words[1] in COMMANDS, words[1]
        known = {flag for option in COMMANDS[words[1]].params for flag in option.opts}
    elif words[0] == "ray":
        known = ray_flags(words)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
        known = set()
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
        sources = [(ROOT / name).read_text(encoding="utf-8") for name in (words[1], "benchmarks/result.py")]
        known = {flag for source in sources for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source)}
    else:
        return
    given = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert given <= known, f"{' '.join(words)}: {', '.join(sorted(given - known))} does not exist"


def ray_flags(words: list[str]) -> set[str]:
    from ray.scripts.scripts import cli

    found = cli
    for word in words[1:]:
        if hasattr(found, "commands"):
            assert word in found.commands, f"ray has no {word}"
            found = found.commands[word]
    return {flag for option in found.params for flag in option.opts}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_flags_in_the_text_exist(page):
    every_flag = {flag for command in COMMANDS.values() for option in command.params for flag in option.opts}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.split()
        if words[0] == "quantascope" and len(words) > 1:
            require_flags([word for word in words if word != "…"])
        elif words[0] in ("ray", "make", "python") and len(words) > 1 and words[1] != "-m":
            require_flags(words)
        elif words[0].startswith("--"):
            assert words[0] in every_flag | {"--help", "--json"}, f"{words[0]} is no flag of any command"


def test_readme_names_every_command():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in COMMANDS if f"quantascope {name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} in {name_of(page)}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target} in {name_of(page)}"


def slug(heading: str) -> str:
    """The anchor that is made of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_version_is_the_same_everywhere():
    version = quantascope.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d[^\]]*)\]", changes, re.MULTILINE)[0] == version
    assert set(re.findall(r"quantascope-(\d+\.\d+\.\d+)", read_cluster_text())) == {version}
    assert f"Version {version} " in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def errors_table() -> str:
    """The table of docs/errors.md, from the classes."""
    found = [
        error
        for error in vars(errors).values()
        if inspect.isclass(error)
        and issubclass(error, errors.QuantascopeError)
        and error is not errors.QuantascopeError
    ]
    lines = ["| status | error | is also a | when |", "|---|---|---|---|"]
    for error in sorted(found, key=lambda e: e.exit_status):
        also = error.__bases__[1].__name__
        lines.append(f"| {error.exit_status} | `{error.__name__}` | `{also}` | {inspect.cleandoc(error.__doc__)} |")
    return "\n".join(lines)


def test_errors_page_has_the_table_of_all_errors():
    assert errors_table() in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), errors_table()


def test_exit_statuses_are_told_apart():
    found = [line.split(" | ")[0] for line in errors_table().splitlines()[2:]]
    assert len(found) == len(set(found))


def read_cluster_text() -> str:
    return (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")


def test_cluster_file_is_what_ray_accepts():
    import jsonschema
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(read_cluster_text()), schema)


def test_cluster_keeps_its_head_and_may_lose_its_workers():
    cluster = yaml.safe_load(read_cluster_text())
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["resources"]["GPU"] == 1
        assert 0 < worker["min_workers"] < worker["max_workers"] <= cluster["max_workers"]


def test_cluster_has_a_token_and_the_tested_ray():
    cluster = yaml.safe_load(read_cluster_text())
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands_ in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert [c for c in commands_ if "ray start" in c and not c.startswith("RAY_AUTH_MODE=token ")] == []
    tested = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)", read_cluster_text())) == {tested[1]}


def test_pre_commit_accepts_its_configuration():
    arguments = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
