"""Calls and their results in a conversation: no result without its call, no call without its result."""

from collections.abc import Mapping, Sequence

from server.wire.messages import Message
from server.wire.response_input import CallItem, Item, MessageItem
from steering.errors import InvalidRequest
from vector_store.names import quoted

RESULT, RESULT_ITEM = "a message of the role 'tool'", "an item of type 'function_call_output'"


def refuse_unpaired(messages: Sequence[Message]) -> None:
    """Refuse a tool's message that answers no call of the assistant's before it, and calls without one."""
    asked: Mapping[str, str] = {}
    waiting: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.role == "tool":
            call = message.tool_call_id or ""
            if call not in asked:
                raise unasked(call, f"messages[{number}].tool_call_id")
            waiting.pop(call, None)
            continue
        refuse_waiting(waiting, RESULT)
        asked = {}
        for index, each in enumerate(message.tool_calls or ()):
            place = f"messages[{number}].tool_calls[{index}].id"
            if each.id in asked:
                raise asked_twice(each.id, place)
            asked[each.id] = place
        waiting = dict(asked)
    refuse_waiting(waiting, RESULT)


def refuse_unpaired_items(items: Sequence[Item]) -> None:
    """Refuse a result whose call does not come before it, and calls without a result."""
    answered = {item.call_id for item in items if not isinstance(item, CallItem | MessageItem)}
    asked: dict[str, str] = {}
    for number, item in enumerate(items):
        if isinstance(item, MessageItem):
            continue
        place = f"input[{number}].call_id"
        if not isinstance(item, CallItem):
            if item.call_id not in asked:
                raise unasked(item.call_id, place)
        elif item.call_id in asked:
            raise asked_twice(item.call_id, place)
        else:
            asked[item.call_id] = place
    refuse_waiting({call: place for call, place in asked.items() if call not in answered}, RESULT_ITEM)


def refuse_waiting(waiting: Mapping[str, str], result: str) -> None:
    """Refuse the first call that has no result; waiting: calls and their places."""
    for call, place in waiting.items():
        raise InvalidRequest(
            f"the call {quoted(call)} has no result; send {result} with its id after it", place
        )


def asked_twice(call: str, place: str) -> InvalidRequest:
    return InvalidRequest(f"two calls have the id {quoted(call)}; give each its own", place)


def unasked(call: str, place: str) -> InvalidRequest:
    return InvalidRequest(
        f"a result of no call: none before it has the id {quoted(call)}; send the call too", place
    )
