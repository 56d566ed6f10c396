"""What `verify` and `copy` say of a run, sound and otherwise, through the library and the command line."""

import errno
import json
import re
import shutil
import tracemalloc
from pathlib import Path

from quantascope.errors import DamagedRunError, NoSpaceError, RunMismatchError, RunNotFoundError
from quantascope.jobs.copying import copy
from quantascope.jobs.verify import verify
from quantascope.storage.checked import encode_json
from quantascope.storage.local import LocalStore
from tests.command_line import contents
from tests.faults.test_repair import ROWS, mend, spoil


def kinds(found):
    return {f.file: f.kind for f in found}


def test_a_sound_run_is_clean_and_every_file_was_read(cli, small_run):
    files = [p for p in small_run.rglob("*") if p.is_file() and p.name != ".lock"]
    out, err = cli("verify", small_run)
    size = sum(p.stat().st_size for p in files) / 1e6
    assert out == f"{small_run}: {len(files)} files read through, {size:.1f} MB\nevery file is as it was written\n"
    assert f"verify: {len(files)} of {len(files)} files" in err
    found = json.loads(cli("verify", small_run, "--json")[0])
    assert (found["num_files"], found["findings"], found["notes"]) == (len(files), [], [])


def test_each_kind_of_damage_has_its_name_and_its_command(cli, small_copy):
    spoil(small_copy, f"{ROWS}/gradients/c/0/0")
    whole = (small_copy / ROWS / "gradients/c/1/0").read_bytes()
    (small_copy / ROWS / "gradients/c/1/0").write_bytes(whole[:100])
    (small_copy / ROWS / "units/00002.parquet").unlink()
    (small_copy / ROWS / "units/99999.parquet").write_bytes(b"?")
    (small_copy / "documents/00000.parquet").write_bytes(b"")
    (small_copy / "index/main/rows.faiss").unlink()
    (small_copy / "notes.txt").write_text("mine")
    (small_copy / ".tmp").mkdir(exist_ok=True)
    (small_copy / ".tmp/1-abc").write_bytes(b"half")
    out, err = cli("verify", small_copy, "--json", status=DamagedRunError.exit_status)
    found = json.loads(out)
    assert {f["file"]: f["kind"] for f in found["findings"]} == {
        f"{ROWS}/gradients/c/0/0": "damaged",
        f"{ROWS}/gradients/c/1/0": "torn",
        f"{ROWS}/units/00002.parquet": "missing",
        f"{ROWS}/units/99999.parquet": "foreign",
        "documents/00000.parquet": "torn",
        "index/main/rows.faiss": "missing",
    }
    assert {f["file"]: f["kind"] for f in found["notes"]} == {"notes.txt": "beside", ".tmp/1-abc": "unfinished"}
    mends = {f["file"]: f["mend"] for f in found["findings"]}
    assert mends["index/main/rows.faiss"] == (
        f"quantascope repair {small_copy}, then quantascope cluster {small_copy} --name main"
    )
    assert mends[f"{ROWS}/units/99999.parquet"] == "move it out of the run"
    assert "6 files that are not as they were written" in err
    text, _ = cli("verify", small_copy, status=DamagedRunError.exit_status)
    assert re.search(rf"^torn +{ROWS}/gradients/c/1/0: it ends after 100 of {len(whole)} bytes$", text, re.MULTILINE)


def test_a_sector_that_the_disk_does_not_give_is_damage(small_copy, monkeypatch):
    real, bad = Path.open, small_copy / ROWS / "gradients/c/0/0"

    def refuse(self, *arguments, **options):
        if self == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    found = verify(str(small_copy)).findings
    assert [(f.file, f.kind) for f in found] == [(f"{ROWS}/gradients/c/0/0", "damaged")]
    assert "Input/output error" in found[0].detail


def test_what_is_not_finished_is_no_damage(small_copy):
    shutil.rmtree(small_copy / "quanta")
    for room in ("index", "evidence", "traces", "curves"):
        shutil.rmtree(small_copy / room)
    (small_copy / ROWS / "commits/00001.json").unlink()
    found = verify(str(small_copy))
    assert found.is_clean
    assert kinds(found.notes) == {
        ROWS: "unfinished",
        f"{ROWS}/gradients/c/1/0": "unfinished",
        f"{ROWS}/block_norms/c/1/0": "unfinished",
        f"{ROWS}/units/00001.parquet": "unfinished",
    }
    (small_copy / "rows/window").mkdir()
    (small_copy / "rows/window/selection.parquet").write_bytes(b"begun")
    assert verify(str(small_copy)).is_clean


