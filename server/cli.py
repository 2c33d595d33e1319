"""The `grainserve` command."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from server.bench_cli import bench
from server.build_cli import build
from server.config import BadSettings, Settings, load_settings
from server.doctor_cli import doctor
from server.eval_cli import eval_profile
from server.explain_cli import explain
from server.profiles_cli import profiles_app

app = typer.Typer(
    help="An OpenAI-compatible inference server in which activation steering is a request option.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes leave no room for what options mean
)
app.add_typer(profiles_app, name="profiles")
app.command()(build)
app.command("eval")(eval_profile)
app.command()(explain)
app.command()(bench)
app.command()(doctor)


def tell_version(asked: bool) -> None:
    if asked:
        typer.echo(version("grainserve"))
        raise typer.Exit


@app.callback()
def grainserve(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Threads that spin as long as OpenMP's default has them starve each other beside any busy process.
    # Told before torch loads; measured in docs/benchmarks.md, whose yardstick keeps torch's defaults.
    if context.invoked_subcommand != "bench":
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def flag(setting: str) -> Any:
    """Return the option of a setting, with its description as help and its default shown."""
    field = Settings.model_fields[setting]
    default = field.get_default(call_default_factory=True, validated_data={})
    told = f" Default: {default}." if default else ""
    return typer.Option(help=f"{field.description}{told}", show_default=False)


@app.command()
def serve(
    model: Annotated[str | None, flag("model")] = None,
    served_model_name: Annotated[str | None, flag("served_model_name")] = None,
    engine: Annotated[str | None, flag("engine")] = None,
    engine_arg: Annotated[list[str] | None, flag("engine_arg")] = None,
    max_profiles: Annotated[int | None, flag("max_profiles")] = None,
    host: Annotated[str | None, flag("host")] = None,
    port: Annotated[int | None, flag("port")] = None,
    dtype: Annotated[str | None, flag("dtype")] = None,
    device: Annotated[str | None, flag("device")] = None,
    store: Annotated[Path | None, flag("store")] = None,
    cache_dir: Annotated[Path | None, flag("cache_dir")] = None,
    max_batch_size: Annotated[int | None, flag("max_batch_size")] = None,
    max_waiting: Annotated[int | None, flag("max_waiting")] = None,
    max_context: Annotated[int | None, flag("max_context")] = None,
    prefill_chunk: Annotated[int | None, flag("prefill_chunk")] = None,
    kv_cache_gb: Annotated[float | None, flag("kv_cache_gb")] = None,
    threads: Annotated[int | None, flag("threads")] = None,
    api_key: Annotated[list[str] | None, flag("api_key")] = None,
    api_key_file: Annotated[Path | None, flag("api_key_file")] = None,
    cors_origin: Annotated[list[str] | None, flag("cors_origin")] = None,
    allow_template_kwargs: Annotated[bool | None, flag("allow_template_kwargs")] = None,
    max_body_bytes: Annotated[int | None, flag("max_body_bytes")] = None,
    max_images: Annotated[int | None, flag("max_images")] = None,
    max_image_pixels: Annotated[int | None, flag("max_image_pixels")] = None,
    image_host: Annotated[list[str] | None, flag("image_host")] = None,
    max_strength: Annotated[float | None, flag("max_strength")] = None,
    request_timeout: Annotated[float | None, flag("request_timeout")] = None,
    body_timeout: Annotated[float | None, flag("body_timeout")] = None,
    idle_timeout: Annotated[int | None, flag("idle_timeout")] = None,
    sse_keep_alive: Annotated[float | None, flag("sse_keep_alive")] = None,
    grace: Annotated[float | None, flag("grace")] = None,
    exit_when_dead: Annotated[bool | None, flag("exit_when_dead")] = None,
    log_level: Annotated[str | None, flag("log_level")] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="GRAINSERVE_CONFIG", help="TOML file of settings.")
    ] = None,
) -> None:
    """Serve a model. A flag goes before the environment (GRAINSERVE_*), which goes before the file."""
    given = {name: value for name, value in locals().items() if name != "config"}
    try:
        settings = load_settings(given, config)
    except BadSettings as error:
        fail(str(error), 2)
    from server.serving import CannotServe, serve_forever  # torch loads slowly; --help should not

    try:
        serve_forever(settings)
    except CannotServe as error:
        fail(str(error), 1)


def fail(message: str, status: int) -> None:
    for line in message.splitlines():
        typer.echo(f"grainserve: {line}", err=True)
    raise typer.Exit(status)


def main() -> None:
    app()
