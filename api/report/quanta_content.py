"""Units, quanta and the tree above them, as a report's columns."""

from collections import Counter
from typing import Any

import numpy as np

from .payload import Address, DocumentUse, Exemplars, Interfering, Partner, Quanta, Tree, Units
from .source import Source

_TOP_DOCUMENTS = 5
_NULLS = {
    "persistence_null": "persistence_null",
    "influence_low": "self_influence_low",
    "influence_high": "self_influence_high",
    "monogenic_null": "monogenic_null",
}
"""Fields of the payload and their columns, which quanta of older versions lack."""


def unit_columns(source: Source) -> Units:
    """The units that the page shows."""
    place = {key: number for number, key in enumerate(source.window_keys)}
    document, first, last = (source.units[c].to_pylist() for c in ("document", "first_token", "last_token"))
    return Units(
        window=np.array([place[key] for key in zip(document, first, strict=True)]),
        target=np.array(last) - np.array(first),
        quantum=np.asarray(source.units["quantum"]),
        loss=np.asarray(source.units["loss"]),
        cosine=np.asarray(source.units["cosine"]),
        x=np.asarray(source.units["x"]),
        y=np.asarray(source.units["y"]),
        **_codes(source),
    )


def quantum_columns(source: Source) -> Quanta:
    """All quanta, largest first."""
    table = source.quanta.table.to_pydict()
    width = max((len(n) for n in table["neighbours"]), default=0)
    return Quanta(
        target=tuple(table["target"]),
        pattern=tuple(tuple(p) for p in table["pattern"]),
        distinguishing=tuple(tuple(t) for t in table["top_tokens"]),
        phrase=tuple(table["phrase"]),
        size=np.array(table["size"]),
        use=np.array(table["use"], np.float32),
        coherence=np.array(table["coherence"], np.float32),
        mean_loss=np.array(table["mean_loss"], np.float32),
        num_documents=np.array(table["num_documents"]),
        exemplars=tuple(
            Exemplars(centre=source.places(c), edge=source.places(e), counter=source.places(o))
            for c, e, o in zip(table["exemplars"], table["edge"], table["counterexamples"], strict=True)
        ),
        nearest=_padded(table["neighbours"], width, -1),
        nearest_cosine=_padded(table["neighbour_cosines"], width, np.nan),
        top_documents=_top_documents(source),
        loss_curve=source.curves[1] if source.curves else None,
        address=_address(source),
        **_measures(source, table),
    )


def tree_above(source: Source) -> Tree:
    """The merges above the quanta."""
    merges = source.quanta.merges
    persistence = None
    if "interference" in source.quanta.facts:  # the merges above the quanta are the last ones of the whole tree
        persistence = np.asarray(source.quanta.tree_table["persistence"])[-len(merges) or len(source.quanta.leaves) :]
    return Tree(
        persistence=persistence,
        left=merges[:, 0].astype(np.int64),
        right=merges[:, 1].astype(np.int64),
        cosine=merges[:, 2],
        size=merges[:, 3].astype(np.int64),
    )


def _codes(source: Source) -> dict[str, Any]:
    """The second quantum that a unit uses, and how far one says it all; nothing for quanta of older versions."""
    if "code_quanta" not in source.units.column_names:
        return {}
    own = source.units["quantum"].to_pylist()
    codes = source.units["code_quanta"].to_pylist()
    also = [next((q for q in used if q != mine), -1) for used, mine in zip(codes, own, strict=True)]
    return {"also": np.array(also), "monogenic": np.asarray(source.units["monogenic"])}


def _measures(source: Source, table: dict[str, list[Any]]) -> dict[str, Any]:
    """What is measured of each quantum beside its units; nothing for quanta of older versions."""
    if "own_share" not in table:
        return {}
    interferes = zip(*(table[c] for c in ("interferes", "interferes_cosines", "interferes_null")), strict=True)
    partners = zip(*(table[c] for c in ("used_with", "used_with_shared", "used_with_expected")), strict=True)
    named = any(name is not None for name in table["name"])
    return {
        "name": tuple(table["name"]) if named else None,
        "persistence": _column(table["persistence"]),
        "memorised": _column(table["own_share"]),
        "memorised_null": _column(table["own_share_null"]),
        "self_influence": _column(table["self_influence"]),
        "monogenic": _column(table["monogenic"]),
        **{name: _column(table[column]) for name, column in _NULLS.items() if column in table},
        "effective_dimension": _column(table["dimension"]),
        "dimension_low": _column(table["dimension_low"]),
        "dimension_high": _column(table["dimension_high"]),
        "dimension_null": source.quanta.facts["dimension_null"],
        "community": np.array(table["community"]),
        "interferes": tuple(
            tuple(Interfering(quantum=q, cosine=c, null_low=n) for q, c, n in zip(*parts, strict=True))
            for parts in interferes
        ),
        "used_with": tuple(
            tuple(Partner(quantum=q, num_documents=d, expected=e) for q, d, e in zip(*parts, strict=True))
            for parts in partners
        ),
    }


def _top_documents(source: Source) -> tuple[tuple[DocumentUse, ...], ...]:
    counts = [Counter[int]() for _ in range(len(source.quanta.table))]
    for quantum, document in zip(
        source.units["quantum"].to_pylist(), source.units["document"].to_pylist(), strict=True
    ):
        counts[quantum][source.document_place[document]] += 1
    return tuple(
        tuple(DocumentUse(document=d, num_units=n) for d, n in count.most_common(_TOP_DOCUMENTS)) for count in counts
    )


def _address(source: Source) -> Address:
    """Blocks by layer (the first number in their name) and kind (what follows it)."""
    names = [_layer_and_kind(b["name"]) for b in source.quanta.row_set.plan["blocks"]]
    layers = sorted({layer for layer, _ in names}, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0))
    kinds = list(dict.fromkeys(kind for _, kind in names))
    share = source.quanta.address()
    cube = np.full((len(share), len(layers), len(kinds)), np.nan, np.float32)
    for column, (layer, kind) in enumerate(names):
        cube[:, layers.index(layer), kinds.index(kind)] = share[:, column]
    return Address(layers=tuple(layers), kinds=tuple(kinds), share=cube)


def _layer_and_kind(name: str) -> tuple[str, str]:
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ("–", name) if number is None else (parts[number], ".".join(parts[number + 1 :]))


def _padded(rows: list[list[Any]], width: int, fill: float) -> np.ndarray:
    return np.array([row + [fill] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def _column(values: list[float | None]) -> np.ndarray:
    """Infinities stay; what is not known is NaN."""
    return np.array([np.nan if v is None else v for v in values], np.float32)
