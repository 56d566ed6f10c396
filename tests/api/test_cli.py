import base64
import io
import json
import re
import subprocess
import sys
import time
import zlib

import pytest

from quantascope.errors import ConfigurationError, RunNotFoundError
from tests.command_line import SCRIPT, clean_environment, contents

COMMANDS = {
    "demo": "--out --cache --quick --workers",
    "collect": (
        "--model --dataset --out --unit --name --revision --dtype --device --trust-remote-code --split --config-name "
        "--dataset-revision --text-field --prompt-field --completion-field --messages-field --id-field --label "
        "--bad-rows --max-documents --no-text --window-tokens --loss-reduction --group-by "
        "--max-loss --max-units --max-per-window --scan-tokens "
        "--projection --dim --loss --seed --precondition --checkpoint-activations "
        "--shares --blocks --require-coverage --rows-per-block --batch-tokens "
        "--workers "
        "--threads-per-worker --gpus-per-worker --ray-address --allow-no-token --metrics-port --dry-run --json"
    ),
    "cluster": (
        "RUN --name --rows --method --num-quanta --min-cosine --resolution --min-size --blocks --block-weights "
        "--whitening --damping --codes --names-from --names-model --activations --seed --json"
    ),
    "trace": "RUN prompt completion -k --num-units --save --model --quanta --json",
    "report": "RUN --out --quanta",
    "info": "RUN --json",
    "ls": "folder --json",
    "rm": "RUN --rows --quanta --ledger --yes",
    "verify": "RUN --json",
    "repair": "RUN --model --dataset --workers --json",
    "copy": "RUN TO --json",
    "ledger": "RUN --name --depth --module --documents --kind --html --json",
    "emerge": (
        "RUN --checkpoints --over --quanta --scale --units-per-quantum --resamples --seed --device --workers --limit "
        "--json"
    ),
    "compare": "RUN OTHER --seed-run --lesion --name --quanta --level --flips --device --workers --limit --json",
    "export": "RUN --what --to --format --rows --quanta --json",
    "import": (
        "STORE --out --format --checkpoint --name --dataset --split --config-name --text-field --prompt-field "
        "--completion-field --messages-field --id-field --label --tokenizer --json"
    ),
    "index": "RUN --kind --name --rows --quanta --lists --bits --code-bytes --recall --seed --workers --json",
}
"""Every command with its arguments and flags, in the order of its help."""
HEAVY = ("torch", "transformers", "ray", "datasets", "pyarrow", "zarr", "faiss", "sklearn")


class Terminal(io.StringIO):
    """What a person types at a terminal."""

    def isatty(self):
        return True


def payload(page):
    """The data of a report as its script unpacks it."""
    found = re.findall(r"id=\"(?:texts|numbers)\">([A-Za-z0-9+/=]+)</script>", page.read_text())
    return b"".join(zlib.decompress(base64.b64decode(text)) for text in found)


def seconds_of(*command, times):
    found = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=clean_environment())
        found.append(time.perf_counter() - start)
    return min(found)


def test_commands_and_flags_stay_as_they_are(cli):
    top, _ = cli("--help")
    assert re.findall(r"^  ([a-z]+) ", top.partition("Commands:")[2], re.MULTILINE) == list(COMMANDS)
    for command, flags in COMMANDS.items():
        text, _ = cli(command, "--help")
        found = re.findall(r"^  ([\[{]?[\w]+[\]}]? <|-[^<\[]*?(?:  | <|$))", text, re.MULTILINE)
        names = [name for line in found for name in re.findall(r"--?[a-z][\w-]*|\w+", line)]
        assert names == [*flags.split(), "--help"], command
        assert len(re.findall(r"^  -.*\n?", text, re.MULTILINE)) == sum(f[:2] == "--" for f in flags.split()) + 1


def test_help_and_connecting_are_quick_and_load_nothing_heavy(clustered_run):
    assert seconds_of(SCRIPT, "--help", times=5) < 0.5
    program = f"import quantascope; quantascope.connect({str(clustered_run)!r})"
    assert seconds_of(sys.executable, "-c", program, times=3) < 1
    look = f"import quantascope.api.cli, sys; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_the_version_and_what_is_no_command(cli, refused):
    assert cli("--version")[0] == "0.1.0\n"
    assert cli(status=2)[1].startswith("Usage: quantascope")
    assert "colect" in refused(ConfigurationError, "colect")
    assert "--model" in refused(ConfigurationError, "collect", "--out", "run")
    assert "--bogus" in refused(ConfigurationError, "info", "run", "--bogus")
    assert "valid integer" in refused(ConfigurationError, "collect", "--dim", "x")


def test_collecting_again_does_nothing_and_says_so(cli, collect_flags, run_copy):
    before = contents(run_copy)
    out, _ = cli(*collect_flags, "--out", run_copy, "--json")
    assert {k: json.loads(out)[k] for k in ("num_units", "rows_here", "refused")} == {
        "num_units": 200,
        "rows_here": 0,
        "refused": 0,
    }
    assert "200 rows of 128 numbers" in cli(*collect_flags, "--out", run_copy)[0]
    assert contents(run_copy) == before


