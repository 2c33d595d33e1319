"""`chat_template_kwargs`: what a request may tell the model's chat template beside its messages."""

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from steering.errors import InvalidRequest
from steering.picturing import Pictured, template_of
from vector_store.names import quoted

FIELD = "chat_template_kwargs"
# What transformers gives templates, which no request takes away.
GIVEN = frozenset({"messages", "tools", "documents", "raise_exception", "strftime_now", "namespace", "dict"})
# A tag of transformers' own, which says nothing about variables.
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class UnsupportedArguments(InvalidRequest):
    code = "unsupported_parameter"


@dataclass(frozen=True, slots=True)
class TemplateOption:
    """allowed: whether the operator lets requests speak to the template; names: what it listens to."""

    allowed: bool
    names: frozenset[str]

    def arguments(self, asked: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the arguments that a request asks for, or raise what is wrong with them."""
        if asked and not self.allowed:
            raise UnsupportedArguments(
                "this server tells the chat template nothing that requests say; its operator can allow it "
                "with --allow-template-kwargs",
                FIELD,
            )
        for name in asked or ():
            if name not in self.names:
                told = f"the model's chat template takes no {quoted(name)}{self._hint(name)}"
                raise InvalidRequest(told, FIELD)
        return asked or {}

    def _hint(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, n=1)
        if near:
            return f"; did you mean '{near[0]}'?"
        return f"; it takes {', '.join(sorted(self.names)[:10]) or 'nothing'}"


def template_option(tokenizer: Any, pictured: Pictured | None, allowed: bool) -> TemplateOption:
    """Return what the template can be told: the variables that it reads and that nobody else sets."""
    reserved = {
        *GIVEN,
        *inspect.signature(tokenizer.apply_chat_template).parameters,
        *tokenizer.special_tokens_map,
        *ImmutableSandboxedEnvironment().globals,
    }
    return TemplateOption(allowed, variables(template_of(tokenizer, pictured)) - reserved)


def variables(template: str) -> frozenset[str]:
    """Return the variables that a template reads without setting them; none of one that cannot be parsed."""
    sandbox = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    try:
        return frozenset(find_undeclared_variables(sandbox.parse(GENERATION.sub("", template))))
    except TemplateError:
        return frozenset()
