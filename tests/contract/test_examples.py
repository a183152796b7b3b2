"""The frameworks' examples, as a reader runs them, on the starter model."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.contract, pytest.mark.model]
FRAMEWORKS = ("langchain", "pydantic_ai", "smolagents", "llama_index", "openai_agents", "haystack", "autogen")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_each_prompt_of_an_example_reuses_the_one_before(name: str) -> None:
    command = [sys.executable, f"examples/{name}_agent.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ *([\d,]+) of +([\d,]+) prompt tokens were there", done.stdout, re.M)
    prompts = [(int(cached.replace(",", "")), int(prompt.replace(",", ""))) for cached, prompt in found]
    assert len(prompts) >= 3, done.stdout
    for (_, before), (cached, _) in pairwise(prompts):
        assert cached >= before
