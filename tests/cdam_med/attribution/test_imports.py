"""What explaining a timm model loads, in a process of its own."""

import subprocess
import sys

FOREIGN = (
    "monai",
    "pandas",
    "sklearn",
    "matplotlib",
    "pydantic",
    "data_prep",
    "captum",
    "transformers",
    "lightning",
)
"""What the method itself has no use for."""

CODE = """
import sys
import cdam_med.attribution
import timm
import torch
import cdam_med
model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2)
cdam_med.cdam_scores(model.eval(), torch.zeros(1, 3, 32, 32))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_cdam_of_a_timm_model_loads_torch_and_timm_alone():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "timm" in loaded
    assert not loaded.intersection(FOREIGN)
