"""The words around units: each token's text, from the run's own text or, without it, from the run's tokenizer."""

from functools import lru_cache

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ...storage.documents import StoredDocument
from ...storage.run import Run


class Contexts:
    """Token texts of a run's documents."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tokenizer: Tokenizer | None = None
        self.document = lru_cache(maxsize=256)(run.documents.__getitem__)

    def texts(self, document: int, first: int, last: int) -> list[str]:
        """The text of each token from `first` to `last` (both inclusive), white space as it is."""
        stored = self.document(document)
        first = max(first, 0)
        if stored.text is None:
            return [self._decode(int(i)) for i in stored.tokens[first : last + 1]]
        return [self._between(stored, token, stored.text) for token in range(first, min(last + 1, len(stored.tokens)))]

    def targets(self, units: pa.Table) -> list[str]:
        """The predicted token's text, for token-loss units; the last token's for windows."""
        pairs = zip(units["document"].to_pylist(), units["last_token"].to_pylist(), strict=True)
        return [self.target(document, token) for document, token in pairs]

    def target(self, document: int, token: int) -> str:
        """One token's text; of a token that is part of a character, the character."""
        stored = self.document(document)
        if stored.text is None:
            return self._decode(int(stored.tokens[token]))
        return stored.text[stored.starts[token] : stored.ends[token]]

    def before(self, units: pa.Table, num_tokens: int) -> list[list[str]]:
        """The texts of up to `num_tokens` tokens before each unit's last token, within its window, oldest first."""
        columns = (units[c].to_pylist() for c in ("document", "first_token", "last_token"))
        return [self.texts(d, max(f, t - num_tokens), t - 1) for d, f, t in zip(*columns, strict=True)]

    def token_ids(self, units: pa.Table, offset: int = 0) -> np.ndarray:
        """The id of each unit's last token, or of the one `offset` tokens before it (−1 where there is none)."""
        columns = (units[c].to_pylist() for c in ("document", "first_token", "last_token"))
        return np.array(
            [self.document(d).tokens[t - offset] if t - offset >= f else -1 for d, f, t in zip(*columns, strict=True)],
            np.int64,
        )

    @staticmethod
    def _between(stored: StoredDocument, token: int, text: str) -> str:
        """A token's characters; several tokens that share one character show it once, at the first of them."""
        start, end = int(stored.starts[token]), int(stored.ends[token])
        if token and stored.starts[token - 1] == start and stored.ends[token - 1] == end:
            return ""
        return text[start:end]

    def _decode(self, token: int) -> str:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_str(self._run.documents.tokenizer())
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text