def test_a_dry_run_says_rows_bytes_and_hours(cli, collect_flags, tmp_path):
    out, _ = cli(*collect_flags, "--out", tmp_path / "run", "--dry-run")
    assert re.fullmatch(r"about 200 rows of 128 numbers, 0\.1 MB, about 0\.0\d hours\n", out)
    estimate = json.loads(cli(*collect_flags, "--out", tmp_path / "run", "--dry-run", "--json")[0])
    assert estimate["num_units"] == 200
    assert not (tmp_path / "run").exists()


def test_cluster_says_what_it_found_beside_its_null(cli, run_copy):
    out, err = cli("cluster", run_copy, "--name", "six", "--num-quanta", "6", "--whitening", "none")
    assert out.startswith(f"6 quanta of 200 units in {run_copy} (six)\n")
    assert re.search(r"quanta +next token 0\.\d{3} \(95 % .*; 99th percentile of shuffles 0\.\d{3}\)", out)
    assert "cluster: 6 of 6 steps" in err
    again = json.loads(cli("cluster", run_copy, "--name", "again", "--num-quanta", "6", "--json")[0])
    assert again["num_quanta"] == 6
    rivals = ["target token", "previous token", "words before (tf–idf)", "random directions"]
    assert [row["name"] for row in again["evidence"]] == ["quanta", *rivals]
    first, second = contents(run_copy / "quanta/six"), contents(run_copy / "quanta/again")
    assert first.keys() == second.keys()
    assert first != second


def test_trace_as_text_as_json_and_kept_for_the_report(cli, run_copy, tmp_path):
    text, _ = cli("trace", run_copy, "When John and Mary went to", " the", "-k", "3", "--save", "to the store")
    assert text.startswith("When·John·and·Mary·went·to [·the]  loss ")
    for title in ("quanta", "supporting units", "opposing units", "by words alone (BM25)"):
        assert f"\n{title}\n" in text
    assert re.search(r"supporting units\n 1\.000 .*When·John·and·Mary·went·to \[·the\]\n", text)
    found = json.loads(cli("trace", run_copy, "When John and Mary went to", " the", "-k", "3", "--json")[0])
    assert [len(found[k]) for k in ("units", "opposing", "windows")] == [3, 3, 0]
    assert found["units"][0]["score"] == pytest.approx(1, abs=0.01)
    assert [p.name for p in (run_copy / "traces").iterdir()] == ["to-the-store"]
    cli("report", run_copy, "--out", tmp_path / "with.html")
    assert b"to the store" in payload(tmp_path / "with.html")


def test_report_writes_one_page(cli, clustered_run, tmp_path):
    out, _ = cli("report", clustered_run, "--out", tmp_path / "report.html")
    assert re.fullmatch(rf"{tmp_path}/report\.html \(\d\.\d MB\)\n", out)
    assert (tmp_path / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_info_and_ls_say_what_there_is(cli, clustered_run, tmp_path):
    out, _ = cli("info", clustered_run)
    assert "8 documents" in out
    assert "rows token-loss: 200 units × 128" in out
    assert "50 of 50 blocks" in out
    assert out.endswith("quanta: main\n")
    assert json.loads(cli("info", clustered_run, "--json")[0])["row_sets"]["token-loss"]["units"] == 200
    assert cli("ls", clustered_run.parent)[0] == f"{clustered_run}\n"
    assert json.loads(cli("ls", clustered_run.parent, "--json")[0]) == {"runs": [str(clustered_run)]}
    assert cli("ls", tmp_path)[0] == f"no runs below {tmp_path}\n"


def test_rm_removes_nothing_unless_somebody_says_yes(cli, refused, run_copy, monkeypatch):
    before = contents(run_copy)
    assert "--yes" in refused(ConfigurationError, "rm", run_copy)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    cli("rm", run_copy, status=ConfigurationError.exit_status)
    assert contents(run_copy) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert f"removed the run {run_copy}" in cli("rm", run_copy)[0]
    assert not run_copy.exists()


def test_rm_of_a_part_leaves_the_rest(cli, refused, run_copy):
    before = contents(run_copy)
    assert "not several" in refused(ConfigurationError, "rm", run_copy, "--rows", "a", "--quanta", "b", "--yes")
    assert "it has main" in refused(RunNotFoundError, "rm", run_copy, "--quanta", "other", "--yes")
    assert "it has token-loss" in refused(RunNotFoundError, "rm", run_copy, "--rows", "other", "--yes")
    refused(ConfigurationError, "rm", run_copy, "--rows", "../rows", "--yes")
    assert contents(run_copy) == before
    assert f"removed quanta main of {run_copy}\n" == cli("rm", run_copy, "--quanta", "main", "--yes")[0]
    left = {k: v for k, v in before.items() if k.split("/")[0] in ("manifest.json", "documents", "rows")}
    assert contents(run_copy) == left
    cli("rm", run_copy, "--rows", "token-loss", "--yes")
    assert contents(run_copy) == {k: v for k, v in left.items() if not k.startswith("rows/")}


def test_rm_leaves_foreign_files_and_refuses_other_folders(cli, refused, run_copy, tmp_path):
    (run_copy / "notes.txt").write_text("mine")
    cli("rm", run_copy, "--yes")
    assert [p.name for p in run_copy.iterdir()] == ["notes.txt"]
    assert "holds no run" in refused(RunNotFoundError, "rm", run_copy, "--yes")
    assert (run_copy / "notes.txt").read_text() == "mine"
