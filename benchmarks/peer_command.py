"""bergson's command line, where installed, on the model and the kind of documents that pipeline.py collects."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from made_up_runs import texts

NUM_DOCUMENTS = (16, 144)
"""Of a short and of a long run: their difference is what its loop takes, the rest is its start."""
MOST_SECONDS = 300


def measure_peer(folder: Path, *, num_tokens: int, seed: int) -> dict[str, float] | str:
    """What it takes on one thread, with documents of so many tokens; or why nothing is known."""
    if importlib.util.find_spec("bergson") is None:
        return "bergson is not installed"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    took = {0: run_seconds([sys.executable, "-c", "import bergson.build"], environment)}
    for count in NUM_DOCUMENTS:
        with (folder / "peer.jsonl").open("w") as out:
            for text in texts(seed, num_documents=count, num_words=2 * num_tokens):  # each is cut at the context
                out.write(json.dumps({"text": text}) + "\n")
        command = [sys.executable, "-m", "bergson", "build", str(folder / f"peer{count}"), "--truncation"]
        given = {"model": folder / "model", "dataset": folder / "peer.jsonl", "projection_dim": 16}
        given |= {"token_batch_size": num_tokens, "filter_modules": "*embed_out*"}
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        took[count] = run_seconds([*command, *flags], environment)
    if not all(took.values()):
        return f"bergson's command line failed, or took more than {MOST_SECONDS} s"
    few, many = NUM_DOCUMENTS
    tokens_per_second = (many - few) * num_tokens / (took[many] - took[few])
    return {
        "import": took[0],
        "start": took[few] - few * num_tokens / tokens_per_second,
        "tokens": many * num_tokens,
        "tokens_per_second": tokens_per_second,
        "all": many * num_tokens / took[many],
    }


def run_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes; 0 where it fails, or takes too long."""
    start = time.perf_counter()
    try:
        subprocess.run(command, env=environment, check=True, timeout=MOST_SECONDS, capture_output=True)
    except subprocess.SubprocessError:
        return 0.0
    return time.perf_counter() - start
