"""Anthropic's memory tool on ``memory.context``: ``AgentMemoryTool(memory.context)``. Extra ``[anthropic]``.

Claude keeps files under ``/memories`` with the verbs view, create, str_replace, insert, delete and rename; here each is
a note of a workspace of its own, so that ``recall`` finds what Claude wrote, and an agent of a local model can use it.

- A file is one text: its path with the number of its revision, a line break, and what was written.
- An edit writes the new revision, durable, and then forgets the old one: killed between the two, the newer one counts.
- What the workspace redacts is redacted in files too: ``view`` shows what was kept.
- Directories are the paths' beginnings, and none is empty. A path is at most 200 characters, a file 90,000 bytes.

One object edits a workspace at a time. Every call reads the whole workspace: for notes, not for archives.
"""

from __future__ import annotations

import asyncio
import io
import json
import posixpath
import re
import threading
from typing import Any

from anthropic.lib.tools import BetaAbstractMemoryTool, BetaAsyncAbstractMemoryTool, ToolError

from agent_memory import ContextMemory

_ROOT = "/memories"
_MOST_BYTES, _LONGEST_PATH = 90_000, 200  #: context memory cuts longer texts into pieces
_SOURCE = re.compile(r"(?P<path>/.+) \(revision (?P<number>\d+)\)")


class AgentMemoryTool(BetaAbstractMemoryTool):
    """The memory tool of ``client.beta.messages.tool_runner``. Thread-safe; what a verb returned for is durable."""

    def __init__(self, context: ContextMemory, *, workspace: str = "memories", cache_control: Any = None) -> None:
        super().__init__(cache_control=cache_control)
        self._notes, self._lock = context.workspace(workspace), threading.RLock()

    def execute(self, command: Any) -> Any:
        """Run one verb; no other runs meanwhile. Raises ToolError, which Claude reads."""
        with self._lock:
            return super().execute(command)

    def view(self, command: Any) -> str:
        """Return a file's numbered lines, or what stands in a directory, two levels deep."""
        path, files = _checked(command.path), self._files()
        if path in files:
            return f"Here's the content of {path} with line numbers:\n{_numbered(files[path][1], command.view_range)}"
        sizes: dict[str, int] = {path: 0} if path == _ROOT else {}
        for one, (_, text) in files.items():
            if not f"{one}/".startswith(f"{path}/"):
                continue
            deeper = one.removeprefix(path).strip("/").split("/")
            for level in range(min(len(deeper), 2) + 1):
                shown = "/".join([path, *deeper[:level]]) + ("/" if 0 < level < len(deeper) else "")
                sizes[shown] = sizes.get(shown, 0) + len(text.encode())
        if not sizes:
            raise _missing(path)
        head = f"Here're the files and directories up to 2 levels deep in {path}, excluding hidden items:"
        return "\n".join([head, *(f"{size / 1024:.1f}K\t{one}" for one, size in sorted(sizes.items()))])

    def create(self, command: Any) -> str:
        """Write a new file."""
        path = self._free(command.path, f"File {command.path} already exists")
        self._write(path, command.file_text)
        return f"File created successfully at: {path}"

    def str_replace(self, command: Any) -> str:
        """Replace a text that stands in a file once."""
        path, text = self._file(command.path)
        places = [found.start() for found in re.finditer(f"(?={re.escape(command.old_str)})", text)]
        lines = [text.count("\n", 0, place) + 1 for place in places]
        if not command.old_str or not places:
            raise ToolError(f"No replacement was performed, old_str `{command.old_str}` did not appear in {path}.")
        if len(places) > 1:
            where = f"Multiple occurrences of old_str `{command.old_str}` in lines: {', '.join(map(str, lines))}"
            raise ToolError(f"No replacement was performed. {where}. Please ensure it is unique")
        self._write(path, text[: places[0]] + command.new_str + text[places[0] + len(command.old_str) :])
        around = _numbered(self._files()[path][1], (lines[0] - 2, lines[0] + 2))
        return f"The memory file has been edited. Here is the snippet showing the change (with line numbers):\n{around}"

    def insert(self, command: Any) -> str:
        """Insert lines after a line of a file, 0 being its beginning."""
        path, text = self._file(command.path)
        lines = text.removesuffix("\n").split("\n") if text else []
        if not 0 <= command.insert_line <= len(lines):
            raise ToolError(f"Invalid `insert_line`: {command.insert_line}. It should be within [0, {len(lines)}].")
        lines.insert(command.insert_line, command.insert_text.removesuffix("\n"))
        self._write(path, "\n".join(lines) + "\n")
        return f"The file {path} has been edited."

    def delete(self, command: Any) -> str:
        """Forget a file, or all of a directory: no byte of it stays."""
        path, found = self._found(command.path, "delete")
        for one in found:
            self._forget(one)
        return f"Successfully deleted {path}"

    def rename(self, command: Any) -> str:
        """Move a file or a directory."""
        old, found = self._found(command.old_path, "rename")
        new = self._free(command.new_path, f"The destination {command.new_path} already exists")
        if f"{new}/".startswith(f"{old}/"):
            raise ToolError(f"Cannot move {old} into itself")
        places = {one: _checked(new + one.removeprefix(old)) for one in found}
        for one, place in places.items():
            self._write(place, self._file(one)[1])
            self._forget(one)
        return f"Successfully renamed {old} to {new}"

    def clear_all_memory(self) -> str:
        """Forget every file."""
        with self._lock:
            self._notes.forget(everything=True)
        return "All memory cleared"

    def _files(self) -> dict[str, tuple[list[int], str]]:
        """The files by path: the numbers of the revisions that are kept, and the text of the newest."""
        found: dict[str, dict[int, str]] = {}
        exported = io.StringIO()
        self._notes.export_jsonl(exported)
        for row in map(json.loads, exported.getvalue().removesuffix("\n").split("\n")):
            if "body" in row and (source := _SOURCE.fullmatch(row["source"] or "")):
                found.setdefault(source["path"], {})[int(source["number"])] = row["body"].partition("\n")[2]
        return {path: (sorted(kept), kept[max(kept)]) for path, kept in sorted(found.items())}

    def _file(self, given: str) -> tuple[str, str]:
        path, files = _checked(given), self._files()
        if path not in files:
            raise _missing(path)
        return path, files[path][1]

    def _found(self, given: str, verb: str) -> tuple[str, list[str]]:
        """A path, and the files that it names. Raises ToolError where there are none, or for the root."""
        if (path := _checked(given)) == _ROOT:
            raise ToolError(f"Cannot {verb} the /memories directory itself")
        if not (found := [one for one in self._files() if f"{one}/".startswith(f"{path}/")]):
            raise _missing(path)
        return path, found

    def _free(self, given: str, taken: str) -> str:
        """A path that is neither a file nor a directory, nor within a file. Raises ToolError."""
        path = _checked(given)
        if path == _ROOT or any(f"{one}/".startswith(f"{path}/") for one in self._files()):
            raise ToolError(taken)
        if within := [one for one in self._files() if path.startswith(f"{one}/")]:
            raise ToolError(f"{within[0]} is a file, not a directory")
        return path

    def _write(self, path: str, text: str) -> None:
        if (nbytes := len(text.encode())) > _MOST_BYTES:
            raise ToolError(f"{path} would have {nbytes:,} bytes; a file has {_MOST_BYTES:,} at most")
        old, _ = self._files().get(path, ([0], ""))
        source = f"{path} (revision {old[-1] + 1})"
        self._notes.remember(f"{source}\n{text}", kind="note", source=source)
        self._forget(path, [number for number in old if number])

    def _forget(self, path: str, numbers: list[int] | None = None) -> None:
        for number in self._files()[path][0] if numbers is None else numbers:
            self._notes.forget(source=f"{path} (revision {number})")


