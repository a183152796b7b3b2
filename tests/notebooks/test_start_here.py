"""docs/notebooks/start_here.ipynb runs from top to bottom, and shows what its text says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def plain(cell: Any) -> str:
    """What a cell shows, as Markdown or plain text."""
    shown = [one["data"] for one in cell["outputs"] if one["output_type"] == "execute_result"]
    return "".join(data.get("text/markdown", data["text/plain"]) for data in shown)


@pytest.mark.contract
@pytest.mark.model
@pytest.mark.mlx
def test_the_notebook_runs_and_resumes_its_agent(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "start_here.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = {cell["source"].splitlines()[-1]: cell for cell in notebook.cells if cell["cell_type"] == "code"}
    assert "cold" in plain(cells['ann.say("And on shelf 5?", max_tokens=24)'])
    assert "cold" in plain(cells["resumed"])
    assert "hot" in plain(cells["reply"])
    assert "2 agents" in plain(cells["memory.agents()"])
    [explained] = [cell for line, cell in cells.items() if line.startswith("memory.explain(")]
    assert "system\\_changed" in plain(explained)
    [drawn] = [one for one in cells["memory.plot()"]["outputs"] if one["output_type"] == "execute_result"]
    assert drawn["data"]["image/png"]
    streams = [one["text"] for cell in cells.values() for one in cell["outputs"] if one["output_type"] == "stream"]
    assert not any("warn" in text.lower() for text in streams), streams
