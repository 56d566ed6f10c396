"""The demonstration's corpus: which files it takes, and that a folder is whole or not there."""

from pathlib import Path

import pytest

from quantascope.api.demo import corpus
from quantascope.api.demo.corpus import corpus_fingerprint, read_corpus, standard_library_files, write_corpus
from quantascope.errors import ConfigurationError, DatasetNotFoundError, RunMismatchError


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    files = {
        "zlast.py": b"x = 1\n",
        "json/decoder.py": "# é\ny = 2\n".encode(),
        "test/test_it.py": b"z = 3\n",
        "pkg/tests/test_it.py": b"z = 3\n",
        "idlelib/idle_test/test_it.py": b"z = 3\n",
        "site-packages/other.py": b"z = 3\n",
        "lib2to3/pgen.py": b"z = 3\n",
        "latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\n",
        "broken.py": b"def (:\n",
        "nul.py": b"x = '\0'\n",
        "blank.py": b" \n",
        "notes.txt": b"not Python\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_takes_sources_that_parse_and_no_tests_or_packages(library):
    assert list(standard_library_files(root=library)) == ["json/decoder.py", "zlast.py"]


def test_the_interpreters_own_library_is_found_and_large():
    files = standard_library_files()
    assert len(files) > 400
    assert {"argparse.py", "json/decoder.py", "unittest/mock.py"} <= files.keys()
    assert list(files) == sorted(files)


def test_summary_counts_what_lies_in_the_folder(library, tmp_path):
    folder = tmp_path / "corpus"
    summary = write_corpus(folder, root=library)
    assert (summary.num_files, summary.num_bytes) == (2, len("# é\ny = 2\n".encode()) + len(b"x = 1\n"))
    assert (folder / "json" / "decoder.py").read_text(encoding="utf-8") == "# é\ny = 2\n"
    assert corpus_fingerprint(folder) == summary.fingerprint


def test_writing_again_changes_nothing(library, tmp_path):
    folder = tmp_path / "corpus"
    first = write_corpus(folder, root=library)
    before = (folder / "zlast.py").stat().st_mtime_ns
    assert write_corpus(folder, root=library) == first
    assert (folder / "zlast.py").stat().st_mtime_ns == before


def test_fingerprint_tells_names_and_bytes_apart(library, tmp_path):
    first = write_corpus(tmp_path / "one", root=library)
    (library / "zlast.py").rename(library / "zfirst.py")
    assert write_corpus(tmp_path / "two", root=library).fingerprint != first.fingerprint


def test_a_folder_with_anything_else_is_refused_and_kept(library, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RunMismatchError, match="holds other files"):
        write_corpus(folder, root=library)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_killed_write_leaves_no_folder_and_the_next_succeeds(library, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_corpus(folder, root=library)
    assert not folder.exists()
    (tmp_path / ".corpus.partial" / "leftover.py").write_text("old")
    write_corpus(folder, root=library)
    assert list(read_corpus(folder)) == ["json/decoder.py", "zlast.py"]


def test_max_bytes_bounds_a_draw_that_is_the_same_each_time(tmp_path):
    small = standard_library_files(max_bytes=300_000)
    assert small == standard_library_files(max_bytes=300_000)
    assert 0 < sum(len(content) for content in small.values()) <= 300_000
    assert len({name[0] for name in small}) > 3
    assert small.items() <= standard_library_files(max_bytes=600_000).items()


def test_max_bytes_below_one_file_is_refused(library):
    with pytest.raises(ConfigurationError, match="max_bytes"):
        standard_library_files(root=library, max_bytes=1)


def test_missing_sources_say_what_to_do(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="install the interpreter with its sources"):
        write_corpus(tmp_path / "corpus", root=tmp_path / "nothing")
    with pytest.raises(DatasetNotFoundError, match="No files"):
        read_corpus(tmp_path / "nothing")
