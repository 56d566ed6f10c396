"""Clustering on the command line: methods, blocks, names from an endpoint, and what cannot be clustered."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quantascope import connect
from quantascope.api.naming import EndpointNamer, NamingConfig, clean_name
from quantascope.errors import ConfigurationError
from quantascope.storage.run import Run
from tests.command_line import contents


@pytest.mark.parametrize(
    ("flags", "clusterer"),
    [
        (("--method", "graph", "--resolution", "2"), "Leiden"),
        (("--method", "spectral", "--num-quanta", "7"), "Spectral"),
    ],
)
def test_other_methods_store_quanta_that_can_be_asked(cli, run_copy, flags, clusterer):
    out = json.loads(cli("cluster", run_copy, "--name", "other", *flags, "--json")[0])
    client = connect(run_copy, quanta="other")
    assert len(client.quanta()) == out["num_quanta"] > 1
    assert client.run.derived("quanta", "other").facts()["clusterer"] == clusterer
    assert out["persistence"]["num_resamples"] == 20
    assert sum(q.size for q in client.quanta(grain=3)) == 200


def test_codes_over_a_dictionary_and_every_figure_with_its_null(cli, run_copy):
    flags = ("--num-quanta", "6", "--whitening", "full", "--damping", "5", "--codes", "dictionary")
    out = json.loads(cli("cluster", run_copy, "--name", "coded", *flags, "--json")[0])
    assert out["codes"]["over"] == "dictionary"
    assert 0 <= out["codes"]["null_share_several"] <= 1
    assert out["memorised"]["num_quanta"] == sum(q.size >= 5 for q in connect(run_copy, quanta="coded").quanta())
    for quantum in connect(run_copy, quanta="coded").quanta():
        low, high = quantum.facts.self_influence_null
        assert 0 < low <= high
        assert quantum.facts.monogenic is None or 0 < quantum.facts.monogenic <= 1
        assert quantum.facts.monogenic_null is None or 0 < quantum.facts.monogenic_null <= 1
        assert quantum.size == 1 or 0 <= quantum.facts.persistence_null <= 1
    facts = Run.open(run_copy).derived("quanta", "coded").facts()
    assert facts["config"]["whitening"]["damping"] == 5
    assert facts["codes"] == out["codes"]


def test_blocks_are_chosen_and_weighed_when_clustering(cli, refused, run_copy):
    run = Run.open(run_copy)
    names = [block["name"] for block in run.row_set().plan["blocks"]]
    cli("cluster", run_copy, "--name", "mlp", "--blocks", "*mlp*", "--block-weights", "equal", "--num-quanta", "5")
    stored = run.derived("quanta", "mlp")
    assert stored.facts()["blocks"] == [name for name in names if "mlp" in name]
    main = run.derived("quanta", "main")
    assert main.facts()["blocks"] is None
    assert stored.array("centroids").shape[1] < main.array("centroids").shape[1]
    trace = connect(run_copy, quanta="mlp").trace("When John and Mary went to", " the", k=3)
    assert trace.units[0].score == pytest.approx(1, abs=0.01)  # the behaviour's row is cut to the same blocks
    cli("cluster", run_copy, "--name", "unit", "--block-weights", "unit", "--num-quanta", "5")
    trace = connect(run_copy, quanta="unit").trace("When John and Mary went to", " the", k=3)
    assert trace.units[0].score == pytest.approx(1, abs=0.01)  # and its blocks are made unit like theirs
    assert "no block fits" in refused(ConfigurationError, "cluster", run_copy, "--blocks", "*conv*")
    for weights in ("*mlp*", "", "*mlp*=x", "=2", "*mlp*=-1"):
        refused(ConfigurationError, "cluster", run_copy, "--block-weights", weights)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-quanta", "201"), "there are 200 rows"),
        (("--num-quanta", "0"), "at least 1"),
        (("--method", "spectral", "--num-quanta", "200"), "there are 200 rows"),
        (("--method", "spectral"), "give num_quanta"),
        (("--method", "graph", "--num-quanta", "5"), "does not belong"),
        (("--method", "kmeans"), "accepted are"),
        (("--codes", "words"), "centroids, dictionary"),
        (("--damping", "0"), "above 0"),
        (("--rows", "token-loss,token-loss"), "twice"),
        (("--names-model", "m"), "--names-from"),
        (("--names-from", "http://localhost:1"), "--names-model"),
        (("--names-from", "file:///etc/passwd", "--names-model", "m"), "http or https"),
    ],
)
def test_what_cannot_be_clustered_is_refused_before_anything_is_written(refused, run_copy, flags, message):
    before = contents(run_copy)
    assert message in refused(ConfigurationError, "cluster", run_copy, *flags)
    assert contents(run_copy) == before


class Endpoint(ThreadingHTTPServer):
    """Answers like an OpenAI-compatible endpoint, as the test says."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, data = self.server.answer(len(self.server.asked))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data if isinstance(data, bytes) else json.dumps(data).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    opened = []

    def start(answer):
        opened.append(Endpoint(answer))
        return opened[-1]

    yield start
    for server in opened:
        server.shutdown()
        server.server_close()


