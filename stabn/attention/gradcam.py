"""Grad-CAM of the perception branch (Selvaraju et al., ICCV 2017), to put beside Ms, which the network itself applies.

The package grad-cam computes the same on 5-D tensors, but needs torchvision of PyTorch's own build and a backward pass
through all weights; here the gradient goes no further than f', the maps that have Ms's resolution.
"""

import torch
from torch import Tensor

from stabn.models import STABN


def grad_cam(model: STABN, video: Tensor, class_index: Tensor) -> Tensor:
    """Return where f', what the perception branch gets, speaks for a class.

    The channels of f' are weighted by the mean gradient of the class's logit and summed; what speaks against it is 0.

    Args:
        model: in evaluation mode.
        video: float (B, 3, T, H, W), normalised.
        class_index: int64 (B,), the class of each video that is asked about.

    Returns:
        float (B, T, h, w), 0 or above, not scaled; the cells are those of Ms.
    """
    with torch.no_grad():
        features = model.extract_features(video)
        _, spatial, temporal = model.attention_branch(features)
        attended = model.attend(features, spatial, temporal)
    with torch.enable_grad():
        attended.requires_grad_()
        logits = model.classify(attended)
        (gradient,) = torch.autograd.grad(logits.gather(1, class_index[:, None]).sum(), attended)
    weights = gradient.float().mean((2, 3, 4), keepdim=True)
    return (weights * attended.detach().float()).sum(1).clamp(min=0)
