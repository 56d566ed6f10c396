"""The largest quanta of a run, each figure beside its null, and when each formed.

Needs quanta; the times need `quantascope emerge` first (`--units-per-quantum 0` is enough):

    quantascope demo
    quantascope emerge runs/demo --checkpoints CHECKPOINTS --units-per-quantum 0
    python benchmarks/largest_quanta.py runs/demo

One run, one model: a description, and no bar.
"""

import numpy as np
from result import arguments, finish

from quantascope import connect
from quantascope.errors import RunNotFoundError

COLUMNS = [
    "quantum", "label", "units", "documents", "coherence", "comes back", "null of it",
    "own share", "null", "self-influence", "lowest usual", "highest usual", "monogenic",
    "one quantum's", "step", "low", "high",
]  # fmt: skip


def main() -> None:
    parser = arguments("The largest quanta of a run.")
    parser.add_argument("run")
    parser.add_argument("--quanta", default="main")
    parser.add_argument("--num", type=int, default=20)
    options = parser.parse_args()
    client = connect(options.run, quanta=options.quanta)
    times: dict[int, dict[str, object]] = {}
    try:
        times = {int(row["quantum"]): row for row in client.emergence().quanta.to_pylist()}
    except RunNotFoundError:
        print("no emergence yet: `quantascope emerge` finds when quanta formed")
    rows: list[dict[str, object]] = []
    for quantum in client.quanta()[: options.num]:
        facts, time = quantum.facts, times.get(quantum.id, {})
        assert facts is not None, "quanta of an older version: cluster again"
        low, high = facts.self_influence_null or (np.nan, np.nan)
        figures = (
            quantum.id, quantum.label, quantum.size, quantum.num_documents, quantum.coherence, quantum.persistence,
            facts.persistence_null, facts.own_share, facts.own_share_null, facts.self_influence, low, high,
            facts.monogenic, facts.monogenic_null, time.get("midpoint"), time.get("midpoint_low"),
            time.get("midpoint_high"),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, figures, strict=True)))
    finish("largest_quanta", COLUMNS, rows, [], options)


if __name__ == "__main__":
    main()