def test_a_damaged_record_or_plan_is_named_alone(small_copy):
    """What it names cannot be told from foreign files then, and is not called so."""
    for key in (f"{ROWS}/commits/00001.json", f"{ROWS}/set.json", "quanta/main/facts.json", "documents/documents.json"):
        good = (small_copy / key).read_bytes()
        for bad in (good[:-9], good.replace(b"s", b"z", 1)):
            (small_copy / key).write_bytes(bad)
            assert list(kinds(verify(str(small_copy)).findings)) == [key]
        (small_copy / key).unlink()
        found = verify(str(small_copy))
        if "commits" not in key:
            assert kinds(found.findings) == {key: "missing"}
        (small_copy / key).write_bytes(good)


def test_what_is_no_run_or_of_a_newer_version_is_refused(refused, small_copy, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (["verify"], ["repair"], ["copy"]):
        to = [tmp_path / "to"] if command == ["copy"] else []
        refused(RunNotFoundError, *command, tmp_path / "empty", *to)
    manifest = json.loads((small_copy / "manifest.json").read_text())
    manifest.pop("checksum")
    (small_copy / "manifest.json").write_bytes(encode_json(manifest | {"schema_version": 99}))
    for command in (["verify"], ["info"], ["cluster"]):
        message = refused(RunMismatchError, *command, small_copy)
        assert "schema version 99, this quantascope reads up to 2" in message


def test_memory_does_not_grow_with_the_files(small_copy):
    """An index larger than the bound is read through piece by piece."""
    from quantascope.storage import Run

    run = Run.open(small_copy)
    size = 64_000_000
    run.derived("index", "large").write({"rows": "token-loss"}, source="x", files={"rows.faiss": bytes(size)})
    tracemalloc.start()
    found = verify(str(small_copy))
    copy(str(small_copy), str(small_copy.parent / "to"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.is_clean
    assert found.num_bytes > size
    assert peak < size / 4


def test_a_copy_is_the_run_and_says_what_it_left_out(cli, small_copy, tmp_path):
    whole = contents(small_copy)
    (small_copy / "notes.txt").write_text("mine")
    out, err = cli("copy", small_copy, tmp_path / "to")
    assert contents(tmp_path / "to") == whole
    assert sorted((tmp_path / "to/log").iterdir()) != []
    assert re.search(r"is a proved copy of .*: \d+ files, 0\.\d MB, \d+ copied now; left out: notes\.txt\n", out)
    assert "prove: " in err
    cli("verify", tmp_path / "to")
    again = json.loads(cli("copy", small_copy, tmp_path / "to", "--json")[0])
    assert again["copied_here"] == 0
    spoil(tmp_path / "to", f"{ROWS}/gradients/c/0/0")
    assert json.loads(cli("copy", small_copy, tmp_path / "to", "--json")[0])["copied_here"] == 1
    assert contents(tmp_path / "to") == whole


def test_a_copy_follows_its_run(cli, small_copy, tmp_path):
    cli("copy", small_copy, tmp_path / "to")
    cli("cluster", small_copy, "--num-quanta", "4")
    (small_copy / "rows/token-loss/commits/00002.json").stat()
    cli("copy", small_copy, tmp_path / "to")
    assert contents(tmp_path / "to") == contents(small_copy)


def test_a_copy_of_a_damaged_run_is_refused_and_is_no_run(refused, cli, small_copy, tmp_path):
    whole = contents(small_copy)
    spoil(small_copy, f"{ROWS}/gradients/c/2/0")
    assert "gradients/c/2/0 is damaged" in refused(DamagedRunError, "copy", small_copy, tmp_path / "to")
    assert "copy that was not finished" in refused(RunNotFoundError, "info", tmp_path / "to")
    assert cli("ls", tmp_path / "to")[0].startswith("no runs")
    mend(small_copy)
    cli("copy", small_copy, tmp_path / "to")
    assert contents(tmp_path / "to") == whole


def test_a_copy_takes_no_other_place(refused, small_copy, old_run, tmp_path, monkeypatch):
    other, before = old_run, contents(old_run)
    assert "holds another run" in refused(RunMismatchError, "copy", small_copy, other)
    assert contents(other) == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    assert "other things" in refused(RunNotFoundError, "copy", small_copy, tmp_path / "folder")
    assert "lies in it" in refused(RunMismatchError, "copy", small_copy, small_copy / "rows")
    assert "the run itself" in refused(RunMismatchError, "copy", small_copy, small_copy)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda _: 1000)
    assert "free some space" in refused(NoSpaceError, "copy", small_copy, tmp_path / "to")
