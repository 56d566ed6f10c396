"""The command line: each command parses its flags, calls one function of the library, and prints what came back.

Progress and errors go to stderr, results to stdout (as JSON with --json). Every error that the library raises on
purpose is one message and its own exit status.
"""

import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigurationError, QuantascopeError, RunNotFoundError
from . import accounting, keeping
from .options import JsonOption, QuantaOption, RunArgument, place, show
from .progress_bar import progress_listener

app = typer.Typer(
    name="quantascope",
    help="Find the skills of a language model in its gradients, and the training examples behind each.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # read by its callback, before a command is asked for
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder of the run; made if there is none.")] = "runs/demo",
    cache: Annotated[str | None, typer.Option(help="Where corpus and trained model are kept.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: less of everything.")] = False,
    workers: Annotated[int | None, typer.Option(help="Ray workers; the default is one per core.")] = None,
) -> None:
    """Train a small model on Python's own library, find its skills, and write a report: about seven minutes."""
    from .demo.run import DemoConfig, run_demo

    folder = cache or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "quantascope")
    with progress_listener() as listener:
        summary = run_demo(DemoConfig(out=out, cache=folder, quick=quick, num_workers=workers), listener)
    typer.echo(summary)


@app.command()
def collect(
    model: Annotated[str, typer.Option(help="Model folder or hub id.")],
    dataset: Annotated[str, typer.Option(help="Saved data set, hub id, JSONL, Parquet, CSV, or folder of text files.")],
    out: Annotated[str, typer.Option(help="Folder of the run; made if there is none, gone on with if there is.")],
    unit: Annotated[
        str, typer.Option(help="What gets a row: token-loss, window, document, span, token-contribution or group.")
    ] = "token-loss",
    name: Annotated[str | None, typer.Option(help="Name of the row set; the default is the unit.")] = None,
    revision: Annotated[str | None, typer.Option(help="Model's branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code; needs a pinned --revision.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    config_name: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    dataset_revision: Annotated[str | None, typer.Option(help="Data set's branch, tag or commit on the hub.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    prompt_field: Annotated[str | None, typer.Option(help="Field of the prompt; only the completion counts.")] = None,
    completion_field: Annotated[str | None, typer.Option(help="Field of the completion.")] = None,
    messages_field: Annotated[str | None, typer.Option(help="Field of chat messages; only answers count.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Field of the documents' own ids.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label field to keep; may be repeated.")] = None,
    bad_rows: Annotated[str, typer.Option(help="Empty, null or non-text rows: stop, or skip and count.")] = "stop",
    max_documents: Annotated[int | None, typer.Option(help="Read at most this many documents.")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave the text out of the run.")] = False,
    window_tokens: Annotated[int | None, typer.Option(help="Window length; the default is the context.")] = None,
    loss_reduction: Annotated[str, typer.Option(help="A unit's loss is the mean or the sum of its tokens'.")] = "mean",
    group_by: Annotated[str | None, typer.Option(help="Label whose values are the groups of --unit group.")] = None,
    max_loss: Annotated[float, typer.Option(help="Token-loss units have a loss below this, in nats.")] = 0.1,
    max_units: Annotated[int | None, typer.Option(help="Keep at most this many units.")] = None,
    max_per_window: Annotated[int | None, typer.Option(help="Keep at most this many units of a window.")] = None,
    scan_tokens: Annotated[int | None, typer.Option(help="Look for units in about this many tokens.")] = None,
    projection: Annotated[
        str, typer.Option(help="tensor-sketch, two-sided (also -gaussian, -orthonormal), wide, sparse-jl, dense, none.")
    ] = "tensor-sketch",
    dim: Annotated[int, typer.Option(help="Numbers per row, shared by the model's blocks.")] = 4096,
    seed: Annotated[int, typer.Option(help="Seed of the projection.")] = 0,
    precondition: Annotated[str, typer.Option(help="none, or kfac: Kronecker-factored whitening.")] = "none",
    shares: Annotated[str, typer.Option(help="How blocks share --dim: energy, size or equal.")] = "energy",
    blocks: Annotated[
        str, typer.Option(help="paper, linear, all, kinds, patterns of names, last:N; joined by commas.")
    ] = "paper",
    require_coverage: Annotated[
        bool, typer.Option("--require-coverage", help="Refuse models with parameters that get no rows.")
    ] = False,
    rows_per_block: Annotated[int | None, typer.Option(help="Rows of one piece of work.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens that go through the model together.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    threads_per_worker: Annotated[int, typer.Option(help="Threads of each worker; part of the plan.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0,
    ray_address: Annotated[str | None, typer.Option(help="Join this cluster (auto inside a Ray job).")] = None,
    allow_no_token: Annotated[
        bool, typer.Option("--allow-no-token", help="Join a cluster without token authentication.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say rows, bytes and hours; compute nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute a model's gradient rows on a data set, into a run; after an interruption the same command goes on."""
    from ..jobs.collect import Collection
    from ..jobs.collect import collect as run_collection
    from ..jobs.collect import dry_run as estimate
    from ..jobs.config import REDUCTIONS, UNIT_TYPES, RowConfig, SelectionConfig, SetConfig
    from ..jobs.data import DataSource
    from ..jobs.model import ModelSource
    from ..jobs.ray_session import RayOptions

    collection = Collection(
        out=out,
        name=name,
        keep_text=not no_text,
        model=ModelSource(
            model=place(model),
            revision=revision,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        ),
        data=DataSource(
            dataset=place(dataset),
            split=split,
            config_name=config_name,
            revision=dataset_revision,
            text_field=text_field,
            prompt_field=prompt_field,
            completion_field=completion_field,
            messages_field=messages_field,
            id_field=id_field,
            label_fields=tuple(label or ()),
            bad_rows=_one_of("--bad-rows", bad_rows, "stop", "skip"),
            max_documents=max_documents,
        ),
        config=SetConfig(
            selection=SelectionConfig(
                unit_type=_one_of("--unit", unit, *UNIT_TYPES),
                window_tokens=window_tokens,
                loss_reduction=_one_of("--loss-reduction", loss_reduction, *REDUCTIONS),
                group_by=group_by,
                max_loss=max_loss,
                max_units=max_units,
                max_per_window=max_per_window,
                scan_tokens=scan_tokens,
            ),
            rows=RowConfig(
                projection=projection,
                dim=dim,
                seed=seed,
                precondition=_one_of("--precondition", precondition, "none", "kfac"),
                shares=_one_of("--shares", shares, "energy", "size", "equal"),
                blocks=blocks,
                require_coverage=require_coverage,
                rows_per_block=rows_per_block,
                batch_tokens=batch_tokens,
                threads_per_worker=threads_per_worker,
            ),
        ),
    )
    options = RayOptions(
        address=ray_address,
        num_workers=workers,
        threads_per_worker=threads_per_worker,
        gpus_per_worker=gpus_per_worker,
        allow_no_token=allow_no_token,
    )
    if dry_run:
        found = estimate(collection, options)
        show(
            asdict(found),
            f"about {found.num_units:,} rows of {found.dim:,} numbers, {found.num_bytes / 1e6:,.1f} MB, "
            f"about {found.seconds / 3600:,.2f} hours",
            as_json=as_json,
        )
        return
    with progress_listener() as listener:
        done = run_collection(collection, options, listener=listener)
    show(
        asdict(done),
        f"{done.num_units:,} rows of {done.dim:,} numbers in {out} ({collection.set_name}); {done.refused} refused, "
        f"{done.zero} zero, {done.cut} cut; {done.rows_here:,} collected now in {done.seconds:,.1f} s",
        as_json=as_json,
    )


@app.command()
def cluster(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Under which the quanta are stored.")] = "main",
    rows: Annotated[str | None, typer.Option(help="Row set; the default is the token rows.")] = None,
    num_quanta: Annotated[
        int | None, typer.Option(help="How many quanta; the default lets held-out rows decide.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Join groups while their mean cosine is at least this.")
    ] = None,
    whitening: Annotated[str, typer.Option(help="none, half or full.")] = "half",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Cluster a run's rows into a tree of quanta, with evidence beside its nulls."""
    from ..attribution.clustering import AverageLinkage, Refined
    from ..attribution.whitening import WhiteningConfig
    from ..jobs.quanta import QuantaConfig, make_quanta, measure
    from ..storage.run import Run

    config = QuantaConfig(
        name=name,
        rows=rows,
        whitening=WhiteningConfig(strength=_one_of("--whitening", whitening, "none", "half", "full"), seed=seed),
        clusterer=Refined(
            inner=AverageLinkage(num_quanta=num_quanta, min_cosine=min_cosine, seed=seed),
            keep_all=num_quanta is not None,
        ),
    )
    opened = Run.open(run)
    with opened.store.lock(), progress_listener() as listener:
        quanta = make_quanta(opened, config, listener=listener)
        evidence = measure(quanta)
    facts = quanta.facts
    lines = [f"{facts['num_quanta']} quanta of {facts['num_units']:,} units in {run} ({name})"]
    lines += [
        f"{'  ' + row['name']:<18} next token {_evidence(row)}" for row in evidence["rows"] if "next_token" in row
    ]
    if facts["rank_frequency"]:
        lines.append(facts["rank_frequency"]["sentence"])
    show(
        {"num_quanta": facts["num_quanta"], "num_units": facts["num_units"], "evidence": evidence["rows"]},
        "\n".join(lines),
        as_json=as_json,
    )


@app.command()
def trace(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(help="What the model is given.")],
    completion: Annotated[str, typer.Argument(help="What it is to predict, with its leading space if it has one.")],
    k: Annotated[int, typer.Option("-k", "--num-units", help="Units to show.")] = 10,
    save: Annotated[
        str | None, typer.Option(help="Keep the trace in the run under this title, for the report.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The checkpoint, where the run's own path is gone.")] = None,
    quanta: QuantaOption = "main",
    as_json: JsonOption = False,
) -> None:
    """Trace a behaviour to its quanta and to the training units behind it."""
    from .client import connect
    from .text import trace_text

    client = connect(run, quanta=quanta)
    if model:
        client.use_model(place(model))
    found = client.trace(prompt, completion, k=k)
    if save:
        with client.run.store.lock():
            client.save_trace(save, found)
    show(asdict(found), trace_text(found), as_json=as_json)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[str, typer.Option(help="The HTML file to write.")] = "report.html",
    quanta: QuantaOption = "main",
) -> None:
    """Write a run's report: one HTML file that needs no network."""
    from .client import connect

    path = connect(run, quanta=quanta).report(out)
    typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def info(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what a run holds."""
    from .client import connect
    from .text import info_text

    found = connect(run).info()
    show(found, info_text(found), as_json=as_json)


@app.command("ls")
def list_runs(
    folder: Annotated[str, typer.Argument(help="Where to look, at any depth.")] = ".", as_json: JsonOption = False
) -> None:
    """List the runs below a folder."""
    from ..storage.run import find_runs

    if not Path(folder).is_dir():
        raise RunNotFoundError(f"{folder} is not a folder.")
    runs = [str(path) for path in find_runs(folder)]
    show({"runs": runs}, "\n".join(runs) or f"no runs below {folder}", as_json=as_json)


@app.command("rm")
def remove(
    run: RunArgument,
    rows: Annotated[str | None, typer.Option(help="Remove only this row set.")] = None,
    quanta: Annotated[str | None, typer.Option(help="Remove only these quanta.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a run, one of its row sets, or its quanta."""
    from ..storage.run import Run, remove_part, remove_run

    opened = Run.open(run)
    if rows and quanta:
        raise ConfigurationError("Give --rows or --quanta, not both.")
    what = f"row set {rows} of {run}" if rows else f"quanta {quanta} of {run}" if quanta else f"the run {run}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove {what} for good?")):
        raise ConfigurationError(f"Nothing was removed: confirm, or give --yes to remove {what}.")
    if rows or quanta:
        remove_part(opened, rows=rows, quanta=quanta)
    else:
        remove_run(opened)
    typer.echo(f"removed {what}")


app.command()(keeping.verify)
app.command()(keeping.repair)
app.command()(keeping.copy)
app.command()(accounting.ledger)


def main() -> None:
    """Run the command line; the exit status says what went wrong (quantascope.errors lists them)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        interrupted = app(prog_name="quantascope", standalone_mode=False) == _INTERRUPTED  # so typer says it
    except KeyboardInterrupt:
        interrupted = True
    except typer.Abort:
        _fail("aborted", 1)
    except QuantascopeError as error:
        _fail(f"error: {error}", error.exit_status)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            message = error.format_message()  # without a command: the help
            _fail(message if message.startswith("Usage:") else f"error: {message}", 2)
        raise
    if interrupted:
        command = shlex.join(["quantascope", *sys.argv[1:]])
        _fail(f"interrupted; what was committed is kept. To go on: {command}", _INTERRUPTED)


def _interrupt(_signal: int, _frame: Any) -> None:  # noqa: ANN401 - signal's own signature
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    typer.echo(message, err=True)
    sys.exit(status)


def _one_of(option: str, value: str, *accepted: str) -> Any:  # noqa: ANN401 - a literal that the caller names
    if value not in accepted:
        raise ConfigurationError(f"{option} is {value!r}; accepted are {', '.join(accepted)}.")
    return value


def _evidence(row: dict[str, Any]) -> str:
    found = row["next_token"]
    return (
        f"{found['value']:.3f} (95 % {found['low']:.3f} to {found['high']:.3f}; "
        f"99th percentile of shuffles {found['null_99']:.3f})"
    )
