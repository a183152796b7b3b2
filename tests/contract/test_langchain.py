"""LangChain's chat model, under langchain-tests' standard suites and in tests of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from agent_memory import EchoRunner, Memory
from agent_memory.integrations.langchain import ChatAgentMemory

pytestmark = pytest.mark.contract


class TestUnits(ChatModelUnitTests):
    memory = Memory(EchoRunner(), ":memory:")

    @property
    def chat_model_class(self) -> type[ChatAgentMemory]:
        return ChatAgentMemory

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory}


class TestStarter(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _starter(self, starter: Memory) -> Iterator[None]:
        type(self).memory = starter
        yield

    @property
    def chat_model_class(self) -> type[ChatAgentMemory]:
        return ChatAgentMemory

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory, "max_tokens": 64}

    @property
    def supports_json_mode(self) -> bool:
        return True
