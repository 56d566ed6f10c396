"""Random numbers that depend on names alone: the same on every worker, in any order, for ever.

Counter-based (Philox 4×64, Salmon et al. 2011): the key is a digest of (seed, name, axis), element i comes from the
words that belong to i, so that any stretch of a stream can be made by itself. A golden test holds the numbers.
"""

import hashlib

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8, UInt64

_WORDS_PER_COUNT = 4
_WORD_BITS = 64


def random_words(seed: int, name: str, axis: str, count: int, *, start: int = 0) -> UInt64[np.ndarray, " count"]:
    """`count` words, from word `start` on, of the stream that belongs to (seed, name, axis)."""
    key = hashlib.blake2b(f"{seed}\0{name}\0{axis}".encode(), digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(key, "<u8").copy())
    skipped = start % _WORDS_PER_COUNT
    words: UInt64[np.ndarray, " count"]
    words = generator.advance(start // _WORDS_PER_COUNT).random_raw(count + skipped)[skipped:]
    return words


def random_signs(seed: int, name: str, axis: str, count: int) -> Float32[np.ndarray, " count"]:
    """Independent signs, +1 or −1 with equal probability."""
    top_bit = random_words(seed, name, axis, count) >> np.uint64(63)
    return (1 - 2 * top_bit.astype(np.float32)).astype(np.float32)


def random_bits(seed: int, name: str, axis: str, count: int, *, start: int = 0) -> UInt8[np.ndarray, " count"]:
    """`count` independent bits, 0 or 1, from bit `start` on: 64 in each word, the least significant first."""
    first, skipped = divmod(start, _WORD_BITS)
    words = random_words(seed, name, axis, -(-(skipped + count) // _WORD_BITS), start=first)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return bits[skipped : skipped + count]


def random_integers(seed: int, name: str, axis: str, count: int, *, below: int) -> Int64[np.ndarray, " count"]:
    """Independent integers from 0 up to, not including, `below`; their bias is at most below / 2⁶⁴."""
    return (random_words(seed, name, axis, count) % np.uint64(below)).astype(np.int64)


def random_normals(seed: int, name: str, axis: str, count: int) -> Float64[np.ndarray, " count"]:
    """Independent standard normal numbers: Box & Muller 1958, two from each two words.

    On other hardware equal to the rounding of its logarithm and cosine.
    """
    words = random_words(seed, name, axis, count + count % 2).reshape(-1, 2) >> np.uint64(11)
    uniform = words.astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, 0]))
    angle = 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
