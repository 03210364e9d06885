"""Memory of the general path doesn't grow with targets, but for their scores."""

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")

CODE = """
import sys, torch
from pathlib import Path
from timm.models.vision_transformer import VisionTransformer
from cdam_med import cdam_scores
torch.set_num_threads(1)
vit = VisionTransformer(img_size=112, patch_size=8, embed_dim=96, depth=1, num_heads=3,
                        num_classes=400, global_pool="avg").eval()
assert cdam_scores(vit, torch.randn(2, 3, 112, 112), range(int(sys.argv[1]))).path == "autograd"
(line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
print(int(line.split()[1]) / 1024)
"""


def peak_mib(targets):
    run = [sys.executable, "-c", CODE, str(targets)]
    return float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory is read from Linux's /proc")
def test_four_hundred_targets_need_little_more_memory_than_ten():
    assert peak_mib(400) - peak_mib(10) < 20
