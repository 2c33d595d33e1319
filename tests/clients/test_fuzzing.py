"""Requests made up from /openapi.json: none breaks the server, every answer is as that document says."""

from pathlib import Path

import pytest

from tests.clients.environments import HERE, run_python
from tests.server.running import Running

pytestmark = pytest.mark.clients

# No JSON schema can say which tokens, profiles and fields go together, so requests may be refused for it.
LEFT_OUT = "positive_data_acceptance"


def test_no_request_breaks_the_server(server: Running, tmp_path: Path) -> None:
    """Not one 5xx, no status, content type or answer that the document does not tell of, streams included."""
    told = run_python(
        "schemathesis",
        tmp_path,
        "-m",
        "schemathesis.cli",
        "run",
        f"{server.url}/openapi.json",
        "--max-examples=50",
        f"--exclude-checks={LEFT_OUT}",
        "--generation-deterministic",
        SCHEMATHESIS_HOOKS=str(HERE / "fuzzing_hooks.py"),
    )
    assert "17 selected / 17 total" in told
    assert len(server.engine.jobs) > 200
