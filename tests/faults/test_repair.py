"""What is damaged is made again, proved to be what it was, and nothing else is touched."""

import json
import shutil

import numpy as np
import pytest

from quantascope.errors import DamagedRunError, RunBusyError, RunMismatchError, RunNotFoundError
from quantascope.jobs.repair import repair
from quantascope.jobs.verify import verify
from quantascope.storage import Run
from tests.command_line import contents
from tests.here import workers_here
from tests.tiny import save_tiny, write_jsonl

ROWS = "rows/token-loss"
ONE_OF_EACH = (
    f"{ROWS}/gradients/c/0/0",
    f"{ROWS}/block_norms/c/1/0",
    f"{ROWS}/units/00001.parquet",
    f"{ROWS}/commits/00002.json",
    f"{ROWS}/gradients/zarr.json",
    f"{ROWS}/selection.parquet",
    "documents/00000.parquet",
    "documents/tokenizer.json",
    "documents/documents.json",
)


def spoil(run, key):
    path = run / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def mend(run, **options):
    with workers_here():
        return repair(str(run), **options)


def names_below(folder):
    return [p.relative_to(folder.parent).as_posix() for p in folder.rglob("*") if p.is_file()]


def names_of(found):
    return [item.what for item in found.mended]


@pytest.mark.parametrize("key", ONE_OF_EACH)
@pytest.mark.parametrize("how", ["spoilt", "cut", "gone"])
def test_one_file_is_made_again_and_proved(small_copy, key, how):
    if how == "gone" and "commits" in key:
        pytest.skip("without a record the block is not committed: collecting goes on with it")
    whole = contents(small_copy)
    if how == "spoilt":
        spoil(small_copy, key)
    elif how == "cut":
        (small_copy / key).write_bytes(whole[key][:-7])
    else:
        (small_copy / key).unlink()
    assert not verify(str(small_copy)).is_clean
    done = mend(small_copy)
    assert (done.left, done.removed) == ((), ())
    assert len(done.mended) == 1
    assert done.mended[0].proved
    assert contents(small_copy) == whole
    assert verify(str(small_copy)).is_clean


