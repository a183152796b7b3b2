"""Strip local variables from tracebacks, so that an exception which a caller keeps does not keep KV alive."""

from __future__ import annotations

import contextlib
from types import FrameType
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


def stripped(error: Error) -> Error:
    """Clear the variables of all finished frames of an error's traceback, and return it; words and lines stay.

    A traceback holds the frames from where it was raised to where it was caught, and each of them its callers.
    """
    raised: BaseException | None = error
    seen: set[int] = set()  # what users raise may go in circles
    while raised is not None and id(raised) not in seen:
        seen.add(id(raised))
        at = raised.__traceback__
        while at is not None:
            frame: FrameType | None = at.tb_frame
            while frame is not None:
                with contextlib.suppress(RuntimeError):  # still running
                    frame.clear()
                frame = frame.f_back
            at = at.tb_next
        raised = raised.__context__
    return error
