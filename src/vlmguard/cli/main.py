"""The command line: ``vlmguard``.

Exit codes: 0 done; 1 the guard or a model failed; 2 wrong usage, configuration or input;
130 interrupted.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from vlmguard.cli import (
    ask,
    audit,
    bench,
    data,
    defence,
    demo,
    judge,
    keys,
    models,
    policy,
    report,
    rewrite,
    serve,
    synth,
    train,
    ui,
)
from vlmguard.cli import eval as eval_
from vlmguard.cli.show import err
from vlmguard.errors import ConfigError, DataError, InputError, VLMGuardError

app = typer.Typer(
    help="A prompt rewriter that makes any vision-language model safer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(rewrite.rewrite)
app.command()(ask.ask)
app.command()(demo.demo)
app.command()(serve.serve)
app.command()(ui.ui)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(policy.app, name="policy")
app.add_typer(defence.app, name="defence")
app.add_typer(synth.app, name="synth")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command()(train.train)
app.add_typer(eval_.app, name="eval")
app.add_typer(judge.app, name="judge")
app.command()(report.report)
app.command()(models.pull)
app.command()(models.models)


def _show_version(value: bool) -> None:  # noqa: FBT001  # typer calls it so
    if value:
        typer.echo(f"vlmguard-r1 {version('vlmguard-r1')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A prompt rewriter that makes any vision-language model safer."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Retries are told by the error that ends them; without a handler each would print a line.
    logging.getLogger("stamina").addHandler(logging.NullHandler())
    # Pillow warns about metadata of pictures that it reads all the same.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        app()
    except (ConfigError, InputError, DataError) as error:
        _leave(error, 2)
    except VLMGuardError as error:
        _leave(error, 1)
    except KeyboardInterrupt:
        err.print("\ninterrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to tell anybody.
        sys.stderr.close()
        sys.exit(0)


def _leave(error: VLMGuardError, code: int) -> None:
    err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
