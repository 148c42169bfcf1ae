"""The verb `export`; the script `vae-export` is the same."""

from __future__ import annotations

import click

from parvae.console import Verb, json_option, print_result


@click.command(cls=Verb)
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The bundle to write.  [default: model.vae beside CHECKPOINT]")
@click.option("--unpack", "folder", type=click.Path(), help="Also write the bundle as plain files: see `vae unpack`.")
@click.option("--int8", is_flag=True, help="Put the hidden layers in 8 bits, and print what that changes.")
@click.option("--codec", multiple=True, metavar="DATA", help="Fit a codec to Parquet, for `vae compress --model`.")
@json_option
def export(
    checkpoint: str, output: str | None, folder: str | None, int8: bool, codec: tuple[str, ...], as_json: bool
) -> None:
    """Turn CHECKPOINT (the ckpt.pt of a run) into one verified bundle of ONNX graphs."""
    from parvae.bundle import read_bundle
    from parvae.edge.unpack import unpack
    from parvae_export.export import export as run_export

    result = run_export(
        checkpoint,
        output,
        int8=int8,
        codec_data=codec,
        announce=lambda message: None if as_json else click.echo(message),
    )
    if folder is not None:
        unpack(read_bundle(str(result.path)), folder)
    print_result(
        {
            "bundle": str(result.path),
            "model_id": result.model_id,
            "num_bytes": result.num_bytes,
            "parity_error": result.parity_error,
            "calibration_rows": result.num_calibration_rows,
            "holds_real_rows": result.from_real_rows,
            "negative_elbo_nats": result.negative_elbo_nats,
            **({} if result.int8 is None else {f"int8_{name}": value for name, value in vars(result.int8).items()}),
            **({} if result.codec is None else {f"codec_{name}": value for name, value in vars(result.codec).items()}),
        },
        as_json=as_json,
    )
