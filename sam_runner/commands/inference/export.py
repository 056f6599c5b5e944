"""`sam-export`: the network of a run as a file for other programs."""

from sam_runner.commands.arguments import Parser, add_model_options, add_output_options, require_output, run_folder
from sam_runner.commands.exit_codes import DONE, run_command
from sam_runner.utils.errors import InputError

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}


def main() -> int:
    """Run `sam-export RUN --format FORMAT [--normalisation inside] [--out FILE]`. Returns the exit code."""
    return run_command(export)


def export(arguments: list[str]) -> int:
    """Write the file, and print how far its logits are from those of the network, and what its input is."""
    parser = Parser(
        "sam-export",
        "Write the network of a run as a file. The exported and the original network get the same random images; the"
        " largest difference of their logits is printed, and nothing is written if it is too large.",
    )
    parser.add_argument("run", type=run_folder, metavar="RUN", help="run folder")
    parser.add_argument(
        "--format", choices=tuple(SUFFIXES), required=True, help="safetensors: the weights, for model.weights=FILE and"
        " other programs; torch-export: a program that torch runs without this package; onnx: an ONNX model (needs the"
        " extra export)"
    )  # fmt: skip
    parser.add_argument(
        "--normalisation", choices=("outside", "inside"), default="outside", help="inside: the exported network takes"
        " pixel values in [0, 1] (not with safetensors); outside: it takes normalised images (default)"
    )  # fmt: skip
    add_model_options(parser, device=False)
    add_output_options(parser, "model.safetensors, model.pt2 or model.onnx in the run folder", "FILE")
    given = parser.parse(arguments)
    if given.format == "safetensors" and given.normalisation == "inside":
        raise InputError(
            "--normalisation inside has no effect with --format safetensors, which holds weights only\n"
            "  leave it out: mean and std are in the metadata of the file"
        )
    from sam_runner.runs.folder import read_config

    read_config(given.run)  # refuse a folder without a run before torch is imported, which takes seconds
    suffix = SUFFIXES[given.format]
    out = require_output(given.out or given.run / f"model{suffix}", [suffix], overwrite=given.overwrite)
    from sam_runner.inference.export import export_network, require_packages
    from sam_runner.inference.predictions import write_file

    require_packages(given.format)
    inside = given.normalisation == "inside"
    found = export_network(given.run, given.format, given.checkpoint, normalised_inside=inside)
    write_file(out, found.content)
    print(
        f"{out}: {given.format}, {len(found.content):,} bytes; largest difference of a logit {found.difference:.3g}"
        f" (tolerance {found.tolerance:.3g})"
    )
    print(f"input: {found.input}")
    return DONE
