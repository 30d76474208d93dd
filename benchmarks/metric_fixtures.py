"""What torch-fidelity computes on the seeded inputs of the tests, as tests/evaluation/metrics.json.

    python benchmarks/metric_fixtures.py

Needs torch-fidelity, lpips and a torchvision that fits torch. Inception's three outputs are those of its own network
with seeded weights (spatial: channels 0 to 6 of Mixed_6d.branch1x1, which is the graph's mixed_6/conv, by a hook);
FID, KID, IS, precision and recall are its functions on seeded features. LPIPS is that of its authors' package with a
seeded AlexNet under the learned weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import lpips
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.version import __version__

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from metric_cases import (  # noqa: E402 - from the tests, which are no package
    FIXTURE,
    PLACES,
    alexnet_state,
    features,
    inception_state,
    logits,
    pictures,
)


def inception_outputs() -> dict[str, list[list[float]]]:
    """Some values of each output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(inception_state(), path)
        network = FeatureExtractorInceptionV3("seeded", ["2048", "logits_unbiased"], str(path))
    spatial: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[-1]))
    with torch.no_grad():
        pool3, scores = network(pictures())
    found = {"pool3": pool3, "spatial": spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1), "logits": scores}
    return {name: values[:, :: PLACES[name]].tolist() for name, values in found.items()}


def metric_values() -> dict[str, float]:
    """torch-fidelity's metrics of the seeded features."""
    x, y = features(60, 2), features(60, 3, shift=0.3)
    statistics = [metric_fid.fid_features_to_statistics(values) for values in (x, y)]
    found = {
        **metric_fid.fid_statistics_to_metric(*statistics, verbose=False),
        **metric_kid.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False),
        **metric_prc.prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False),
        **metric_isc.isc_features_to_metric(logits(), splits=10, shuffle=False),
    }
    return {name: float(value) for name, value in found.items()}


def lpips_values() -> list[float]:
    """LPIPS of both pictures to the other one."""
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = network.net.state_dict()
    seeded = alexnet_state()
    network.net.load_state_dict({name: seeded["features." + name.split(".", 1)[1]] for name in backbone})
    x = pictures().float() / 127.5 - 1
    with torch.no_grad():
        return network.eval()(x, x.flip(0)).flatten().tolist()


if __name__ == "__main__":
    fixture = {
        "torch_fidelity": __version__,
        "inception": inception_outputs(),
        "metrics": metric_values(),
        "lpips": lpips_values(),
    }
    FIXTURE.write_text(json.dumps(fixture) + "\n")
    print(f"{FIXTURE}: {', '.join(fixture['metrics'])}")
