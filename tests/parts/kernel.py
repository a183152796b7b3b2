"""A real Jupyter kernel, and what it sends while a cell runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

#: Any one cell of the tests is done within this, on the slowest machine.
WITHIN_S = 120


@define
class Kernel:
    """One kernel. ``sent`` holds (type, content) of all that the newest cell has sent."""

    manager: Any
    client: Any
    sent: list[tuple[str, dict[str, Any]]] = field(factory=list)

    def run(self, code: str, until: Callable[[Kernel], bool] | None = None) -> Kernel:
        """Run a cell to its end, or only until ``until`` is true of what it sent."""
        self.sent, number = [], self.client.execute(code)
        self._number = number
        return self.follow(until)

    def follow(self, until: Callable[[Kernel], bool] | None = None) -> Kernel:
        """Go on reading what the newest cell sends."""
        end = time.monotonic() + WITHIN_S
        while until is None or not until(self):
            message = self.client.get_iopub_msg(timeout=end - time.monotonic())
            if message["parent_header"].get("msg_id") != self._number:
                continue
            kind, content = message["msg_type"], message["content"]
            self.sent.append((kind, content))
            if kind == "status" and content["execution_state"] == "idle":
                break
        return self

    _number: str = ""

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.manager.interrupt_kernel()

    @property
    def text(self) -> str:
        """What the cell wrote to stdout and stderr, and the plain text of what it showed."""
        return "".join(
            content.get("text", "") or content.get("data", {}).get("text/plain", "") for _, content in self.sent
        )

    @property
    def error(self) -> str:
        """The name of the exception that ended the cell; "" for none."""
        return next((content["ename"] for kind, content in self.sent if kind == "error"), "")

    @property
    def traceback(self) -> list[str]:
        """Its traceback, a frame each."""
        return next((content["traceback"] for kind, content in self.sent if kind == "error"), [])


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel with its working directory in ``folder``."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=WITHIN_S)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
