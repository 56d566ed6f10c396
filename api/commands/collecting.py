"""The command that computes gradient rows: collect."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption, one_of, place, show
from .progress_bar import progress_listener


def collect(
    model: Annotated[str, typer.Option(help="Model folder or hub id.")],
    dataset: Annotated[str, typer.Option(help="Saved data set, hub id, JSONL, Parquet, CSV, or folder of text files.")],
    out: Annotated[
        str,
        typer.Option(help="Folder of the run, or its URI (s3://…); made if there is none, gone on with if there is."),
    ],
    unit: Annotated[
        str, typer.Option(help="What gets a row: token-loss, window, document, span, token-contribution or group.")
    ] = "token-loss",
    name: Annotated[str | None, typer.Option(help="Name of the row set; the default is the unit.")] = None,
    revision: Annotated[str | None, typer.Option(help="Model's branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps, auto, or spread (over all GPUs).")] = "cpu",
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
        str,
        typer.Option(
            help="tensor-sketch, two-sided (also -gaussian, -orthonormal), wide, sparse-jl, dense, none; pair:NAME."
        ),
    ] = "tensor-sketch",
    dim: Annotated[int, typer.Option(help="Numbers per row, shared by the model's blocks, or per block.")] = 4096,
    loss: Annotated[
        str, typer.Option(help="Of what token-loss rows are the gradients: cross-entropy, or margin (of the logit).")
    ] = "cross-entropy",
    seed: Annotated[int, typer.Option(help="Seed of the projection.")] = 0,
    precondition: Annotated[
        str, typer.Option(help="none, kfac (Kronecker-factored whitening), second-moment (optimizer.pt).")
    ] = "none",
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Run layers again in the backward pass: less memory.")
    ] = False,
    shares: Annotated[
        str, typer.Option(help="How blocks share --dim: energy, size, equal; or each: so many per block.")
    ] = "energy",
    blocks: Annotated[
        str, typer.Option(help="paper, linear, all, kinds, patterns of names, last:N; joined by commas.")
    ] = "paper",
    require_coverage: Annotated[
        bool, typer.Option("--require-coverage", help="Refuse models with parameters that get no rows.")
    ] = False,
    rows_per_block: Annotated[int | None, typer.Option(help="Rows of one piece of work.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens that go through the model together; the default is found by trying.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    threads_per_worker: Annotated[int, typer.Option(help="Threads of each worker; part of the plan.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0,
    ray_address: Annotated[str | None, typer.Option(help="Join this cluster (auto inside a Ray job).")] = None,
    allow_no_token: Annotated[
        bool, typer.Option("--allow-no-token", help="Join a cluster without token authentication.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port at which a local Ray serves Prometheus metrics; the default is any free one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say rows, bytes and hours; compute nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute a model's gradient rows on a data set, into a run; after an interruption the same command goes on."""
    from ...jobs.collecting.collect import Collection
    from ...jobs.collecting.collect import collect as run_collection
    from ...jobs.collecting.collect import dry_run as estimate
    from ...jobs.collecting.config import (
        LOSSES,
        PRECONDITIONERS,
        REDUCTIONS,
        SHARES,
        UNIT_TYPES,
        RowConfig,
        SelectionConfig,
        SetConfig,
    )
    from ...jobs.data.source import DataSource
    from ...jobs.models.model import ModelSource
    from ...jobs.workers.ray_session import RayOptions

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
            bad_rows=one_of("--bad-rows", bad_rows, "stop", "skip"),
            max_documents=max_documents,
        ),
        config=SetConfig(
            selection=SelectionConfig(
                unit_type=one_of("--unit", unit, *UNIT_TYPES),
                window_tokens=window_tokens,
                loss_reduction=one_of("--loss-reduction", loss_reduction, *REDUCTIONS),
                group_by=group_by,
                max_loss=max_loss,
                max_units=max_units,
                max_per_window=max_per_window,
                scan_tokens=scan_tokens,
            ),
            rows=RowConfig(
                projection=projection,
                dim=dim,
                loss=one_of("--loss", loss, *LOSSES),
                seed=seed,
                precondition=one_of("--precondition", precondition, *PRECONDITIONERS),
                checkpoint_activations=checkpoint_activations,
                shares=one_of("--shares", shares, *SHARES),
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
        metrics_port=metrics_port,
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
