"""Initial weights: files of weights, and what became of them in a network."""

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.models.load_report import LoadReport, WeightsError
from stabn.models.network import Network
from stabn.storage import read_uri

# A tensor of one of these is in no ResNet: a checkpoint of the authors, see models/released.py.
RELEASED_MARKS = ("layer_att_common.", "backbone.att_layer4.")
# Where training code keeps its weights; V-JEPA has an averaged encoder, which is the one to use, beside the encoder.
STATE_DICTS = ("model_state_dict", "state_dict", "model", "module", "target_encoder", "encoder")
PREFIXES = re.compile(r"(module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile


def load_tensors(data: bytes) -> Any:
    """Return what `torch.save` wrote, on the CPU: tensors and plain values, and nothing that needs code to run.

    Raises:
        ValueError: it would take more memory than the file has bytes: compressed, or tensors that repeat theirs.
        Exception: of many types, for other files and for those that hold code.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError("it is compressed, which PyTorch's own files are not")
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for tensor in tensors_of(content):
        if tensor.numel() * tensor.element_size() > len(data):
            raise ValueError(f"it has a tensor of shape {tuple(tensor.shape)}, larger than the file")
    return content


def tensors_of(content: Any) -> Iterator[Tensor]:
    """Yield each tensor in nested containers once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item


def read_weights(uri: str) -> dict[str, Tensor]:
    """Read a state dict, see `read_weights_file`."""
    return read_weights_file(uri)[0]


def read_weights_file(uri: str) -> tuple[dict[str, Tensor], list[str]]:
    """Read a state dict, plain or as training code keeps it beside its optimiser, and the names of what else is there.

    From a file of PyTorch or in the format safetensors; neither is unpickled beyond tensors.

    The state dict may lie under one of STATE_DICTS; prefixes as `module.` are removed from its names.

    Raises:
        WeightsError: not a file of weights, one that holds objects which are not loaded, or one name twice.
    """
    data = read_uri(uri)
    try:
        if _is_safetensors(data):
            content: Any = safetensors.torch.load(data)
        else:
            content = load_tensors(data)
    except Exception as error:  # torch raises many types for files that are not its own, or that hold code
        if isinstance(error, StabnError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = (
                f"it holds {found[1]}, and only tensors are loaded; where its code may be run, save its weights alone, "
                "such as torch.save(content['model_state_dict'], path)"
            )
        raise WeightsError(f"{uri}: cannot be read as weights ({reason})") from None
    beside: list[str] = []
    for key in STATE_DICTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            beside += [str(name) for name in content if name != key]
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{uri}: not a state dict; give a file of a backbone or of ST-ABN")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    names = [PREFIXES.sub("", name, count=1) if PREFIXES.match(name) else name for name in tensors]
    check_unique(names, "tensor", uri, "it has one with and one without a prefix; keep one of them", WeightsError)
    return dict(zip(names, tensors.values(), strict=True)), beside


def _is_safetensors(data: bytes) -> bool:
    """Tell a safetensors file, the length of its JSON and the JSON first, from one of PyTorch."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def load_initial_weights(model: Network, uri: str, weights: Mapping[str, Tensor] | None = None) -> LoadReport:
    """Fill a network from one that its backbone knows, or from a checkpoint of the same network.

    Args:
        model: ST-ABN or the baseline.
        uri: path or URI of a state dict, or of a checkpoint of this product.
        weights: what is there, if it was read before; `uri` then names it in messages.

    Raises:
        WeightsError: a shape does not fit; names the key and both shapes.
    """
    weights = read_weights(uri) if weights is None else weights
    report = LoadReport(uri)
    if any(name.startswith("feature_extractor.") for name in weights):
        return _copy(model, [(name, name, value) for name, value in weights.items()], report)
    if any(name.startswith(RELEASED_MARKS) for name in weights):
        raise WeightsError(f"{uri}: a released ST-ABN; convert it with `stabn import-checkpoint`, then give the result")
    placed = [
        (key, f"{model.parts[part]}.{name}", value)
        for key, part, name, value in model.backbone.place(weights, report)
        if part in model.parts
    ]
    return _copy(model, placed, report)


def _copy(model: nn.Module, weights: Iterable[tuple[str, str, Tensor]], report: LoadReport) -> LoadReport:
    """Copy tensors into a network, 2D kernels inflated, and complete the report.

    Args:
        model: the network.
        weights: the file's name, our name and the value of each tensor.
        report: of the file, with what was left out.
    """
    source = report.source
    own = model.state_dict()
    for key, name, value in weights:
        if name not in own:
            report.unexpected.append(key)
            continue
        shape = tuple(value.shape)
        if value.ndim == 4 and own[name].ndim == 5:
            length = own[name].shape[2]
            value = value[:, :, None].repeat(1, 1, length, 1, 1) / length
        if own[name].shape != value.shape:
            raise WeightsError(
                f"{source}: {key} has shape {shape}, the network's {name} {tuple(own[name].shape)}; "
                "choose the preset that the weights are of"
            )
        own[name] = value
        report.loaded.append(name)
    if not report.loaded:
        raise WeightsError(
            f"{source}: none of its tensors has a place in the network; give a state dict of its backbone"
        )
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    report.missing = [name for name in own if name not in set(report.loaded) | counters]
    model.load_state_dict(own)
    return report
