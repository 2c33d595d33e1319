"""Calls and their results in a conversation: no result without its call, no next turn without the results."""

from collections.abc import Mapping, Sequence

from server.wire.messages import Message
from server.wire.response_input import CallItem, Item, MessageItem
from steering.errors import InvalidRequest
from vector_store.names import quoted


def refuse_unpaired(messages: Sequence[Message]) -> None:
    """Refuse a tool's message that answers no call of the assistant's before it, and calls passed over."""
    asked: Mapping[str, str] = {}
    waiting: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.role == "tool":
            call = message.tool_call_id or ""
            if call not in asked:
                raise unasked(call, f"messages[{number}].tool_call_id")
            waiting.pop(call, None)
            continue
        for call, place in waiting.items():
            raise unanswered(call, place, "a message of the role 'tool'")
        calls = enumerate(message.tool_calls or ())
        asked = {call.id: f"messages[{number}].tool_calls[{index}].id" for index, call in calls}
        waiting = dict(asked)


def refuse_unpaired_items(items: Sequence[Item]) -> None:
    """Refuse a result whose call does not come before it, and calls passed over by the next turn."""
    answered = {item.call_id for item in items if not isinstance(item, CallItem | MessageItem)}
    asked: dict[str, str] = {}
    for number, item in enumerate(items):
        if isinstance(item, CallItem):
            asked[item.call_id] = f"input[{number}].call_id"
        elif not isinstance(item, MessageItem):
            if item.call_id not in asked:
                raise unasked(item.call_id, f"input[{number}].call_id")
        elif item.role != "assistant":
            for call, place in asked.items():
                if call not in answered:
                    raise unanswered(call, place, "an item of type 'function_call_output'")


def unasked(call: str, place: str) -> InvalidRequest:
    return InvalidRequest(
        f"a result of no call: none before it has the id {quoted(call)}; send the call too", place
    )


def unanswered(call: str, place: str, result: str) -> InvalidRequest:
    return InvalidRequest(f"the call {quoted(call)} has no result; send {result} with its id after it", place)
