"""In which precision a model is trained. The metrics of validation: test_loop.py."""

import pytest
import torch

from dfdc_ray.models import NAMES, create_model
from dfdc_ray.train.validation import precision

DEPTHWISE = {"efficientnet_lite0", "efficientnet_b4", "efficientnet_b4_attention"}  # whose convolutions are slower in bf16
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_on_a_cpu_bf16_is_for_what_gets_quicker_by_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = create_model(name)
    for hardware in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda hardware=hardware: hardware)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert precision(model, CPU) == ("bf16" if hardware and name not in DEPTHWISE else "float32")
