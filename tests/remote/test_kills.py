"""A writer that is killed in the middle of a put leaves no object, or a whole one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_memory.remote.bucket import Bucket
from agent_memory.remote.objects import read_object
from tests.parts.putting import N_NAMES, SECRET
from tests.parts.s3 import s3_server

ROOT = Path(__file__).parents[2]


def check_whole(bucket: Bucket) -> int:
    """Open every object that is visible; return how many there are."""
    names = [f"v1/{number}" for number in range(N_NAMES)]
    found = [name for name, size in zip(names, bucket.sizes(names, timeout_s=60), strict=True) if size is not None]
    for name in found:
        body = bucket.get(name)
        assert body is not None
        there = read_object(name, SECRET, body)
        assert there.header == {"name": name}
        assert there.parts()
    return len(found)


def kill_writers(url: str, bucket: Bucket, n_kills: int) -> int:
    """Kill ``n_kills`` writers at random moments, and check what is there after each."""
    rng = random.Random(n_kills)
    for number in range(n_kills):
        command = [sys.executable, "-m", "tests.parts.putting", url, str(number)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.06))
            os.kill(writer.pid, signal.SIGKILL)
        n_found = check_whole(bucket)
        assert n_found
    return n_found


@pytest.mark.parametrize("n_kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_folder_shows_whole_objects_alone(tmp_path: Path, n_kills: int) -> None:
    url = f"file://{tmp_path}/share"
    bucket = Bucket(url)
    kill_writers(url, bucket, n_kills)
    n_left = len(list((tmp_path / "share/v1").glob(".*.part")))
    print(f"{n_kills} kills left {n_left} files that nothing reads")
    bucket.close()


@pytest.mark.slow
@pytest.mark.contract
def test_a_server_shows_whole_objects_alone() -> None:
    with s3_server() as server:
        bucket = server.open("kv")
        kill_writers(server.url("kv"), bucket, 30)
        bucket.close()


def test_what_is_read_is_really_checked(tmp_path: Path) -> None:
    bucket = Bucket(f"file://{tmp_path}/share")
    bucket.put_new("v1/7", b"half an obj")
    with pytest.raises(ValueError):
        check_whole(bucket)
    bucket.close()
