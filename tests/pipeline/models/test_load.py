import torch

from pipeline.models.device import Device
from pipeline.models.load import load_frozen
from tests.pipeline.worker.small_run import LLAMA, X_ROTARY, model_folder


def test_models_of_both_kinds_are_frozen_on_the_cpu(tmp_path):
    for name, config in {"llama": LLAMA, "x": X_ROTARY}.items():
        model = load_frozen(str(model_folder(tmp_path / name, config)), "bfloat16", Device("cpu", 1))
        assert {(p.device.type, p.dtype, p.requires_grad) for p in model.parameters()} == {
            ("cpu", torch.bfloat16, False)
        }
        assert not model.training


def test_elsewhere_weights_go_straight_to_the_device(tmp_path):
    """The meta device stands for a GPU."""
    folder = str(model_folder(tmp_path / "llama", LLAMA))
    model = load_frozen(folder, "bfloat16", Device("meta", 1))
    assert {(p.device.type, p.dtype, p.requires_grad) for p in model.parameters()} == {("meta", torch.bfloat16, False)}
    assert not model.training
