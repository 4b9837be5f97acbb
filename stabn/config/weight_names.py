"""What `train.init_weights` may name besides a file: everything that is not a path or URI."""

NAMED = ("imagenet", "random", "")  # the last as in earlier versions, for random
LIBRARIES = ("torchvision:", "timm:", "hf:")  # whose own caches, mirrors and tokens are used


def is_named(weights: str) -> bool:
    """Tell a name from the path or URI of a file."""
    return weights in NAMED or weights.startswith(LIBRARIES)
