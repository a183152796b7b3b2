"""Draw ``images/terminal.svg``: what the command line prints, in a terminal, on the starter model and a new store.

    python docs/terminal.py            # needs the extra cli; a minute
    python docs/terminal.py -m echo    # the stand-in in place of the starter model, to try the drawing

Every line is what the commands printed to a terminal of their own; the prompts with ``$`` are added.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import sys
import tempfile
import termios
from pathlib import Path

OUT = Path(__file__).parent / "images" / "terminal.svg"
COLUMNS, LINES = 108, 40

#: A command, and what is typed into it.
SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ('chat tutor --system "You are a patient tutor." --max-tokens 32', ("My name is Alice. Remember it.", "/quit")),
    ("chat tutor --max-tokens 32", ("What is my name?", "/info", "/quit")),
    ("ls", ()),
    ("show tutor", ()),
    ('explain tutor "And yours?"', ()),
)


def typed_into(command: list[str], lines: tuple[str, ...], environment: dict[str, str]) -> str:
    """Return what a program writes to a terminal while lines are typed, each when it asks for one."""
    child, end = pty.fork()
    if child == 0:
        os.execvpe(command[0], command, environment)
    termios.tcsetwinsize(end, (LINES, COLUMNS))
    seen, left = b"", list(lines)
    while True:
        try:
            piece = os.read(end, 4096)
        except OSError:  # the terminal has no writer any more
            break
        if not piece:
            break
        seen += piece
        if left and seen.endswith(b"> "):
            os.write(end, left.pop(0).encode() + b"\n")
    os.close(end)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{shlex.join(command)} failed:\n{seen.decode()}")
    return seen.decode().replace("\r\n", "\n")


def drawn(text: str) -> str:
    """Return an SVG of a terminal with this text, escape sequences and all; it fetches no font."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(text), soft_wrap=False)
    svg = console.export_svg(title="agent-memory", unique_id="terminal")
    svg = re.sub(r"@font-face \{[^}]*\}\s*", "", svg)
    return svg.replace("Fira Code", "DejaVu Sans Mono, Menlo")


def main() -> None:
    """Run the commands, and write the picture."""
    model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TERM": "xterm-256color"}
        told = []
        for command, lines in SHOWN:
            own = [] if command.split()[0] in ("ls", "show") else model
            arguments = [*shlex.split(command), *own, "--store", f"{folder}/store"]
            found = typed_into([sys.executable, "-m", "agent_memory", *arguments], lines, environment)
            told.append(f"\x1b[1;32m$\x1b[0m \x1b[1magent-memory {command}\x1b[0m\n{found.rstrip()}\n")
    OUT.write_text(drawn("\n".join(told)), encoding="utf-8")


if __name__ == "__main__":
    main()