def saying(text):
    return 200, {"choices": [{"message": {"content": text}}]}


DESCRIBED = [{"label": str(i), "target": "x", "contexts": [("before ", "x")]} for i in range(6)]


def test_names_come_from_the_endpoint_cleaned_and_marked(cli, run_copy, endpoint, monkeypatch):
    monkeypatch.setenv("QUANTASCOPE_NAMES_KEY", "secret-key")
    server = endpoint(lambda turn: saying(f'\n "Closing\x1b[31m\u202e bracket {turn}"\nsecond line <b>'))
    out, _ = cli("cluster", run_copy, "--num-quanta", "4", "--names-from", server.url, "--names-model", "tiny\x07")
    assert "Names were given by tiny at 127.0.0.1 and checked by nobody: 4." in out
    path, key, body = server.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret-key")
    assert "«" in body["messages"][1]["content"]
    client = connect(run_copy)
    assert [q.name for q in client.quanta()] == [f"Closing[31m bracket {i}" for i in (1, 2, 3, 4)]
    assert all(b"secret-key" not in path.read_bytes() for path in run_copy.rglob("*") if path.is_file())
    page = client.report(run_copy.parent / "report.html")
    assert page.exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: (500, b"no"), "HTTPError"),
        (lambda _: (200, b"<html>"), "JSONDecodeError"),
        (lambda _: (200, {"choices": []}), "IndexError"),
        (lambda _: saying("\x00 \n"), "no name"),
        (lambda _: (302, b""), "HTTPError"),
    ],
)
def test_failures_leave_names_out_and_say_so(endpoint, answer, reason):
    server = endpoint(answer)
    namer = EndpointNamer(NamingConfig(url=server.url, model="m"))
    assert namer(DESCRIBED) == [None] * 6
    assert len(server.asked) == 3  # then it is not asked any more
    assert (namer.facts["given"], namer.facts["left_out"]) == (0, 6)
    assert reason in namer.facts["reason"]


def test_one_failure_costs_one_name_and_the_rest_are_not_asked(endpoint):
    server = endpoint(lambda turn: (500, b"") if turn == 2 else saying(f"name {turn}"))
    namer = EndpointNamer(NamingConfig(url=server.url + "/", model="m", max_names=4))
    assert namer(DESCRIBED) == ["name 1", None, "name 3", "name 4", None, None]
    assert namer.facts["left_out"] == 1


def test_an_endpoint_that_is_not_there_costs_nothing_but_the_names(cli, run_copy):
    out, _ = cli("cluster", run_copy, "--num-quanta", "3", "--names-from", "http://127.0.0.1:9", "--names-model", "m")
    assert re.search(r"checked by nobody: 0; 3 left out \(URLError", out)
    assert [q.name for q in connect(run_copy).quanta()] == [None] * 3


def test_clean_names():
    assert clean_name("**Closing a `list`**.") == "Closing a `list"
    assert len(clean_name("a" * 200)) == 80
    assert clean_name("\u200b\n\n") == ""
    with pytest.raises(ConfigurationError):
        NamingConfig(url="http://a", model="m", key="line\nbreak")