def test_many_at_once_and_only_those(small_copy):
    whole = contents(small_copy)
    for key in ONE_OF_EACH[:-1]:
        spoil(small_copy, key)
    before = {p: p.stat().st_mtime_ns for p in small_copy.rglob("*") if p.is_file()}
    done = mend(small_copy)
    assert not done.left
    assert all(item.proved for item in done.mended)
    assert contents(small_copy) == whole
    touched = {p.relative_to(small_copy).as_posix() for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert touched - {".lock"} == set(ONE_OF_EACH[:-1])


def test_a_sound_run_is_left_alone_and_no_model_is_loaded(small_copy, monkeypatch):
    whole = contents(small_copy)
    monkeypatch.setattr("quantascope.jobs.repair.load_model", lambda _: pytest.fail("nothing needs it"))
    done = mend(small_copy)
    assert (done.mended, done.removed, done.left) == ((), (), ())
    assert contents(small_copy) == whole


def test_what_was_computed_is_removed_and_named(small_copy):
    whole = contents(small_copy)
    spoil(small_copy, "quanta/main/centroids.npy")
    spoil(small_copy, "traces/Mary/facts.json")
    log = next((small_copy / "log").iterdir())
    log.write_bytes(b"{}")
    done = mend(small_copy)
    assert {f.file for f in done.removed} == {"quanta/main", "traces/Mary", f"log/{log.name}"}
    assert any("quantascope cluster" in f.mend for f in done.removed)
    assert not done.left
    gone = ("quanta/main/", "traces/Mary/")
    assert contents(small_copy) == {k: v for k, v in whole.items() if not k.startswith(gone)}
    assert verify(str(small_copy)).is_clean


def test_rows_that_come_out_otherwise_are_said_and_the_old_bytes_kept(small_copy, monkeypatch):
    """As on other hardware: the block is committed anew, and what stood there lies in damaged/."""
    from quantascope.jobs import repair as repairing

    whole = contents(small_copy)
    real = repairing.collect_block

    def collect(*arguments, **options):
        content, tokens = real(*arguments, **options)
        content.rows[:] += np.abs(content.rows).max()
        return content, tokens

    monkeypatch.setattr(repairing, "collect_block", collect)
    spoil(small_copy, f"{ROWS}/units/00001.parquet")
    done = mend(small_copy)
    assert [(item.what, item.proved) for item in done.mended] == [(f"{ROWS} block 1", False)]
    assert "damaged/" in done.mended[0].detail
    kept = small_copy / "damaged" / ROWS
    assert (kept / "gradients/c/1/0").read_bytes() == whole[f"{ROWS}/gradients/c/1/0"]
    found = verify(str(small_copy))
    assert found.is_clean
    assert {n.file for n in found.notes if n.kind == "stale"} == {*("curves/token-loss", "index/main", "quanta/main")}
    assert {n.file for n in found.notes if "kept by a repair" in n.detail} == set(names_below(small_copy / "damaged"))
    assert (
        contents(small_copy).items() >= {k: v for k, v in whole.items() if "1/0" not in k and "00001" not in k}.items()
    )


def test_a_killed_worker_half_way_through_mending_costs_nothing(small_copy, monkeypatch):
    from quantascope.storage.rowset import RowSet

    whole = contents(small_copy)
    for block in range(3):
        spoil(small_copy, f"{ROWS}/gradients/c/{block}/0")
    real = RowSet.mend

    def die(self, block, content, *, keep):
        if block == 1:
            raise KeyboardInterrupt
        return real(self, block, content, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(RowSet, "mend", die)
        with pytest.raises(KeyboardInterrupt):
            mend(small_copy)
    assert names_of(mend(small_copy)) == [f"{ROWS} block 1", f"{ROWS} block 2"]
    assert contents(small_copy) == whole


def test_a_lost_plan_or_manifest_is_made_again_by_the_collect_command(small_copy, small_collection, quick_collect):
    whole = contents(small_copy)
    for key in (f"{ROWS}/set.json", "manifest.json"):
        spoil(small_copy, key)
        broken = (small_copy / key).read_bytes()
        with pytest.raises(DamagedRunError, match="quantascope verify"):
            quick_collect(small_collection(small_copy))
        done = mend(small_copy)
        assert [f.file for f in done.left] == [key]
        assert "collect command" in done.left[0].mend
        assert (small_copy / "damaged" / key).read_bytes() == broken
        assert quick_collect(small_collection(small_copy)).rows_here == 0
        shutil.rmtree(small_copy / "damaged")
        assert contents(small_copy) == whole
    assert verify(str(small_copy)).is_clean


def test_a_plan_made_again_with_other_flags_is_not_taken_for_the_old_one(small_copy, small_collection, quick_collect):
    (small_copy / ROWS / "set.json").unlink()
    quick_collect_of_other = small_collection(small_copy, max_loss=50.0)
    with pytest.raises(DamagedRunError, match="of another plan"):
        quick_collect(quick_collect_of_other)


def test_another_model_or_other_data_is_refused_and_nothing_changes(small_copy, tmp_path, tiny_data):
    for key in (f"{ROWS}/gradients/c/0/0", "documents/00000.parquet"):
        spoil(small_copy, key)
    broken = contents(small_copy)
    other = save_tiny(tmp_path / "other", seed=1)
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    data = write_jsonl(tmp_path / "other.jsonl", [row | {"text": row["text"] + "!"} for row in rows])
    done = mend(small_copy, model=str(other), dataset=str(data))
    assert {f.file for f in done.left} == {f"{ROWS}/gradients/c/0/0", "documents/00000.parquet"}
    assert any("say with --model" in f.detail for f in done.left)
    assert any("comes out otherwise" in f.detail for f in done.left)
    assert contents(small_copy) == broken


def test_what_cannot_be_repaired_says_so(small_copy, tmp_path):
    (small_copy / ROWS / "units/notes.txt").write_text("mine")
    done = mend(small_copy)
    assert [(f.file, f.kind) for f in done.left] == [(f"{ROWS}/units/notes.txt", "foreign")]
    with pytest.raises(RunNotFoundError):
        mend(tmp_path / "nothing")
    with Run.open(small_copy).store.lock(), pytest.raises(RunBusyError):
        mend(small_copy)


def test_the_old_rows_of_another_version_cannot_be_repaired(old_run):
    spoil(old_run, f"{ROWS}/gradients/c/0/0")
    broken = contents(old_run)
    done = mend(old_run)
    assert [f.file for f in done.left] == [f"{ROWS}/gradients/c/0/0"]
    assert "schema 1" in done.left[0].detail
    assert contents(old_run) == broken
    with pytest.raises(RunMismatchError):
        Run.open(old_run).row_set().require_current()


@pytest.mark.ray
def test_workers_on_ray_mend_as_those_here_do(ray_cluster, cli, small_copy):
    whole = contents(small_copy)
    spoil(small_copy, f"{ROWS}/gradients/c/1/0")
    spoil(small_copy, f"{ROWS}/selection.parquet")
    out, err = cli("repair", small_copy, "--workers", "1")
    assert out.splitlines() == [
        f"mended    {ROWS}/selection.parquet: has the digest that its record promised",
        f"mended    {ROWS} block 1: has the digests that its record promised",
    ]
    assert "repair: 1 of 1 blocks" in err
    assert contents(small_copy) == whole
    assert cli("repair", small_copy)[0] == f"{small_copy}: nothing is damaged\n"


def test_the_command_line_says_what_is_left(cli, small_copy):
    spoil(small_copy, f"{ROWS}/set.json")
    out, err = cli("repair", small_copy, "--json", status=DamagedRunError.exit_status)
    assert [f["file"] for f in json.loads(out)["left"]] == [f"{ROWS}/set.json"]
    assert "1 files" in err
