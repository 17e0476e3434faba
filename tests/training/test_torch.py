"""Loss and gradients equal those that PyTorch's autograd finds for tensors in the released layout.

Runs where PyTorch is installed; nothing of the package needs it.
"""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from jvlm_mlx.checkpoint.names import LAYOUTS, ORIGINAL
from jvlm_mlx.training.loss import prepare

torch = pytest.importorskip("torch")


def test_gradients_equal_those_of_pytorch(golden_folder, tmp_path):
    from torch_forward import mean_loss

    from tests.helpers.training_case import make_loader, make_trainer, write_examples

    folder = golden_folder / "tiny"
    trainer, processor = make_trainer(folder)
    batch = make_loader(write_examples(tmp_path), processor, text_fraction=0.5)[0]
    loss, gradients = trainer.gradients([prepare(trainer.model, batch)], 0)
    mx.eval(loss, gradients)

    tensors = {
        name: torch.tensor(array.astype(np.float64)).requires_grad_()
        for name, array in load_file(folder / "model.safetensors").items()
    }
    expected = mean_loss(tensors, json.loads((folder / "config.json").read_text()), batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # float32 against float64
    compared = 0
    for path, found in gradients.items():
        parts = [tensors[name].grad.numpy() for name in LAYOUTS[ORIGINAL].sources(path)]
        wanted = np.concatenate(parts)
        # Float32 through a dozen layers, relative to the largest gradient of each parameter.
        np.testing.assert_allclose(
            np.array(found), wanted, rtol=0, atol=2e-4 * np.abs(wanted).max(), err_msg=path
        )
        compared += 1
    assert compared > 100
