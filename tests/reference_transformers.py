"""The numbers that the library transformers computes with VideoMAE and V-JEPA 2, as golden files.

    pip install transformers==5.24.0 && python tests/reference_transformers.py tests/golden_models

Weights and clips are a formula, so a file holds only the names and shapes of the weights and what came out. The library
is not a dependency of this product; the tests compare with the files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH, FRAMES, SIZE, PATCH, TUBELET = 2, 4, 32, 8, 2
WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 32, 3, 2, 64, 5  # heads of 16 channels, of which rope leaves 4 as they are


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return float64 values that follow from a tensor's name and shape, of the size that weights have."""
    count = torch.Size(shape).numel()
    phase = sum((index + 1) * ord(letter) for index, letter in enumerate(name)) % 9973
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 1.618 + phase).reshape(shape)
    if len(shape) > 1:
        return values * 1.5 * torch.Size(shape[1:]).numel() ** -0.5
    return values * 0.3 + (1.0 if name.endswith("weight") else 0.0)


def clips() -> Tensor:
    """Return float64 (BATCH, 3, FRAMES, SIZE, SIZE)."""
    return formula("clips", (BATCH, 3, FRAMES, SIZE, SIZE)) * (3 * FRAMES * SIZE * SIZE) ** 0.5


def filled(model: torch.nn.Module) -> dict[str, list[int]]:
    """Give a model the formula's weights, and return the names and shapes of all of them."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: formula(name, tuple(shape)) for name, shape in shapes.items()})
    return shapes


def main(folder: Path) -> None:
    """Write a golden file for each model."""
    import transformers
    from safetensors.torch import save_file

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    sizes |= {"patch_size": PATCH, "tubelet_size": TUBELET, "layer_norm_eps": 1e-6}
    mae = transformers.VideoMAEConfig(
        **sizes, intermediate_size=HIDDEN, image_size=SIZE, num_frames=FRAMES, num_labels=CLASSES
    )
    jepa = transformers.VJEPA2Config(
        **sizes,
        mlp_ratio=HIDDEN / WIDTH,
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    video = clips().transpose(1, 2)  # they want (B, T, 3, H, W)
    for name, model in {
        "videomae": transformers.VideoMAEForVideoClassification(mae),
        "vjepa2": transformers.VJEPA2Model(jepa),
    }.items():
        model = model.double().eval()
        names = filled(model)
        with torch.no_grad():
            if name == "videomae":
                found = {"tokens": model.videomae(video).last_hidden_state, "logits": model(video).logits}
            else:
                found = {"tokens": model(video, skip_predictor=True).last_hidden_state}
        metadata = {"weights": json.dumps(names), "transformers": transformers.__version__}
        save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}.safetensors", metadata)
        print(f"{folder / name}.safetensors: {len(names)} weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
