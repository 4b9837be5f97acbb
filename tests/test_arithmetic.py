"""The guard against wrong convolutions: it passes where they are right, and finds one that is not."""

from typing import Any

import pytest
import torch

from components.doctor.places import Places, Skipped
from components.doctor.services import check_gpu_here
from stabn.training import arithmetic
from stabn.training.arithmetic import SHAPES, SMALL_SHAPES, TOLERANCE, WrongArithmetic, bf16_errors, check_bf16

CPU = torch.device("cpu")


def test_right_convolutions_pass() -> None:
    errors = check_bf16(CPU, SMALL_SHAPES)
    assert len(errors) == 3 * len(SHAPES) and 0 < max(errors.values()) < TOLERANCE / 3
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("what", ["a part", "nan"])
def test_a_wrong_part_of_one_video_is_found(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Only one frame of the last of many videos is wrong, and only in bf16, as in the faulty versions."""
    real = torch.nn.functional.conv3d

    def faulty(video: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        found = real(video, weight, **options)
        if video.dtype == torch.bfloat16 and video.shape[1] > 3:
            factor = torch.ones_like(found)
            factor[-1, :, -1] = float("nan") if what == "nan" else 0.9
            found = found * factor
        return found

    monkeypatch.setattr(torch.nn.functional, "conv3d", faulty)
    shapes = tuple(shape._replace(videos=16) for shape in SMALL_SHAPES[:2])
    with pytest.raises(WrongArithmetic, match=r"conv3d in bf16 is wrong .*: first stage, .* train.precision = fp32"):
        check_bf16(CPU, shapes)
    assert bf16_errors(CPU, shapes[:1])["stem, output"] < TOLERANCE


@pytest.mark.parametrize(("number", "said"), [(91002, "cuDNN 9.10.2"), (90800, "cuDNN 9.8.0"), (8902, "cuDNN 8.9.2")])
def test_the_version_is_written_as_usual(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert arithmetic.cudnn_version() == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_doctor_says_so() -> None:
    with pytest.raises(Skipped, match="no GPU on this machine, and so no cuDNN to check"):
        check_gpu_here(Places())
