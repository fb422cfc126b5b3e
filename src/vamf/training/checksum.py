"""Digests of trees of arrays, and a checksum that is computed where the arrays are.

The checksum does not depend on how the arrays lie on devices. With an array's words w_i of 32 bits, their linear
index i, a salt of the array's place, shape and type, and the mixing m of MurmurHash3,

    checksum = sum over arrays of (salt + sum_i m(w_i xor h(i)))   mod 2^32,     h(i) = m(i xor salt),

twice, the second time with m(h(i) + 9E3779B9) for h(i). Whole numbers add up to the same in any order, and m is one to
one: a change within one word always changes both sums, others go undetected once in 2^64.
"""

import hashlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**18
"""Words of a host array that are summed at once: they stay in the processor's cache."""


def fingerprint(*parts: Any) -> str:
    """A digest of text and trees of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(_digest({name: np.asarray(leaf) for name, leaf in named_leaves(part).items()}).encode())
    return digest.hexdigest()


def checksum(arrays: dict[str, Any]) -> str:
    """The checksum of arrays under names, as 16 hexadecimal digits; computed where the arrays are."""
    names = sorted(arrays)
    salts = [_salt(number, arrays[name]) for number, name in enumerate(names)]
    device_numbers = [number for number, name in enumerate(names) if isinstance(arrays[name], jax.Array)]
    host_numbers = [number for number in range(len(names)) if number not in device_numbers]
    sums = [_on_host(np.asarray(arrays[names[number]]), salts[number]) for number in host_numbers]
    if device_numbers:
        on_devices = _on_devices(
            [arrays[names[number]] for number in device_numbers], [salts[number] for number in device_numbers]
        )
        sums.append(np.asarray(on_devices))
    return "".join(f"{part:08x}" for part in np.stack(sums).sum(axis=0, dtype=np.uint32).tolist())


def _salt(number: int, array: Any) -> np.ndarray:
    return np.array([zlib.crc32(f"{number} {array.shape} {array.dtype}".encode())], np.uint32)


@jax.jit
def _on_devices(arrays: list[jax.Array], salts: list[jax.Array]) -> jax.Array:
    """Both sums over all arrays; no array changes its layout for it."""
    total = jnp.zeros(2, jnp.uint32)
    for array, salt in zip(arrays, salts, strict=True):
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
        words = array if array.dtype == bool else jax.lax.bitcast_convert_type(array, kind)
        index = jnp.zeros(words.shape, jnp.uint32)
        for axis, length in enumerate(words.shape):
            index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        hashes = _hash_words(words.astype(jnp.uint32), index, salt[0])
        total += salt[0] + jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in hashes])
    return total


def _on_host(array: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Both sums over an array, block by block."""
    kind = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(array).reshape(-1).view(kind)
    total = np.array([*salt, *salt])
    for start in range(0, words.size, BLOCK):
        block = words[start : start + BLOCK].astype(np.uint32)
        index = np.arange(start, start + block.size, dtype=np.uint64).astype(np.uint32)
        total += np.array([part.sum(dtype=np.uint32) for part in _hash_words(block, index, salt)])
    return total


def _hash_words(words, index, salt) -> tuple[Any, Any]:
    """m(w xor h) with either hash."""
    hashed = _mix(index ^ salt)
    return _mix(words ^ hashed), _mix(words ^ _mix(hashed + np.uint32(0x9E3779B9)))


def _mix(x):
    """The finaliser of MurmurHash3: every bit of x changes every bit of the result."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def matches(arrays: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether arrays are those that were written; earlier versions stored a SHA-256 digest."""
    return checksum(arrays) == facts["checksum"] if "checksum" in facts else _digest(arrays) == facts["digest"]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under names that sort in their order: the same on disk whatever the tree's types."""
    return {f"{index:05d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
