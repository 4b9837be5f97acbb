"""Videos, frames, manifests, sampling and augmentation."""
