"""C3D (Tran et al., 2015): eight 3x3x3 convolutions; time is pooled too."""

from stabn.config.backbones.spec import BackboneSpec

WIDTH = 64  # of the published network


class C3DSpec(BackboneSpec):
    """See stabn/models/c3d.py: the cut is before the fourth pooling."""

    temporal_stride = 4
    spatial_stride = 8

    def describe(self) -> str:
        return "C3D" if self.config.width == WIDTH else f"C3D, width {self.config.width}"
