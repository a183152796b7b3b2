"""A process that stores objects without end, to be killed: ``python -m tests.parts.putting URL SEED``."""

from __future__ import annotations

import random
import sys
import threading

from agent_memory.remote.bucket import Bucket
from agent_memory.remote.names import remote_keys
from agent_memory.remote.objects import write_object
from tests.parts.s3 import KEYS

SECRET = remote_keys(b"k" * 32)
N_NAMES = 400


def body_of(name: str, rng: random.Random) -> bytes:
    """Return an object that says its own name, of any size up to 3 MB."""
    return write_object(name, SECRET, {"name": name}, [rng.randbytes(rng.choice([0, 300, 90_000, 3_000_000]))])


def main(url: str, seed: str) -> None:
    """Store in four threads, saying so once the first object is there."""
    bucket = Bucket(url, options={} if url.startswith("file:") else KEYS)

    def put(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while True:
            name = f"v1/{rng.randrange(N_NAMES)}"
            bucket.put_new(name, body_of(name, rng))
            print("stored", flush=True)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:  # else the interpreter begins to shut down, and takes no new executor
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
