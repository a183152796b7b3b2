"""Tool calls in a model's text, found as it streams: ``parse`` and ``ToolParser`` need no model."""

from agent_memory.toolcall.formats import FORMATS
from agent_memory.toolcall.output import Parsed
from agent_memory.toolcall.parser import ToolParser, parse

__all__ = ["FORMATS", "Parsed", "ToolParser", "parse"]
