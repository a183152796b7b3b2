"""Content addresses: position, ancestry and content all count; a chain is its prefix's chain continued."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.prefix.chunks import chunk_chain, common_prefix, piece_id

ROOT = bytes(32)
tokens = st.lists(st.integers(0, 3), max_size=40)


def test_a_piece_is_the_sha256_of_its_parent_and_its_little_endian_ids():
    assert piece_id(ROOT, [1, 256]) == hashlib.sha256(ROOT + b"\x01\0\0\0\x00\x01\0\0").digest()
    assert piece_id(ROOT, np.array([1, 256], np.int64)) == piece_id(ROOT, [1, 256])


@given(tokens, tokens, st.integers(1, 9))
def test_two_chains_agree_exactly_as_far_as_whole_chunks_of_their_ids_agree(a, b, size):
    left, right = chunk_chain(ROOT, a, size), chunk_chain(ROOT, b, size)
    shared = common_prefix(a, b) // size
    assert len(left) == len(a) // size
    assert [x == y for x, y in zip(left, right, strict=False)] == [
        i < shared for i in range(min(len(left), len(right)))
    ]


@given(tokens, tokens)
def test_the_common_prefix_is_what_a_loop_would_count(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(a, b) == n


def test_another_identity_shares_no_chunk():
    assert not set(chunk_chain(ROOT, range(64), 16)) & set(chunk_chain(b"\1" * 32, range(64), 16))
