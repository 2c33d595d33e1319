"""Which names the served model goes by, and the steering that may stand behind one."""

from dataclasses import dataclass

from steering.errors import ModelNotFound
from vector_store.names import quoted


@dataclass(frozen=True, slots=True)
class ServedName:
    """The model's listed name, and the id that also works."""

    name: str
    id: str

    def suffix_of(self, asked: str) -> str | None:
        """Return the steering string behind the model's name, None where there is none.

        ModelNotFound says what is served. A name may itself hold a colon, so the served names are tried
        first, the longer one before the other.
        """
        for served in sorted({self.name, self.id}, key=len, reverse=True):
            if asked == served:
                return None
            if asked.startswith(f"{served}:"):
                return asked[len(served) + 1 :]
        raise ModelNotFound(
            f"no model named {quoted(asked)}; this server serves {self.name!r}, "
            f"and {self.name + ':<profile>'!r} for each profile",
            "model",
        )


def served_name(model_id: str, alias: str | None) -> ServedName:
    return ServedName(alias or model_id, model_id)