class AsyncAgentMemoryTool(BetaAsyncAbstractMemoryTool):
    """The same for an ``AsyncAnthropic``: each verb runs on a thread, not on the event loop."""

    def __init__(self, context: ContextMemory, *, workspace: str = "memories", cache_control: Any = None) -> None:
        super().__init__(cache_control=cache_control)
        self._tool = AgentMemoryTool(context, workspace=workspace)

    async def execute(self, command: Any) -> Any:
        """Run one verb. Raises ToolError, which Claude reads."""
        return await asyncio.to_thread(self._tool.execute, command)

    async def clear_all_memory(self) -> Any:
        """Forget every file."""
        return await asyncio.to_thread(self._tool.clear_all_memory)

    view = create = str_replace = insert = delete = rename = execute


def _checked(given: str) -> str:
    """A path without ``.`` and doubled slashes. Raises ToolError outside ``/memories``."""
    path = posixpath.normpath(given)
    if ".." in given.split("/") or not f"{path}/".startswith(f"{_ROOT}/") or not given.isprintable():
        raise ToolError(f"Path must start with /memories, have no '..' and printable characters alone, got: {given}")
    if len(path) > _LONGEST_PATH:
        raise ToolError(f"Path has {len(path)} characters; {_LONGEST_PATH} at most: {path}")
    return path


def _missing(path: str) -> ToolError:
    return ToolError(f"The path {path} does not exist. Please provide a valid path.")


def _numbered(text: str, span: Any) -> str:
    lines = text.split("\n")
    start, stop = span if span and len(span) == 2 else (1, -1)
    first, last = max(1, start), len(lines) if stop == -1 else min(stop, len(lines))
    return "\n".join(f"{number:6}\t{lines[number - 1]}" for number in range(first, last + 1))
