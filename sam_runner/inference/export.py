"""Write the network of a run for other programs: as safetensors, as a program of torch.export, or as ONNX."""

import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from sam_runner.distributed.sharding import load_full_model_state
from sam_runner.models.outputs import get_logits
from sam_runner.runs.load import TrainedNetwork, load_network
from sam_runner.training.builders.run import build_network
from sam_runner.utils.errors import InputError, TrainingError, first_line
from sam_runner.utils.seeding import make_generator

Format = Literal["safetensors", "torch-export", "onnx"]
TOLERANCE = 1e-4  # of a logit, relative to the largest one if that is above 1; float32 reorderings stay below 1e-5
BATCHES = (8, 1)  # sizes of the batches that are compared
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Export(NamedTuple):
    """An exported network.

    Attributes:
        content: Bytes of the file.
        difference: Largest absolute difference of a logit from the network's.
        tolerance: Largest difference that is accepted.
        input: What the network takes, in words.
    """

    content: bytes
    difference: float
    tolerance: float
    input: str


class LogitsModel(nn.Module):
    """A network from images to logits, with or without the normalisation.

    Args:
        network: The network.
        normalised_inside: Whether the input is pixel values in [0, 1]; otherwise it is normalised images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: TrainedNetwork, *, normalised_inside: bool) -> None:
        super().__init__()
        self.model, self._normalises, self._shape = network.model, normalised_inside, network.facts.input_shape
        facts, dtype = network.facts.normalisation, network.format_options["dtype"]
        for name, values in (("mean", facts.mean), ("std", facts.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).to(dtype)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images (N, C, H, W)."""
        return get_logits(self.model((images - self.mean) / self.std if self._normalises else images))

    def draw_inputs(self, size: int) -> tuple[Tensor, Tensor]:
        """Return `size` images of random pixels in [0, 1], and the same images as the input of this network."""
        draws = make_generator(0, "export", size)
        pixels = torch.randint(256, (size, *self._shape), generator=draws).to(self.mean.dtype) / 255
        return pixels, pixels if self._normalises else (pixels - self.mean) / self.std


def require_packages(kind: Format) -> None:
    """Require the packages that a format needs.

    Raises:
        InputError: If one of them is not installed.
    """
    missing = [name for name in ONNX_PACKAGES if kind == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs {', '.join(missing)}\n  pip install {' '.join(missing)} (the extra export has them)"
        )


def export_network(folder: Path, kind: Format, which: str, *, normalised_inside: bool = False) -> Export:
    """Export the network of a run, and compare the logits of the exported and of the original network.

    Both get the same images, of random pixels, in batches of `BATCHES`. The network is exported in evaluation mode,
    on the CPU, without autocast, in float32, or in float64 if the run has ``precision=fp64``. The size of a batch is
    free.

    Args:
        folder: The run folder.
        kind: Format of the file.
        which: Checkpoint, "last" or "best".
        normalised_inside: Whether the exported network normalises the images itself.

    Raises:
        InputError: If the run cannot be used, or the format cannot express the network.
        TrainingError: If the logits differ by more than the tolerance.
    """
    network = load_network(folder, which, "cpu")
    network.facts.require_images(folder)
    network.model.to(memory_format=torch.contiguous_format)
    model = LogitsModel(network, normalised_inside=normalised_inside).eval()
    metadata = describe_network(network, normalised_inside=normalised_inside)
    try:
        with torch.no_grad():
            content, run = _WRITERS[kind](model, network, metadata)
            difference, largest = _compare(network, model, run)
    except InputError:
        raise
    except Exception as error:  # the exporters raise many types
        reason, other = first_line(error)[:300], "torch-export or safetensors" if kind == "onnx" else "safetensors"
        raise InputError(f"{kind} cannot express the network: {reason}\n  use --format {other}") from error
    tolerance = TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:  # also if it is NaN
        raise TrainingError(
            f"the logits of the exported network differ by {difference:.3g}, more than {tolerance:.3g}\n"
            "  nothing was written; use another --format"
        )
    return Export(content, difference, tolerance, _describe_input(network, normalised_inside=normalised_inside))


def _describe_input(network: TrainedNetwork, *, normalised_inside: bool) -> str:
    dtype = str(network.format_options["dtype"]).removeprefix("torch.")
    images = f"{dtype} images ({', '.join(map(str, ('N', *network.facts.input_shape)))})"
    if normalised_inside:
        return f"{images}, pixel values in [0, 1]"
    mean, std = (
        " ".join(f"{value:.4g}" for value in values)
        for values in (network.facts.normalisation.mean, network.facts.normalisation.std)
    )
    return f"{images}, (pixel values in [0, 1] - mean) / std; mean {mean}, std {std}"


def describe_network(network: TrainedNetwork, *, normalised_inside: bool) -> dict[str, str]:
    """Return the metadata of an exported file, JSON by name.

    ``classes``; ``input_shape`` (C, H, W); ``mean`` and ``std`` by channel, for pixel values in [0, 1];
    ``normalisation``, "inside" or "outside" of the network; ``model``, the settings that build the network.
    """
    facts = network.facts
    values: dict[str, Any] = {
        "classes": facts.classes,
        "input_shape": facts.input_shape,
        "mean": facts.normalisation.mean,
        "std": facts.normalisation.std,
        "normalisation": "inside" if normalised_inside else "outside",
        "model": network.config.to_dict()["model"],
    }
    return {name: json.dumps(value) for name, value in values.items()}


Runner = Callable[[Tensor], Tensor]


def _write_safetensors(_: LogitsModel, network: TrainedNetwork, metadata: Mapping[str, str]) -> tuple[bytes, Runner]:
    """Return the file, and the network that is built anew and gets the weights of the file."""
    state = {name: value.detach().clone().contiguous() for name, value in network.model.state_dict().items()}
    content = safetensors.torch.save(state, dict(metadata))
    facts = network.facts
    again = build_network(network.config, len(facts.classes), facts.blank(2), torch.device("cpu"))[0]
    load_full_model_state(again, safetensors.torch.load(content))
    again.to(memory_format=torch.contiguous_format).eval()
    return content, lambda images: get_logits(again(images))


def _write_program(model: LogitsModel, _: TrainedNetwork, metadata: Mapping[str, str]) -> tuple[bytes, Runner]:
    """Return the file, and the program in it; ``model.json`` in the file has the metadata."""
    program = torch.export.export(model, (model.draw_inputs(2)[1],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    facts = json.dumps({name: json.loads(text) for name, text in metadata.items()})
    torch.export.save(program, buffer, extra_files={"model.json": facts})
    content = buffer.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _write_onnx(model: LogitsModel, _: TrainedNetwork, metadata: Mapping[str, str]) -> tuple[bytes, Runner]:
    """Return the file, and a function that runs it in ONNX Runtime."""
    import onnx
    import onnxruntime

    program = torch.onnx.export(
        model,
        (model.draw_inputs(2)[1],),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_WRITERS = {"safetensors": _write_safetensors, "torch-export": _write_program, "onnx": _write_onnx}


def _compare(network: TrainedNetwork, model: LogitsModel, run: Runner) -> tuple[float, float]:
    """Return the largest absolute difference of the logits, and the largest absolute logit."""
    difference, largest = torch.tensor(0.0), torch.tensor(0.0)
    for size in BATCHES:
        pixels, inputs = model.draw_inputs(size)
        expected = get_logits(network.model((pixels - model.mean) / model.std))
        difference = torch.maximum(difference, (run(inputs) - expected).abs().max())  # NaN stays NaN
        largest = torch.maximum(largest, expected.abs().max())
    return float(difference), float(largest)
