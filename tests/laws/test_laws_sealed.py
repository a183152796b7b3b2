"""The laws hold under a key: the same tests, with every store that they open encrypted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from agent_memory import Config, EchoRunner, Memory, rekey
from agent_memory.log.files import KEY_FILE
from tests.laws.test_laws_kinds import CONFIG, opened, text
from tests.parts.logits import answer

KEY = b"a key for the laws of this house"
SEALED = attrs.evolve(CONFIG, key=KEY)
ROOT = Path(__file__).parents[2]
READS_HEADERS = "keeps_no_more_of_a_window"  #: a test that reads files of KV itself
FILES = (
    "tests/laws/test_laws_echo.py",
    "tests/laws/test_laws_kinds.py",
    "tests/laws/test_law_carried.py",
    "tests/laws/test_laws_versions.py",
    "tests/promises/test_crash.py",
    "tests/promises/test_kill_points.py",
    "tests/promises/test_budgets.py",
)


def _everywhere(*command: str) -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join([str(ROOT / "tests/parts/sealed_everywhere"), *sys.path])
    environ = {**os.environ, "PYTHONPATH": folders}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.mlx
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("gemma3_text", (33,)),
        *(
            pytest.param(name, (48, 33, 100), marks=pytest.mark.slow)
            for name in ("llama", "gemma3_text", "qwen3_next", "llama4")
        ),
    ],
)
def test_restored_from_an_encrypted_store_equals_never_stopped(
    name: str, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    with opened(name, ":memory:") as live, opened(name, tmp_path, SEALED) as stored:
        stored._store._catalog.disk.admission._compute_s = lambda n: None  # or cheap KV is not written
        for n in lengths:
            first, second = text(n, n), text(n, n) + text(-n, 21)
            for memory in (live, stored):
                answer(memory, first, max_tokens=1)
            stored.evict()
            wanted, hot = answer(live, second)
            got, reply = answer(stored, second)
            assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("cold", n, "exact")
            assert got == wanted
            assert reply.token_ids == hot.token_ids
        assert stored.stats().damage == 0
        assert stored.verify().ok
    with opened(name, tmp_path, SEALED) as again:
        got, reply = answer(again, second)
        assert (reply.usage.tier, reply.usage.exactness) == ("cold", "exact")
        assert reply.token_ids == hot.token_ids


def _decrypted(store: Path) -> bytes:
    """Return all bytes of a store that is no longer encrypted; its databases have their rows alone, no free pages."""
    rekey(store, KEY, None)
    return b"".join(file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file())


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_forgotten_is_gone_from_what_the_key_opens(tmp_path: Path, is_forgotten: bool) -> None:
    word = "persimmon"
    with Memory(EchoRunner(), tmp_path, config=Config(chunk_tokens=16, key=KEY)) as memory:
        context = memory.context
        context.remember(f"The port of the {word} is 4711")
        agent = memory.agent("a", system="Be brief.")
        agent.say("Which port?", recall=True)
        assert any(word in card.text for message in agent.messages for card in message.recalled)
        memory.flush()
        if is_forgotten:
            assert context.forget(word)
        spelled = memory._runner.tokenizer.encode_plain(word)
    left = _decrypted(tmp_path)
    assert (word.encode() in left) is not is_forgotten
    assert (b"".join(id.to_bytes(4, "little") for id in spelled) in left) is not is_forgotten


@pytest.mark.slow
def test_a_store_that_a_test_opens_is_encrypted_there(tmp_path: Path) -> None:
    program = (
        "import sys; from agent_memory import EchoRunner, Memory\n"
        "with Memory(EchoRunner(), sys.argv[1]) as memory: memory.agent('a').say('x')"
    )
    done = _everywhere("-c", program, str(tmp_path))
    assert not done.stderr
    assert (tmp_path / KEY_FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_tests_of_the_laws_pass_with_every_store_encrypted(file: str) -> None:
    done = _everywhere("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"not {READS_HEADERS}", file)
    assert done.returncode == 0, done.stdout[-4000:]
