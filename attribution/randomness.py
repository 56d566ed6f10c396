"""Random numbers that depend on names alone: the same on every worker, in any order, for ever.

Counter-based (Philox 4×64, Salmon et al. 2011): the key is a digest of (seed, name, axis), element i is the i-th
word. A golden test holds the numbers.
"""

import hashlib

import numpy as np
from jaxtyping import Float32, UInt64


def random_words(seed: int, name: str, axis: str, count: int) -> UInt64[np.ndarray, " count"]:
    """The first `count` words of the stream that belongs to (seed, name, axis)."""
    key = hashlib.blake2b(f"{seed}\0{name}\0{axis}".encode(), digest_size=16).digest()
    words: UInt64[np.ndarray, " count"] = np.random.Philox(key=np.frombuffer(key, "<u8").copy()).random_raw(count)
    return words


def random_signs(seed: int, name: str, axis: str, count: int) -> Float32[np.ndarray, " count"]:
    """Independent signs, +1 or −1 with equal probability."""
    top_bit = random_words(seed, name, axis, count) >> np.uint64(63)
    return (1 - 2 * top_bit.astype(np.float32)).astype(np.float32)
