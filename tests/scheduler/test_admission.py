from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import OutOfBudgetError
from agent_memory.scheduler.admission import Admission

TOKEN = 1000  # bytes


def _room(limit_tokens: int, weights_tokens: int) -> Admission:
    return Admission(limit_tokens * TOKEN, TOKEN, weights_tokens * TOKEN)


def test_a_row_reserves_its_worst_case_and_a_step_of_room() -> None:
    room = _room(100_000, 0)
    assert [room.worst_tokens(n, 100) for n in (1, 156, 157, 412, 413)] == [512, 512, 768, 768, 1024]
    for n in range(1, 2000, 37):
        assert n + 100 + 256 <= room.worst_tokens(n, 100) + 255
        assert room.worst_tokens(n, 100) % 256 == 0


def test_what_could_never_run_is_refused_with_both_numbers() -> None:
    room = _room(1024, 0)
    assert room.worst_tokens(700, 68) == 1024
    with pytest.raises(OutOfBudgetError) as caught:
        room.worst_tokens(701, 68)
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (1280 * TOKEN, 1024 * TOKEN)


def test_rows_of_like_length_share_a_group_and_the_padding_is_counted() -> None:
    room = _room(100_000, 1000)
    room.add(1, room.place(2048))
    second = room.place(1536)
    assert (second.group, second.n_bytes) == (0, 2048 * TOKEN), "padded to the longest"
    room.add(2, second)
    assert room.reserved_bytes == 2 * 2048 * TOKEN
    longer = room.place(2304)
    assert (longer.group, longer.n_bytes) == (0, (3 * 2304 - 2 * 2048) * TOKEN), "the others are padded up to it"
    room.remove(1)
    assert room.reserved_bytes == 1536 * TOKEN


def test_a_row_that_would_waste_more_than_a_forward_pass_decodes_apart() -> None:
    room = _room(100_000, 1000)
    room.add(1, room.place(512))
    room.add(2, room.place(512))
    apart = room.place(4096)
    assert (apart.group, apart.n_bytes) == (1, 4096 * TOKEN)
    room.add(3, apart)
    assert room.place(3584).group == 1
    assert room.place(768).group == 0


def test_where_padding_does_not_fit_a_row_decodes_apart() -> None:
    room = _room(2048 + 600, 10**6)
    room.add(1, room.place(2048))
    assert room.place(512).n_bytes == 512 * TOKEN
    assert room.has_room(512 * TOKEN)
    assert not room.has_room(2048 * TOKEN)


@given(st.data(), st.integers(0, 4000))
def test_what_fits_is_never_over_the_limit_and_removal_gives_all_back(data: st.DataObject, weights: int) -> None:
    room = _room(20_000, weights)
    lengths: dict[int, int] = {}
    for row in range(data.draw(st.integers(1, 30))):
        if lengths and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(lengths)))
            room.remove(gone)
            del lengths[gone]
        tokens = data.draw(st.integers(1, 40)) * 256
        place = room.place(tokens)
        before = room.reserved_bytes
        if room.has_room(place.n_bytes):
            room.add(row, place)
            lengths[row] = tokens
            assert room.reserved_bytes == before + place.n_bytes <= room.limit_bytes
        assert room.reserved_bytes >= sum(lengths.values()) * TOKEN
        idle = data.draw(st.integers(0, 30_000)) * TOKEN
        assert room.shortfall(0, idle) == max(0, idle + room.reserved_bytes - room.limit_bytes)
    for row in lengths:
        room.remove(row)
    assert room.reserved_bytes == 0
