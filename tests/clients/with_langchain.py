"""LangChain's standard tests of chat models: SERVER=http://... [RESPONSES=1] pytest with_langchain.py."""

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MODEL = os.environ.get("SERVED_MODEL", "scripted")
RESPONDS = "RESPONSES" in os.environ
chatting = pytest.mark.skipif(RESPONDS, reason="responses tell it otherwise")
PARAMETERS = {
    "base_url": f"{os.environ['SERVER']}/v1",
    "api_key": "any",
    "model": MODEL,
    "temperature": 0,
    "max_retries": 0,
    "max_tokens": 400,
    "stream_usage": True,
    "use_responses_api": RESPONDS,
}


class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return PARAMETERS

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return f"{MODEL}:cheerful"

    @pytest.mark.xfail(MODEL == "scripted", reason="its template takes one system message", strict=True)
    def test_double_messages_conversation(self, model: BaseChatModel) -> None:
        super().test_double_messages_conversation(model)


@pytest.fixture
def chat() -> ChatOpenAI:
    return ChatOpenAI(**PARAMETERS, extra_body={"steering": {"profile": "cheerful", "strength": 0.5}})


@chatting
def test_steering_goes_through_extra_body(chat: ChatOpenAI) -> None:
    answer = chat.invoke("hello")
    assert isinstance(answer, AIMessage)
    assert answer.content == "cheerful*0.5: hello"


@chatting
def test_log_probabilities_arrive(chat: ChatOpenAI) -> None:
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke("hello")
    told = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in told).startswith("cheerful")
    assert len(told[0]["top_logprobs"]) == 2
